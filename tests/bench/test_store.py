from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from posteria.bench.store import Result, ResultStore, key_of
from posteria.errors import CheckpointError

RESULT = Result({"seed": 0, "setup": "lr_1d"}, "paper", "lr_1d", "random", "smoke", 0,
                {"w2": {"mean": 1.5, "standard_error": None}}, {"seconds": 2.0, "steps": 7}, {"torch": "2"},
                "2026-01-01 00:00:00")


def test_a_result_comes_back_as_it_went_in(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "deep" / "results.sqlite")
    store.add(RESULT)
    again = ResultStore(store.path)
    assert RESULT.key in again
    assert again.get(RESULT.key) == RESULT
    assert again.results() == [RESULT]
    assert again.get("nothing") is None


def test_opening_and_reading_change_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    ResultStore(path).add(RESULT)
    before = path.read_bytes()
    assert ResultStore(path).results() == [RESULT]
    assert path.read_bytes() == before


def test_the_same_key_is_replaced(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.sqlite")
    store.add(RESULT)
    store.add(replace(RESULT, record={"seconds": 3.0}))
    assert [r.record for r in store.results()] == [{"seconds": 3.0}]


def test_only_the_newest_of_a_cell_is_reported(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.sqlite")
    changed = replace(RESULT, identity={**RESULT.identity, "steps": 9}, finished="2026-01-02 00:00:00")
    other = replace(RESULT, identity={**RESULT.identity, "seed": 1}, seed=1)
    for result in (changed, RESULT, other):
        store.add(result)
    assert store.results() == [other, changed]
    assert store.keys() == {RESULT.key, changed.key, other.key}


def test_keys_depend_on_values_and_not_on_their_order() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_frames_have_a_row_per_figure(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.sqlite")
    store.add(RESULT)
    frame = store.to_frame()
    assert frame.loc[0, ["setup", "figure", "mean", "steps"]].tolist() == ["lr_1d", "w2", 1.5, 7]


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    foreign.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(CheckpointError, match=r"foreign\.sqlite.*result store"):
        ResultStore(foreign)
    newer = tmp_path / "newer.sqlite"
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CheckpointError, match="version 99"):
        ResultStore(newer)


def test_a_file_of_the_first_version_takes_parts(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    ResultStore(path).add(RESULT)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE parts")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    store = ResultStore(path)
    assert store.results() == [RESULT]
    store.add_part("key", 3, b"first")
    store.add_part("key", 3, b"second")
    assert (store.part("key", 3), store.part("key", 4)) == (b"second", None)
    store.drop_parts("key")
    assert store.part("key", 3) is None
