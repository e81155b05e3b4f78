"""What a run writes while it goes: a CSV file, TensorBoard, a progress bar."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from posteria.errors import UnsupportedError
from posteria.files import write_atomically
from posteria.training.checkpoint import explained_disk_errors

Row = dict[str, float]


class Log(Protocol):
    """Takes one row of figures at a time."""

    def write(self, row: Row) -> None:
        """Add a row; every row of a log has the same names."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


class CsvLog:
    """Appends rows to a CSV file, each in a single write, so that a kill leaves at most its last line unfinished.

    Args:
        path: the file; it is read where it exists.
        last_step: rows past this step (written after the checkpoint that a run resumes from) are dropped.

    Attributes:
        rows: all rows, read and written.
    """

    def __init__(self, path: Path, last_step: int = 0):
        self.path = path
        self.rows = [row for row in read_csv_log(path) if row["step"] <= last_step]
        with explained_disk_errors(path):
            write_atomically(path, _lines(self.rows, header=True).encode())

    def write(self, row: Row) -> None:
        """Append a row.

        Raises:
            TrainingError: the disk is full.
        """
        text = _lines([row], header=not self.rows)
        self.rows.append(row)
        with explained_disk_errors(self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(text)

    def close(self) -> None:
        """Nothing is held back."""


class TensorBoardLog:
    """Writes scalars for TensorBoard.

    Raises:
        UnsupportedError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, last_step: int = 0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UnsupportedError("tensorboard: True needs the package tensorboard: install it, or take "
                                   "tensorboard False; log.csv has the same figures") from error
        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1 if last_step else None)

    def write(self, row: Row) -> None:
        """Add the row's figures at its step."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()


def read_csv_log(path: Path) -> list[Row]:
    """The complete rows of a log file; none where there is no file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[:text.rfind("\n") + 1]  # a kill may have cut the last line
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(complete))]


def _lines(rows: list[Row], header: bool) -> str:
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows([{name: f"{value:.10g}" for name, value in row.items()} for row in rows])
    return out.getvalue()


class Bar:
    """Shows how far a run is, its loss and its validation figure."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._task = progress.add_task("training", total=1.0, figures="")

    @property
    def shown(self) -> bool:
        return not self._progress.disable

    def update(self, progress: float, figures: Mapping[str, Any]) -> None:
        """Show how far the run is, in [0, 1], and some figures by name."""
        text = "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                         for name, value in figures.items())
        self._progress.update(self._task, completed=progress, figures=text)


@contextmanager
def progress_bar(shown: bool = True, console: Console | None = None) -> Iterator[Bar]:
    """A bar on standard error, where that is a terminal."""
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
               TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        yield Bar(progress)
