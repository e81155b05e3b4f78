"""Real tables: reading, downloading, folds, contexts and scaling."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from posteria.bench import real_tables as module
from posteria.bench.real_tables import (
    CLASSIFICATION,
    REGRESSION,
    SOURCES,
    RealTable,
    data_folder,
    download_tables,
    real_tables,
    table_cases,
)
from posteria.errors import DataError, InputError


def table(kind: str = REGRESSION, rows: int = 300, columns: int = 4) -> RealTable:
    generator = torch.Generator().manual_seed(1)
    x = 5 + 3 * torch.randn(rows, columns, generator=generator, dtype=torch.double)
    x[:, -1] = 7.0  # never varies
    y = x[:, 0] * 100 + torch.randn(rows, generator=generator, dtype=torch.double)
    return RealTable("made_up", kind, x, y if kind == REGRESSION else (y > y.median()).double())


def write(folder: Path, values: str) -> Path:
    (folder / "one.csv").write_text(values)
    (folder / "index.json").write_text(json.dumps([{"name": "one", "kind": REGRESSION, "file": "one.csv"}]))
    return folder


def test_the_paper_s_tables(data_dir: Path) -> None:
    found = list(real_tables(list(SOURCES), data_dir))
    assert [(t.name, t.kind, *t.x.shape) for t in found] == [
        (s.name, s.kind, s.rows, s.columns) for s in SOURCES.values()]
    assert all(set(t.y.tolist()) == {0.0, 1.0} for t in found if t.kind == CLASSIFICATION)
    assert sum(s.kind == REGRESSION for s in SOURCES.values()) == 9


def test_the_folder_is_the_environment_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tabular").mkdir()
    write(tmp_path / "tabular", "a,target\n1,2\n3,4\n")
    for start in (tmp_path, tmp_path / "tabular"):
        monkeypatch.setenv("POSTERIA_DATA", str(start))
        assert data_folder() == tmp_path / "tabular"
    assert next(real_tables(["one"])).y.tolist() == [2.0, 4.0]


def test_a_missing_folder_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTERIA_DATA", str(tmp_path))
    with pytest.raises(DataError, match="set POSTERIA_DATA"):
        data_folder()


@pytest.mark.parametrize(("values", "message"), [
    ("a,b\n1,2\n", "target"), ("a,target\nred,2\n", "numbers"), ("a,target\n,2\n", "missing"),
])
def test_unusable_tables_are_named(values: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        list(real_tables(["one"], write(tmp_path, values)))


def test_unknown_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two"):
        list(real_tables(["two"], write(tmp_path, "a,target\n1,2\n")))


@pytest.mark.parametrize("kind", [REGRESSION, CLASSIFICATION])
def test_every_row_is_held_out_once(kind: str) -> None:
    splits = module._splits(table(kind))
    assert torch.cat([test for _, test in splits]).sort().values.tolist() == list(range(300))
    assert all(not set(train.tolist()) & set(test.tolist()) for train, test in splits)


def test_scaling_is_that_of_the_training_fold() -> None:
    cases = table_cases(table(), "whole_fold")
    data = cases.dataset
    assert len(data) == 5
    assert data.y is not None
    assert cases.held_out.y is not None
    x = data.x.double()
    assert torch.allclose(x.mean(1), torch.zeros(5, 4).double(), atol=1e-5)
    assert torch.allclose(x[..., :3].var(1, correction=0), torch.ones(5, 3).double(), atol=1e-4)
    assert (x[..., 3] == 0).all()
    assert torch.allclose(data.y.var(1, correction=0), torch.full((5,), 4.0), atol=1e-3)  # d = 4
    assert not torch.allclose(cases.held_out.y.mean(1), torch.zeros(5), atol=1e-3)


def test_classes_are_not_scaled() -> None:
    labels = table_cases(table(CLASSIFICATION), "context_100").dataset.y
    assert labels is not None
    assert set(labels.unique().tolist()) == {0.0, 1.0}


def test_small_contexts_are_parts_of_the_training_fold() -> None:
    one, whole = (table_cases(table(), context, subsets=3, folds=2) for context in ("context_100", "whole_fold"))
    assert one.fold.tolist() == [0, 0, 0, 1, 1, 1]
    assert whole.fold.tolist() == [0, 1]
    sizes = one.dataset.observed.sum(-1)
    assert ((sizes >= 64) & (sizes <= 128)).all()
    assert len(set(sizes.tolist())) > 1
    for i, fold in enumerate(one.fold.tolist()):
        assert one.dataset.y is not None
        assert whole.dataset.y is not None
        known = set(whole.dataset.y[fold].tolist())
        assert set(one.dataset.y[i][one.dataset.observed[i]].tolist()) <= known
        assert torch.equal(one.held_out.x[i], whole.held_out.x[fold])


def test_contexts_are_the_same_every_time() -> None:
    first, second = (table_cases(table(), "context_100", subsets=2) for _ in range(2))
    assert torch.equal(first.dataset.x, second.dataset.x)
    fewer = table_cases(table(), "context_100", subsets=1)
    rows = fewer.dataset.observed[0]
    assert torch.equal(fewer.dataset.x[0][rows], first.dataset.x[0][first.dataset.observed[0]])


def test_other_contexts_are_refused() -> None:
    with pytest.raises(InputError, match="context"):
        table_cases(table(), "everything")


def _bunch(rows: int = 748) -> SimpleNamespace:
    data = pd.DataFrame({f"V{i}": range(rows) for i in range(3)}).assign(
        kind=pd.Series(["b", "a"] * (rows // 2), dtype="category"))
    target = pd.Series(["2", "1"] * (rows // 2), dtype="category", name="Class")
    return SimpleNamespace(data=data, target=target, details={"name": "blood-transfusion-service-center"})


def test_download_writes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(**options: Any) -> SimpleNamespace:
        asked.append(options["data_id"])
        return _bunch()

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    name = "blood-transfusion-service-center"
    folder = download_tables(tmp_path / "new", [name])
    found = next(real_tables([name], folder))
    assert asked == [1464]
    assert found.kind == CLASSIFICATION
    assert found.x[:2].tolist() == [[0, 0, 0, 1], [1, 1, 1, 0]]
    assert found.y[:2].tolist() == [1, 0]


def test_another_table_at_openml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda **options: _bunch(10))
    with pytest.raises(DataError, match="OpenML 1464"):
        download_tables(tmp_path, ["blood-transfusion-service-center"])
    with pytest.raises(InputError, match="names"):
        download_tables(tmp_path, ["magic"])
