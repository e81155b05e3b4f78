"""The result store: an SQLite file with a row per cell, written when the cell is done, and parts of cells.

Several processes may write to it at once. A cell is known by a hash of everything that its figures depend on.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posteria.errors import CheckpointError

if TYPE_CHECKING:
    import pandas as pd

_WAIT_SECONDS = 60
_VERSION = 2
_CELLS = """
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY,       -- hash of identity
    identity TEXT NOT NULL,     -- JSON: what the figures depend on
    bench TEXT NOT NULL, setup TEXT NOT NULL, method TEXT NOT NULL, scale TEXT NOT NULL, seed INTEGER NOT NULL,
    figures TEXT NOT NULL,      -- JSON: name -> {mean, standard_error}
    record TEXT NOT NULL,       -- JSON: how it went (steps, seconds, convergence)
    machine TEXT NOT NULL,      -- JSON: version of posteria, torch, python, processor, threads
    finished TEXT NOT NULL      -- UTC
)
"""
_PARTS = """
CREATE TABLE IF NOT EXISTS parts (
    key TEXT NOT NULL,          -- of a cell that is measured part by part
    number INTEGER NOT NULL,    -- of the part
    content BLOB NOT NULL,
    PRIMARY KEY (key, number)
)
"""


@dataclass(frozen=True)
class Result:
    """One cell's row.

    Attributes:
        identity: JSON values that the figures depend on: configuration, seed, evaluation.
        bench, setup, method, scale, seed: labels to select by.
        figures: name -> {"mean", "standard_error"}.
        record: how it went: steps, seconds, convergence.
        machine: version of posteria, torch, python, processor, threads.
        finished: UTC time.
    """

    identity: Mapping[str, Any]
    bench: str
    setup: str
    method: str
    scale: str
    seed: int
    figures: Mapping[str, Mapping[str, float | None]]
    record: Mapping[str, Any]
    machine: Mapping[str, Any]
    finished: str

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return key_of(self.identity)


def key_of(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for JSON values."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ResultStore:
    """Results by key, in an SQLite file.

    Args:
        path: the file, made if missing.

    Raises:
        CheckpointError: the file is not a result store, or of a newer version.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained(), self._connection() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise CheckpointError(f"{path}: result store of version {version}; takes up to {_VERSION}")
            if version < _VERSION:  # a file of this version is only read: opening it changes no byte
                connection.execute(_CELLS)
                connection.execute(_PARTS)
                connection.execute(f"PRAGMA user_version = {_VERSION}")

    def __contains__(self, key: str) -> bool:
        with self._connection() as connection:
            return connection.execute("SELECT 1 FROM cells WHERE key = ?", (key,)).fetchone() is not None

    def add(self, result: Result) -> None:
        """Write a result, in place of an earlier one of the same key."""
        values = (result.key, _json(result.identity), result.bench, result.setup, result.method, result.scale,
                  result.seed, _json(result.figures), _json(result.record), _json(result.machine), result.finished)
        with self._explained(), self._connection() as connection:
            connection.execute(f"INSERT OR REPLACE INTO cells VALUES ({','.join('?' * len(values))})", values)

    def get(self, key: str) -> Result | None:
        """The result of a key, if there is one."""
        with self._connection() as connection:
            row = connection.execute("SELECT * FROM cells WHERE key = ?", (key,)).fetchone()
        return None if row is None else _result(row)

    def results(self) -> list[Result]:
        """The newest result of every bench, setup, method, scale and seed, oldest first.

        A cell whose configuration has changed is another cell; what it replaces stays in the file and out of reports.
        """
        with self._connection() as connection:
            rows = connection.execute("SELECT * FROM cells ORDER BY finished, key").fetchall()
        newest = {(r.bench, r.setup, r.method, r.scale, r.seed): r for r in map(_result, rows)}
        return sorted(newest.values(), key=lambda r: (r.finished, r.key))

    def part(self, key: str, number: int) -> bytes | None:
        """What :meth:`add_part` was given, if it was."""
        with self._connection() as connection:
            row = connection.execute("SELECT content FROM parts WHERE key = ? AND number = ?", (key, number)).fetchone()
        return None if row is None else row[0]

    def add_part(self, key: str, number: int, content: bytes) -> None:
        """Write a part of a cell, in place of an earlier one."""
        with self._explained(), self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (key, number, content))

    def drop_parts(self, key: str) -> None:
        """Forget the parts of a cell."""
        with self._explained(), self._connection() as connection:
            connection.execute("DELETE FROM parts WHERE key = ?", (key,))

    def keys(self) -> set[str]:
        """Of all cells that are done, replaced ones included."""
        with self._connection() as connection:
            return {key for (key,) in connection.execute("SELECT key FROM cells")}

    def to_frame(self) -> pd.DataFrame:
        """A row per cell and figure: labels, figure, mean, standard_error, seconds, steps, finished."""
        import pandas as pd

        rows = [{"bench": r.bench, "setup": r.setup, "method": r.method, "scale": r.scale, "seed": r.seed,
                 "figure": name, **values, **{k: r.record.get(k) for k in ("steps", "seconds", "converged")},
                 "finished": r.finished, "key": r.key}
                for r in self.results() for name, values in r.figures.items()]
        return pd.DataFrame(rows)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise CheckpointError(f"{self.path}: cannot be used as a result store ({error})") from error


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _result(row: tuple[Any, ...]) -> Result:
    identity, figures, record, machine = (json.loads(row[i]) for i in (1, 7, 8, 9))
    return Result(identity, row[2], row[3], row[4], row[5], row[6], figures, record, machine, row[10])
