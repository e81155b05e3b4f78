"""Datasets resampled from real tables: what is drawn is in the tables, and what cannot be used is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from posteria.errors import DataError, InputError, UnsupportedError
from posteria.models import build_model
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.randomness import generator_for
from posteria.tasks import MixtureOfTasks, RealTablesTask
from posteria.tasks.real_tables import _subsets
from posteria.training import TrainConfig, train
from posteria.training import build as make_parts


def _frame(rows: int, features: int, seed: int = 0, **more: Any) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(5.0, 3.0, (rows, features))
    frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(features)])
    frame["target"] = values @ np.arange(1.0, features + 1)
    return frame.assign(**more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A long table of 3 features, and a short one of 4 numbers and a colour."""
    _frame(60, 3).to_csv(tmp_path / "long.csv.gz", index=False)
    _frame(20, 4, 1, colour=["red", "blue"] * 10).to_parquet(tmp_path / "wide.parquet")
    (tmp_path / "notes.txt").write_text("not a table", encoding="utf-8")
    return tmp_path


def _task(folder: Path, **options: Any) -> RealTablesTask:
    return RealTablesTask(LinearRegression(), str(folder), **{"rows": (10, 40), "columns": (1, 9), **options})


# -- what is drawn ----------------------------------------------------------------------------
def test_every_dataset_is_rows_and_columns_of_one_table(tmp_path: Path) -> None:
    """Undoing the standardisation: correlations between columns and y of all rows are those of the table."""
    frame = _frame(30, 3)
    frame.to_csv(tmp_path / "only.csv", index=False)
    dataset, _ = _task(tmp_path, rows=(10, 14), columns=(3, 3)).draw(6, generator_for(0), rows=30)
    assert dataset.y is not None
    standardised = ((frame - frame.mean()) / frame.std(ddof=0)).to_numpy()
    for x, y in zip(dataset.x, dataset.y, strict=True):
        order = y.argsort()
        expected = standardised[standardised[:, 3].argsort()]
        np.testing.assert_allclose(y[order], expected[:, 3], atol=1e-5)
        drawn = {tuple(column.round(decimals=3).tolist()) for column in x[order].T}
        assert drawn == {tuple(torch.tensor(column).float().round(decimals=3).tolist()) for column in expected.T[:3]}


def test_rows_are_drawn_without_replacement_and_all_of_them(folder: Path) -> None:
    dataset, _ = _task(folder, columns=(3, 3)).draw(200, generator_for(1), rows=15)
    assert dataset.y is not None
    assert all(len(set(y.tolist())) == 15 for y in dataset.y)


def test_numbers_and_y_are_standardised_and_labels_are_not(folder: Path) -> None:
    (folder / "long.csv.gz").unlink()
    dataset, _ = _task(folder, rows=(4, 4), columns=(5, 5)).draw(50, generator_for(2), rows=12)
    assert dataset.y is not None
    label = ((dataset.x == 0) | (dataset.x == 1)).all(1)
    assert (label.sum(-1) == 1).all()
    numbers = dataset.x.movedim(1, -1)[~label]
    torch.testing.assert_close(numbers.mean(-1), torch.zeros(200), atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers.square().mean(-1), torch.ones(200), atol=1e-4, rtol=0)
    torch.testing.assert_close(dataset.y.square().mean(-1), torch.ones(50), atol=1e-4, rtol=0)


def test_tables_that_are_large_enough_are_equally_likely(folder: Path) -> None:
    task = _task(folder)
    chosen = [task._tables.choose(rows, torch.full((2000,), columns), generator_for(3)).double().mean().item()
              for rows, columns in ((20, 3), (21, 3), (20, 4))]
    assert abs(chosen[0] - 0.5) < 4 * 0.5 / 2000**0.5
    assert chosen[1:] == [0.0, 1.0]


def test_sizes_stay_within_what_tables_have(folder: Path) -> None:
    task = _task(folder, rows=(10, 500))
    assert task.rows == (10, 60)
    sizes = {tuple(task.draw(1, generator_for(4, step))[0].x.shape[1:]) for step in range(200)}
    assert max(rows for rows, _ in sizes) > 50
    assert {columns for rows, columns in sizes if rows > 20} == {1, 2, 3}
    assert {columns for rows, columns in sizes if rows <= 20} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("rows", [61, 76, 144, 1000])
def test_more_rows_than_there_are_is_padding_between_them(folder: Path, rows: int) -> None:
    """Validation splits off rows from the end: some of them must be real, in a mixture with longer datasets too."""
    task = _task(folder, columns=(2, 2))
    dataset, _ = task.draw(3, generator_for(5), rows=rows)
    whole, _ = task.draw(3, generator_for(5), rows=60)
    assert dataset.y is not None
    assert whole.y is not None
    assert dataset.observed.shape == (3, rows)
    assert (dataset.observed.sum(-1) == 60).all()
    assert dataset.observed[:, -17:].sum(-1).min() >= 1
    assert (dataset.x[~dataset.observed] == 0).all()
    assert torch.equal(dataset.x[dataset.observed], whole.x.flatten(0, 1))
    assert torch.equal(dataset.y[dataset.observed], whole.y.flatten())


def test_batches_are_held_to_their_cells(folder: Path) -> None:
    task = _task(folder, columns=(3, 3), most_cells=100)
    assert len(task.draw(50, generator_for(5), rows=10)[0]) == 3
    assert len(task.draw(50, generator_for(5), rows=60)[0]) == 1


def test_a_subset_lists_each_number_equally_often() -> None:
    chosen = _subsets(torch.tensor([4, 2] * 3000), 2, generator_for(6))
    assert (chosen[:, 0] != chosen[:, 1]).all()
    shares = torch.bincount(chosen[::2].flatten(), minlength=4) / 6000
    assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 6000) ** 0.5
    assert chosen[1::2].max() == 1


def test_classes_are_indices_in_order(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(24.0), "label": ["no"] * 12 + ["yes"] * 12})
    frame.to_csv(tmp_path / "classes.csv", index=False)
    task = RealTablesTask(LinearClassification(), str(tmp_path), {"classes.csv": "label"}, rows=(4, 12))
    dataset, _ = task.draw(3, generator_for(7), rows=24)
    assert dataset.y is not None
    assert torch.equal(dataset.y, (dataset.x[..., 0] > 0).float())
    assert task.options()["target"] == {"classes.csv": "label"}


# -- what cannot be used ----------------------------------------------------------------------
@pytest.mark.parametrize(("frame", "options", "message"), [
    (_frame(9, 3), {}, r"bad\.csv: got 9 rows; takes a table with at least 10 rows"),
    (_frame(20, 2), {"columns": (3, 9)}, r"bad\.csv: got 2 features; takes a table with at least 3 features"),
    (_frame(20, 2), {"target": "price"}, r"bad\.csv: target: got 'price'"),
    (_frame(20, 2), {"target": {"other.csv": "y"}}, r"bad\.csv: target: .*names bad\.csv too"),
    (_frame(20, 2, target=1.0), {}, r"bad\.csv: target 'target': got one value in all rows"),
    (_frame(20, 2, x1=np.nan), {}, r"bad\.csv: table: got missing values"),
    (_frame(20, 1, x0=1.0), {}, r"bad\.csv: table: got no feature that varies"),
])
def test_tables_that_cannot_be_used_are_named(tmp_path: Path, frame: pd.DataFrame, options: dict[str, Any],
                                              message: str) -> None:
    _frame(60, 3).to_csv(tmp_path / "good.csv", index=False)
    frame.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=message):
        _task(tmp_path, **options)


@pytest.mark.parametrize(("labels", "message"), [(1, "got 1 classes"), (3, "got 3 classes")])
def test_tables_with_other_classes_are_named(tmp_path: Path, labels: int, message: str) -> None:
    _frame(30, 2, target=np.arange(30) % labels).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=rf"bad\.csv: target 'target': {message}"):
        RealTablesTask(LinearClassification(), str(tmp_path), rows=(10, 14))


def test_folders_without_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder: got .* without a table; takes a folder with files"):
        _task(tmp_path)
    with pytest.raises(DataError, match=r"folder: got .*nowhere'; takes a folder with tables"):
        _task(tmp_path / "nowhere")


def test_other_wrong_options_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match="most_cells: got 0"):
        _task(folder, most_cells=0)
    with pytest.raises(InputError, match="a model of a real or class y"):
        RealTablesTask(build_model("gaussian_mean"), str(folder))
    with pytest.raises(InputError, match=r"rows: got \(5, 4\)"):
        _task(folder, rows=(5, 4))


# -- training ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["linear_regression", "neural_regression"])
def test_reverse_kl_trains_and_goes_on_where_it_was(folder: Path, tmp_path: Path, name: str) -> None:
    task = {"name": "real_tables", "options": {"folder": str(folder), "rows": [10, 20], "columns": [1, 3]}}
    config = {"model": name, "density": "gaussian", "batch_size": 4, "task": task,
              "encoder": {"name": "deepsets", "options": {"layers": 1, "width": 8}}}
    whole = train({**config, "steps": 4}, out=tmp_path / "whole")
    again = train({**config, "steps": 4}, out=tmp_path / "whole", resume=True)
    assert torch.isfinite(torch.tensor(whole.history[-1]["loss"]))
    assert again.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"])
    repeated = train({**config, "steps": 4}, out=tmp_path / "repeated")
    first, second = (result.estimator.state_dict() for result in (whole, repeated))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_classification_trains(tmp_path: Path) -> None:
    _frame(40, 3, target=["a", "b"] * 20).to_csv(tmp_path / "classes.csv", index=False)
    task = {"name": "real_tables", "options": {"folder": str(tmp_path), "rows": [10, 20], "columns": [1, 3]}}
    for name in ("linear_classification", "neural_classification"):
        result = train({"model": name, "density": "gaussian", "steps": 2, "batch_size": 4, "task": task,
                        "encoder": {"name": "deepsets", "options": {"layers": 1, "width": 8}}})
        assert result.history[-1]["skipped"] == 0


def test_forward_kl_is_refused(folder: Path) -> None:
    config = TrainConfig.of(model="linear_regression", steps=1, objective="forward_kl",
                            task={"name": "real_tables", "options": {"folder": str(folder), "rows": [10, 20]}})
    with pytest.raises(UnsupportedError, match="objective: got 'forward_kl' with the task 'real_tables'"):
        make_parts(config)


def test_a_mixture_with_simulated_data_draws_both(folder: Path) -> None:
    parts = [{"name": "simulated", "options": {"rows": [5, 9]}},
             {"name": "real_tables", "options": {"folder": str(folder), "rows": [10, 20]}}]
    task = MixtureOfTasks(LinearRegression(), parts, weights=[1, 3], columns=(1, 4))
    assert not task.gives_theta
    assert task.rows == (5, 20)
    real = [task.draw(1, generator_for(8, step))[0].x.shape[1] >= 10 for step in range(400)]
    assert abs(sum(real) / 400 - 0.75) < 4 * (0.75 * 0.25 / 400) ** 0.5
    assert {task.masked().draw(2, generator_for(9, step))[0].x.shape[-1] for step in range(8)} == {4}
    config = {"model": "linear_regression", "density": "gaussian", "steps": 3, "batch_size": 4,
              "encoder": {"name": "deepsets", "options": {"layers": 1, "width": 8}},
              "task": {"name": "mixture_of_tasks", "options": task.masked().options()}}
    assert train(config).history[-1]["skipped"] == 0
