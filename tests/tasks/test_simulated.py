"""The simulated task: sizes, masks, seeds, and agreement with prior and likelihood."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posteria.errors import InputError
from posteria.models import MODELS
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.randomness import generator_for
from posteria.tasks import TASKS, SimulatedTask
from posteria.types import Dataset
from tests.doubles import ScaledCounts


def test_shapes_and_types(generator: torch.Generator) -> None:
    dataset, theta = SimulatedTask(LinearRegression(), rows=(8, 8), columns=(3, 3)).draw(4, generator)
    assert dataset.x.shape == (4, 8, 3)
    assert theta.shape == (4, 4)
    assert dataset.observed.all()
    assert dataset.features.all()


@pytest.mark.parametrize("scale", ["uniform", "log"])
def test_rows_stay_in_range_and_reach_its_ends(scale: Any) -> None:
    task = SimulatedTask(LinearRegression(), rows=(2, 5), columns=(1, 1), rows_scale=scale)
    seen = {task.draw(1, generator_for(0, i))[0].x.shape[1] for i in range(60)}
    assert seen == {2, 3, 4, 5}


def test_log_scale_sees_small_datasets_as_often_as_large_ones() -> None:
    task = SimulatedTask(LinearRegression(), rows=(10, 1000), columns=(1, 1), rows_scale="log")
    rows = [task.draw(1, generator_for(1, i))[0].x.shape[1] for i in range(400)]
    below = sum(n < 100 for n in rows) / len(rows)
    assert abs(below - 0.5) < 4 * 0.5 / len(rows) ** 0.5


def test_rows_argument_fixes_the_number_of_rows(generator: torch.Generator) -> None:
    assert SimulatedTask(LinearRegression()).draw(2, generator, rows=5)[0].x.shape[1] == 5


def test_features_vary_by_batch_without_padding() -> None:
    task = SimulatedTask(LinearRegression(), rows=(4, 4), columns=(1, 4))
    drawn = [task.draw(2, generator_for(0, i)) for i in range(40)]
    assert {d.x.shape[-1] for d, _ in drawn} == {1, 2, 3, 4}
    assert all(d.features.all() and theta.shape[1] == d.x.shape[-1] + 1 for d, theta in drawn)


def test_features_vary_by_dataset_behind_masks(generator: torch.Generator) -> None:
    task = SimulatedTask(LinearRegression(), rows=(4, 4), columns=(1, 4), vary_features="dataset")
    dataset, theta = task.draw(64, generator)
    assert dataset.x.shape == (64, 4, 4)
    assert theta.shape == (64, 5)
    assert set(dataset.num_features.tolist()) == {1, 2, 3, 4}
    assert (dataset.x[~dataset.features[:, None].expand_as(dataset.x)] == 0).all()
    # The real columns come first: padding at inference looks the same.
    assert (dataset.features[:, :-1] >= dataset.features[:, 1:]).all()


def test_masked_theta_does_not_reach_the_data() -> None:
    model = LinearRegression(noise=1e-12)
    dataset, theta = SimulatedTask(model, (6, 6), (1, 5), vary_features="dataset").draw(32, generator_for(3))
    assert dataset.y is not None
    weights = torch.where(dataset.features, theta[:, :5], 0.0)
    expected = (dataset.x @ weights[..., None])[..., 0] + theta[:, 5:]
    torch.testing.assert_close(dataset.y, expected, atol=1e-4, rtol=1e-4)


def test_extra_columns_are_always_there() -> None:
    task = SimulatedTask(ScaledCounts(), (4, 4), (2, 5), vary_features="dataset")
    dataset, _ = task.draw(50, generator_for(0))
    assert dataset.features[:, :2].all()  # the exposure, and one feature at least


def test_theta_follows_the_prior() -> None:
    _, theta = SimulatedTask(LinearRegression(), (2, 2), (2, 2)).draw(4000, generator_for(0))
    assert theta.mean(0).abs().max() < 4 / 4000**0.5
    assert (theta.var(0) - 1).abs().max() < 4 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("vary", ["batch", "dataset"])
def test_same_seed_same_data(vary: Any) -> None:
    task = SimulatedTask(LinearClassification(), (4, 9), (1, 4), vary_features=vary)
    (first, theta), (second, again) = (task.draw(3, generator_for(7)) for _ in range(2))
    assert torch.equal(theta, again)
    assert torch.equal(first.x, second.x)
    assert not torch.equal(theta, SimulatedTask(LinearClassification(), (4, 9), (4, 4)).draw(3, generator_for(8))[1])


def test_global_state_is_left_alone(generator: torch.Generator) -> None:
    before = torch.get_rng_state()
    SimulatedTask(LinearRegression()).draw(3, generator)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("vary", ["batch", "dataset"])
def test_every_model_simulates(name: str, vary: Any) -> None:
    model = MODELS[name]()
    least = len(model.extra_columns) + 1
    dataset, theta = SimulatedTask(model, (5, 9), (least, least + 3), vary_features=vary).draw(6, generator_for(2))
    model.check(dataset)
    assert isinstance(dataset, Dataset)
    assert torch.isfinite(dataset.x).all()
    assert torch.isfinite(model.log_likelihood(theta[:, None], dataset)).all()


def test_masked_and_options_rebuild_the_task() -> None:
    task = SimulatedTask(LinearRegression(), (3, 8), (1, 4), "log").masked()
    assert task.vary_features == "dataset"
    again = TASKS["simulated"](LinearRegression(), **task.options())
    assert again.options() == task.options()


@pytest.mark.parametrize(("options", "named"), [
    ({"rows": (0, 4)}, "rows"), ({"rows": (5, 4)}, "rows"), ({"rows": 5}, "rows"), ({"rows": (1.5, 4)}, "rows"),
    ({"columns": (0, 4)}, "columns"), ({"rows_scale": "sqrt"}, "rows_scale"),
    ({"vary_features": "row"}, "vary_features"),
])
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        SimulatedTask(LinearRegression(), **options)


def test_columns_must_leave_room_for_a_feature() -> None:
    with pytest.raises(InputError, match="columns"):
        SimulatedTask(ScaledCounts(), columns=(1, 3))
