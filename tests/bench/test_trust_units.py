"""References by chains of a network's own moves: against importance sampling, and what they say of themselves."""

import pytest
import torch

from posteria.bench import trust_units
from posteria.bench.samplers import predictions
from posteria.bench.trust_importance import importance_moments
from posteria.bench.trust_units import unit_moments
from posteria.errors import UnsupportedError
from posteria.models import LinearRegression, NeuralRegression
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.types import Dataset


def _drawn(count: int = 2) -> Dataset:
    dataset, _ = SimulatedTask(NeuralRegression(hidden=3), (8, 8), (1, 1)).draw(count, generator_for(5))
    return dataset


def test_moments_are_the_posterior_s() -> None:
    """Two references that share nothing but the model agree, up to five of their errors together."""
    model, dataset = NeuralRegression(hidden=3), _drawn()
    found, usable, anywhere = unit_moments(model, dataset, predictions, 2000.0)
    known, enough, _ = importance_moments(model, dataset, predictions, 20_000.0)
    assert usable.all()
    assert enough.all()
    assert anywhere.isposinf().all()
    for name in ("mean", "sd"):
        error = (getattr(found, f"{name}_error").square() + getattr(known, f"{name}_error").square()).sqrt()
        assert ((getattr(found, name) - getattr(known, name)).abs() < 5.0 * error).all(), name


def test_too_few_effective_draws_are_no_reference() -> None:
    _, usable, anywhere = unit_moments(NeuralRegression(hidden=3), _drawn(1), predictions, 1e6, lengths=(64,))
    assert not usable.any()
    assert anywhere.isnan().all()


def test_a_dataset_s_reference_depends_on_its_place_alone() -> None:
    """Not on what comes after it."""
    model, dataset = NeuralRegression(hidden=3), _drawn()
    alone, together = (unit_moments(model, part, predictions, 500.0)[0] for part in (dataset[:1], dataset))
    assert torch.equal(alone.mean, together.mean[:1])


def test_other_models_have_none() -> None:
    dataset, _ = SimulatedTask(LinearRegression(), (8, 8), (2, 2)).draw(1, generator_for(0))
    with pytest.raises(UnsupportedError, match="one hidden layer"):
        unit_moments(LinearRegression(), dataset, predictions, 100.0)


def test_chains_that_stay_apart_are_given_up() -> None:
    """Not before they are long enough to tell, nor where they agree."""
    agreeing = torch.randn(1, 64, 256, 2, generator=generator_for(1))
    apart = agreeing + torch.randn(1, 64, 1, 2, generator=generator_for(2))
    assert trust_units._hopeless(apart, 1024)
    assert not trust_units._hopeless(agreeing, 1024)
    assert not trust_units._hopeless(apart[:, :, :128], 1024)
    assert not trust_units._hopeless(apart, 1_000_000)
