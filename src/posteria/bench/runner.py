"""Runs cells into a store: in this process, or in several with a share of the cores each.

A cell whose result is in the store is not run again; a training run that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from posteria.bench.scales import Scale
from posteria.bench.store import Result, key_of
from posteria.bench.workspace import Workspace, machine, now
from posteria.errors import TrainingInterrupted

Figures = Mapping[str, Mapping[str, float | None]]
Say = Callable[[str], None]
_POLL_SECONDS = 1.0


class Cell(Protocol):
    """One figure-giving unit of a bench. Must pickle."""

    @property
    def bench(self) -> str: ...
    @property
    def setup_key(self) -> str: ...
    @property
    def method_key(self) -> str: ...
    @property
    def scale_name(self) -> str: ...
    @property
    def seed(self) -> int: ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values that the figures depend on."""
        ...

    @property
    def group(self) -> str:
        """Cells of one group share a training run, so one process runs them in turn."""
        ...

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        """Figures (mean and standard error by name), and the record of how it went."""
        ...


@dataclass(frozen=True)
class CaseCell:
    """Labels of the cells of a bench that has cases of its own; a bench adds ``method_key`` and what it computes."""

    BENCH: ClassVar[str]
    scale: Scale
    case: str

    @property
    def bench(self) -> str:
        return self.BENCH

    @property
    def setup_key(self) -> str:
        return self.case

    @property
    def scale_name(self) -> str:
        return self.scale.name


@dataclass(frozen=True)
class Tally:
    """How many cells were run, were there already, and failed."""

    run: int
    known: int
    failed: int


def run_cells(cells: Iterable[Cell], workspace: Workspace, workers: int = 1,
              say: Say = lambda text: None) -> Tally:
    """Run the cells that the store lacks.

    Args:
        cells: what to run, the most wanted first.
        workspace: where results and trained estimators are kept.
        workers: processes; each has an equal share of the cores.
        say: told of every cell that is done.

    Raises:
        KeyboardInterrupt: Ctrl-C; finished cells and training checkpoints are kept.
    """
    wanted = {key_of(cell.identity): cell for cell in cells}
    known = workspace.store.keys()
    missing = [cell for key, cell in wanted.items() if key not in known]
    groups: dict[str, list[Cell]] = {}
    for cell in missing:
        groups.setdefault(cell.group, []).append(cell)
    run = _run_here if workers <= 1 else _run_in_processes
    failed = run(list(groups.values()), workspace, workers, say)
    return Tally(len(missing) - failed, len(wanted) - len(missing), failed)


def run_cell(cell: Cell, workspace: Workspace) -> Result:
    """Compute a cell and store its result."""
    began = time.perf_counter()
    figures, record = cell.compute(workspace)
    seconds = round(time.perf_counter() - began, 1)
    result = Result(cell.identity, cell.bench, cell.setup_key, cell.method_key, cell.scale_name, cell.seed,
                    figures, {"seconds": seconds, **record}, machine(), now())
    workspace.store.add(result)
    return result


def _run_group(cells: Sequence[Cell], workspace: Workspace, say: Say) -> int:
    """The number of cells that failed: an error in one must not lose the others."""
    failed = 0
    for cell in cells:
        name = f"{cell.setup_key} {cell.method_key} seed {cell.seed}"
        try:
            result = run_cell(cell, workspace)
            say(f"{name}: {result.record['seconds']:.0f} s")
        except (KeyboardInterrupt, TrainingInterrupted):
            raise
        except Exception as error:
            failed += 1
            say(f"{name}: FAILED, {type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}")
    return failed


def _run_here(groups: Sequence[Sequence[Cell]], workspace: Workspace, workers: int, say: Say) -> int:
    try:
        return sum(_run_group(group, workspace, say) for group in groups)
    except TrainingInterrupted as error:
        raise KeyboardInterrupt(str(error)) from error


def _run_in_processes(groups: Sequence[Sequence[Cell]], workspace: Workspace, workers: int, say: Say) -> int:
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for group in groups:
        todo.put(list(group))
    threads = max(1, (os.cpu_count() or 1) // workers)
    count = min(workers, len(groups))
    processes = [context.Process(target=_work, args=(todo, done, workspace, threads), daemon=True)
                 for _ in range(count)]
    for process in processes:
        process.start()
    try:
        return _collect(processes, done, sum(map(len, groups)), say)
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()  # training writes a checkpoint on the way out
            process.join()
        raise


def _collect(processes: Sequence[Any], done: Any, expected: int, say: Say) -> int:
    """Wait for all cells; those of a process that died count as failed."""
    finished, failed = 0, 0
    while finished < expected:
        try:
            text, count, bad = done.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if not any(process.is_alive() for process in processes):
                return failed + expected - finished
            continue
        if text:
            say(text)
        finished, failed = finished + count, failed + bad
    for process in processes:
        process.join()
    return failed


def _work(todo: Any, done: Any, workspace: Workspace, threads: int) -> None:
    """A worker process: groups from the queue until it is empty, or nobody waits for the results any more."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    try:
        while parent is None or parent.is_alive():
            group = todo.get(timeout=_POLL_SECONDS)
            failed = _run_group(group, workspace, lambda text: done.put((text, 0, 0)))
            done.put(("", len(group), failed))
    except queue.Empty:
        return
    except (KeyboardInterrupt, TrainingInterrupted):
        sys.exit(130)
