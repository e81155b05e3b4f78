"""The standardised task: tables as people have them, and the contract of every task."""

from __future__ import annotations

import pytest
import torch

from posteria.errors import InputError
from posteria.models import build_model
from posteria.models.base import Model
from posteria.randomness import generator_for
from posteria.tasks import TASKS, StandardisedTask
from posteria.tasks.standardised import draw_table_inputs


@pytest.fixture(params=["linear_regression", "linear_classification"])
def model(request: pytest.FixtureRequest) -> Model:
    options = {"linear_regression": {"noise": "inferred"}, "linear_classification": {"reference": True}}
    return build_model(request.param, **options[request.param])


def test_shapes_and_no_theta(model: Model) -> None:
    dataset, theta = StandardisedTask(model, (30, 30), (4, 4)).draw(6, generator_for(0))
    assert theta is None
    assert dataset.x.shape == (6, 30, 4)
    model.check(dataset)
    assert torch.isfinite(dataset.x).all()


def test_columns_are_standardised_or_labels() -> None:
    x = draw_table_inputs(20, 50, 10, generator_for(1))
    labels = ((x == 0) | (x == 1)).all(1)
    standard = (x.mean(1).abs() < 1e-4) & (x.var(1, correction=0).sqrt().sub(1).abs() < 1e-3)
    assert (labels | standard).all()
    # A fifth are labels, four standard errors either way; the few constant columns look like labels.
    assert abs(labels.double().mean() - 0.2) < 4 * (0.16 / 200) ** 0.5 + 0.02


def test_columns_are_correlated_and_reach_far_out() -> None:
    x = draw_table_inputs(40, 1500, 8, generator_for(2))
    assert 20 < x.abs().max() <= 1500**0.5
    correlations = torch.stack([torch.corrcoef(table.mT) for table in x]).nan_to_num()
    strong = (correlations.triu(1).abs() > 0.5).any((1, 2)).double().mean()
    assert strong > 0.7


def test_a_real_target_is_standardised() -> None:
    task = StandardisedTask(build_model("linear_regression", noise="inferred"), (64, 64), (3, 3))
    dataset, _ = task.draw(5, generator_for(3))
    assert dataset.y is not None
    torch.testing.assert_close(dataset.y.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(dataset.y.var(1, correction=0), torch.ones(5), atol=1e-4, rtol=0)


def test_the_share_explained_varies_widely() -> None:
    task = StandardisedTask(build_model("linear_regression", noise="inferred"), (500, 500), (5, 5))
    dataset, _ = task.draw(60, generator_for(4))
    assert dataset.y is not None
    design = torch.cat([dataset.x, torch.ones(len(dataset), 500, 1)], -1).double()
    fitted = design @ (torch.linalg.pinv(design, rtol=1e-8) @ dataset.y.double()[..., None])
    explained = fitted[..., 0].var(1, correction=0)
    assert explained.min() < 0.1
    assert explained.max() > 0.9


def test_batches_shrink_to_the_most_cells(model: Model) -> None:
    task = StandardisedTask(model, (100, 100), (10, 10), most_cells=3_500)
    assert len(task.draw(64, generator_for(5))[0]) == 3
    assert len(StandardisedTask(model, (100, 100), (10, 10), most_cells=1).draw(64, generator_for(5))[0]) == 1


def test_masks_hide_the_columns_that_are_not_there(model: Model) -> None:
    task = StandardisedTask(model, (12, 12), (1, 5)).masked()
    dataset, _ = task.draw(30, generator_for(6))
    assert set(dataset.num_features.tolist()) == {1, 2, 3, 4, 5}
    assert (dataset.x[~dataset.features[:, None].expand_as(dataset.x)] == 0).all()


def test_a_draw_repeats_with_its_seed(model: Model) -> None:
    task = StandardisedTask(model, (8, 40), (1, 6))
    first, again = (task.draw(4, generator_for(7))[0] for _ in range(2))
    assert torch.equal(first.x, again.x)


def test_options_build_the_task_again(model: Model) -> None:
    task = StandardisedTask(model, (8, 40), (1, 6), most_cells=900)
    again = TASKS["standardised"](model, **task.options())
    assert again.options() == task.options()


@pytest.mark.parametrize("name", ["gaussian_mean", "poisson_regression"])
def test_models_without_a_target_to_standardise_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"model: got .*; takes a model of a real or class y"):
        StandardisedTask(build_model(name))


def test_most_cells_is_checked(model: Model) -> None:
    with pytest.raises(InputError, match="most_cells"):
        StandardisedTask(model, most_cells=0)
