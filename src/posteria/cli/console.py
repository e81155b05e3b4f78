"""What commands say: results on standard output, notes and errors on standard error; and the exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

_DEBUG = "POSTERIA_DEBUG"
_MOST_ROWS = 24


class ExitCode(IntEnum):
    """Exit codes of every command."""

    OK = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    UNTRUSTED = 3
    INTERRUPTED = 130


def out() -> Console:
    """Console for results; made anew, because tests replace the streams."""
    return Console(file=sys.stdout, highlight=False)


def err() -> Console:
    """Console for notes and errors."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Something a person should know, though the command goes on."""
    err().print(f"[yellow]note:[/yellow] {escape(text)}")


def show(table: pd.DataFrame, title: str, first: str = "parameter") -> None:
    """Print a table of numbers, its first rows where it is long."""
    grid = Table(first, title=escape(title), title_justify="left", title_style="bold")
    for name in table.columns:
        grid.add_column(escape(str(name)), justify="right")
    for label, row in zip(table.index[:_MOST_ROWS], table.to_numpy(dtype=float)[:_MOST_ROWS], strict=True):
        grid.add_row(escape(str(label)), *(f"{value:.4g}" for value in row))
    out().print(grid)
    if len(table) > _MOST_ROWS:
        out().print(f"… and {len(table) - _MOST_ROWS} more")


def written(paths: Sequence[object]) -> None:
    """Say which files a command wrote, unwrapped so that they can be copied."""
    for path in paths:
        out().print(f"wrote {escape(str(path))}", soft_wrap=True)


@contextmanager
def explained_errors() -> Iterator[None]:
    """Turn errors into a line that names the argument, and an exit code. Set POSTERIA_DEBUG=1 for tracebacks."""
    from posteria.errors import InputError, PosteriaError, TrainingInterrupted

    try:
        yield
    except typer.Exit:
        raise
    except (KeyboardInterrupt, TrainingInterrupted) as error:
        _fail(error, ExitCode.INTERRUPTED, str(error) or "interrupted")
    except InputError as error:
        _fail(error, ExitCode.BAD_INPUT, str(error))
    except PosteriaError as error:
        _fail(error, ExitCode.UNEXPECTED, str(error))
    except OSError as error:
        _fail(error, ExitCode.UNEXPECTED, f"{error.strerror or error}: {error.filename}" if error.filename
              else str(error))
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        _fail(error, ExitCode.UNEXPECTED, f"unexpected {type(error).__name__}: {first}\n"
                                          f"This should not happen; {_DEBUG}=1 shows where it did.")


def _fail(error: BaseException, code: ExitCode, message: str) -> None:
    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    err().print(f"[red]error:[/red] {escape(message)}")
    raise typer.Exit(int(code)) from error
