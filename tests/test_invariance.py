"""Padding, masks and batching change nothing in the iterative estimator's posterior, for every registered model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import MODELS, Model, build_model
from posteria.parts import Part
from posteria.randomness import generator_for
from posteria.types import Dataset

# Small networks; those of the neural models are small too, so that float32 sums stay close.
OPTIONS: dict[str, dict[str, Any]] = {"neural_regression": {"hidden": 3}, "neural_classification": {"hidden": 3}}
ENCODER = Part("iterative", {"width": 16, "climbs": 8, "widenings": 2, "layers": 2})
# Of the posterior's standard deviation, and of the log density.
_RELATIVE = 1e-4
# The search differentiates its likelihood twice, which magnifies rounding in float32.
_MAGNIFIED = {"poisson_regression": 5.0}
# The search of networks may be chaotic: there, what changes of x by a rounding error or two do is allowed, ten times.
_CHAOTIC, _ROUNDING, _TIMES = {"neural_regression", "neural_classification"}, 1e-7, 10.0

few = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors])


@cache
def estimator_for(name: str) -> Estimator:
    torch.manual_seed(0)
    model = build_model(name, **OPTIONS.get(name, {}))
    made = Estimator(model, ENCODER, "full", EstimatorInfo((1 + len(model.extra_columns), 6), (5, 30)))
    generator = generator_for(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return made.eval()


def draw(model: Model, batch: int, rows: int, columns: int, seed: int) -> Dataset:
    x = model.draw_inputs(batch, rows, columns, generator_for(seed, 1))
    inputs = Dataset(x, None, torch.ones(batch, rows, dtype=torch.bool), torch.ones(batch, columns, dtype=torch.bool))
    return model.simulate(model.sample_prior(inputs, 1, generator_for(seed, 2))[:, 0], inputs, generator_for(seed, 3))


def check_same(name: str, first: Dataset, second: Dataset) -> None:
    """Equal means and log densities over the parameters that both have (columns are padded at the end)."""
    one, other = (estimator_for(name).distribution(d) for d in (first, second))
    mean, sd, kept = _moments(name, first, one)
    mean_other, sd_other, kept_other = _moments(name, second, other)
    allowed = _RELATIVE * _MAGNIFIED.get(name, 1.0)
    by_rounding = _moved_by_rounding(name, first, mean) if name in _CHAOTIC else torch.zeros(len(mean), 1)
    calm = (by_rounding <= allowed).all(-1)
    scale = sd + mean.abs()
    moved = ((mean - mean_other).abs() / scale).amax(-1, keepdim=True)
    assert (moved <= allowed + _TIMES * by_rounding).all(), (moved, by_rounding)
    torch.testing.assert_close(sd_other[calm], sd[calm], rtol=10 * allowed, atol=0)
    theta = mean[:, None] + sd[:, None] * torch.randn(len(mean), 3, mean.shape[1], generator=generator_for(8))
    log_prob, log_prob_other = one.log_prob(_put(theta, kept, one)), other.log_prob(_put(theta, kept_other, other))
    atol = allowed * 10 * mean.shape[1]
    torch.testing.assert_close(log_prob_other[calm], log_prob[calm], rtol=allowed, atol=atol)


def _moved_by_rounding(name: str, dataset: Dataset, mean: Tensor) -> Tensor:
    """(B, 1) by how much of sd and mean the means (B, P) of a dataset move at most where x has other last digits."""
    furthest = torch.zeros(len(mean), 1)
    for times in (-2, -1, 1, 2):
        nearby = replace(dataset, x=dataset.x * (1.0 + times * _ROUNDING))
        other, sd, _ = _moments(name, nearby, estimator_for(name).distribution(nearby))
        furthest = furthest.maximum(((other - mean).abs() / (sd + mean.abs())).amax(-1, keepdim=True))
    return furthest


def _moments(name: str, dataset: Dataset, distribution: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Means and standard deviations of the active parameters, and which those are."""
    active = estimator_for(name).model.active(dataset)
    assert (active == active[:1]).all()
    kept = active[0].nonzero()[:, 0]
    return distribution.mean[:, kept], distribution.variance.sqrt()[:, kept], kept


def _put(theta: Tensor, kept: Tensor, distribution: Any) -> Tensor:
    whole = torch.full((*theta.shape[:2], distribution.active.shape[1]), 3.0)  # garbage at padding
    whole[..., kept] = theta
    return whole


each_model = pytest.mark.parametrize("name", sorted(MODELS))
rows_drawn, columns_drawn, seeds = st.integers(4, 25), st.integers(1, 4), st.integers(0, 50)


@each_model
@few
@given(rows=rows_drawn, columns=columns_drawn, more=st.integers(1, 12), seed=seeds)
@torch.no_grad()
def test_padded_rows_change_nothing(name: str, rows: int, columns: int, more: int, seed: int) -> None:
    model = estimator_for(name).model
    columns += len(model.extra_columns)
    dataset = draw(model, 2, rows, columns, seed)
    check_same(name, dataset, dataset.padded(rows + more, columns))


@pytest.mark.parametrize("name", sorted(MODELS))
@few
@given(rows=rows_drawn, columns=columns_drawn, more=st.integers(1, 3), seed=seeds)
@torch.no_grad()
def test_padded_columns_change_nothing(name: str, rows: int, columns: int, more: int, seed: int) -> None:
    model = estimator_for(name).model
    columns += len(model.extra_columns)
    dataset = draw(model, 2, rows, columns, seed)
    check_same(name, dataset, dataset.padded(rows, columns + more))


@each_model
@few
@given(rows=rows_drawn, columns=columns_drawn, seed=seeds, chosen=st.integers(0, 3))
@torch.no_grad()
def test_one_dataset_alone_is_the_same_as_in_a_batch(name: str, rows: int, columns: int, seed: int,
                                                     chosen: int) -> None:
    made = estimator_for(name)
    dataset = draw(made.model, 4, rows, columns + len(made.model.extra_columns), seed)
    alone, together = made.distribution(dataset[chosen:chosen + 1]), made.distribution(dataset)
    theta = alone.rsample(3, generator_for(seed))
    others = theta.expand(4, -1, -1)
    allowed = _RELATIVE * _MAGNIFIED.get(name, 1.0)
    torch.testing.assert_close(together.log_prob(others)[chosen:chosen + 1], alone.log_prob(theta), rtol=allowed,
                               atol=10 * allowed * theta.shape[-1])


@each_model
@few
@given(rows=rows_drawn, seed=seeds, hidden=st.integers(1, 3))
@torch.no_grad()
def test_masked_rows_are_the_same_as_rows_left_out(name: str, rows: int, seed: int, hidden: int) -> None:
    """Wherever they stand, and whatever they hold (finite values that the model could have produced)."""
    model = estimator_for(name).model
    dataset = draw(model, 1, rows, 2 + len(model.extra_columns), seed)
    observed = torch.rand(1, rows, generator=generator_for(seed, 5)) > hidden / 8
    observed[:, :2] = True
    kept = observed[0]
    masked = Dataset(dataset.x, dataset.y, observed, dataset.features)
    shorter = Dataset(dataset.x[:, kept], None if dataset.y is None else dataset.y[:, kept], observed[:, kept],
                      dataset.features)
    check_same(name, masked, shorter)
