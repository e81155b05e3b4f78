from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posteria.bench.runner import run_cells
from posteria.bench.workspace import Workspace
from posteria.errors import TrainingInterrupted


@dataclass(frozen=True)
class CountingCell:
    """Writes a line whenever it is computed; may fail or be interrupted."""

    name: str
    log: str
    fate: str = "fine"
    bench: str = "test"
    setup_key: str = "setup"
    scale_name: str = "smoke"
    seed: int = 0

    @property
    def method_key(self) -> str:
        return self.name

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name}

    @property
    def group(self) -> str:
        return self.name

    def compute(self, workspace: Workspace) -> tuple[dict[str, dict[str, float | None]], dict[str, Any]]:
        with Path(self.log).open("a", encoding="utf-8") as file:
            file.write(self.name + "\n")
        if self.fate == "fails":
            raise ValueError("no such luck")
        if self.fate == "interrupted":
            raise TrainingInterrupted("stopped")
        return {"figure": {"mean": 1.0, "standard_error": 0.1}}, {"steps": 3}


def _cells(tmp_path: Path, **fates: str) -> list[CountingCell]:
    return [CountingCell(name, str(tmp_path / "log"), fates.get(name, "fine")) for name in ("a", "b", "c")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_run_repeats_nothing(tmp_path: Path, workers: int) -> None:
    workspace = Workspace(tmp_path)
    first = run_cells(_cells(tmp_path)[:2], workspace, workers)
    second = run_cells(_cells(tmp_path), workspace, workers)
    assert (first.run, first.known, first.failed) == (2, 0, 0)
    assert (second.run, second.known, second.failed) == (1, 2, 0)
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "b", "c"]
    result = workspace.store.results()[0]
    assert result.record["steps"] == 3
    assert result.machine["torch"]


@pytest.mark.parametrize("workers", [1, 2])
def test_one_failure_does_not_lose_the_others(tmp_path: Path, workers: int) -> None:
    said: list[str] = []
    tally = run_cells(_cells(tmp_path, b="fails"), Workspace(tmp_path), workers, said.append)
    assert (tally.run, tally.failed) == (2, 1)
    assert any("FAILED" in text and "no such luck" in text for text in said)
    assert run_cells(_cells(tmp_path), Workspace(tmp_path), workers).run == 1


def test_an_interruption_keeps_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_cells(_cells(tmp_path, b="interrupted"), Workspace(tmp_path))
    assert [r.method for r in Workspace(tmp_path).store.results()] == ["a"]


def test_cells_of_the_same_identity_run_once(tmp_path: Path) -> None:
    cells = _cells(tmp_path)
    assert run_cells([cells[0], cells[0]], Workspace(tmp_path)).run == 1
