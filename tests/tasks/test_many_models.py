"""Batches of many models: sizes, priors and features as asked for."""

from __future__ import annotations

import pytest
import torch

from posteria.errors import InputError
from posteria.models import build_model
from posteria.randomness import generator_for
from posteria.tasks import ManyModelsTask
from posteria.tasks.inputs import INPUTS
from posteria.tasks.many_models import FAMILIES

MODEL = build_model("gaussian_mean")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_draws_finite_datasets_within_the_sizes(name: str) -> None:
    task = ManyModelsTask(MODEL, [name], rows=(4, 60), columns=(1, 12), most_cells=200)
    for seed in range(12):
        generator = generator_for(seed)
        picked = task.pick(generator)
        dataset, theta = picked.draw(3, generator)
        features = dataset.x.shape[-1] - len(picked.model.extra_columns)
        assert FAMILIES[name].columns[0] <= features <= 12
        assert 4 <= dataset.x.shape[1] <= max(4, 200 // dataset.x.shape[-1])
        assert dataset.x.isfinite().all()
        assert theta.isfinite().all()
        assert dataset.y is None or dataset.y.isfinite().all()
        picked.model.check(dataset)


def test_priors_and_models_differ_between_batches_and_repeat_with_the_seed() -> None:
    task = ManyModelsTask(MODEL)
    def describe(seed: int) -> tuple[str, str]:
        model = task.pick(generator_for(seed)).model
        return model.name, str([str(p.prior) for p in model.parameters])
    assert [describe(seed) for seed in range(5)] == [describe(seed) for seed in range(5)]
    assert len({describe(seed) for seed in range(20)}) == 20
    assert len({describe(seed)[0] for seed in range(40)}) >= 4


def test_unknown_families_are_refused() -> None:
    with pytest.raises(InputError, match="families: got"):
        ManyModelsTask(MODEL, ["probit_of_doom"])


@pytest.mark.parametrize("kind", INPUTS)
def test_features_have_about_unit_variance(kind: str) -> None:
    """Within ten standard errors; heavy tails make these large."""
    generator = generator_for(3)
    x = INPUTS[kind](torch.randn(50, 400, 5, generator=generator), generator)
    squares = x.square().mean(1).flatten()
    assert abs(float(squares.mean()) - 1.0) < 10 * float(squares.std()) / len(squares) ** 0.5
    assert x.isfinite().all()
