"""Averages of a likelihood over a normal around theta, which the search widens by."""

from __future__ import annotations

import pytest
import torch

from posteria.models import build_model
from posteria.models.base import Expectation
from posteria.models.outputs import OutputModel
from posteria.randomness import generator_for
from posteria.types import Dataset
from tests.problems import simulated

_WIDTH = 4.0  # of a normal around theta, in prior standard deviations: logits of twenty and more


def model_of(classes: int) -> OutputModel:
    model = build_model("linear_classification", classes=classes, temperature=0.5, reference=classes == 2)
    assert isinstance(model, OutputModel)
    return model


def data_of(model: OutputModel, rows: int, batch: int = 3) -> Dataset:
    generator = generator_for(rows)
    inputs = Dataset.of(torch.randn(batch, rows, 2, generator=generator), torch.zeros(batch, rows))
    theta = model.sample_prior(inputs, 1, generator)[:, 0]
    return model.simulate(theta, inputs, generator)


def averaged(model: OutputModel, theta: torch.Tensor, dataset: Dataset) -> Expectation:
    found = model.likelihood_expectation(theta, lambda rows: _WIDTH * rows, dataset)
    assert found is not None
    return found


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_averaged_where_the_guess_is_wide(classes: int) -> None:
    """As it is with few rows: against a million draws, within a hundredth of a draw's standard deviation."""
    model = model_of(classes)
    dataset = data_of(model, 3, 1)
    theta = model.sample_prior(dataset, 1, generator_for(3))[:, 0]
    noise = torch.randn(1, 1_000_000, theta.shape[1], generator=generator_for(4))
    scores = model.likelihood_score(theta[:, None] + _WIDTH * noise, dataset)[1]
    off = (averaged(model, theta, dataset).score - scores.mean(1)).abs() / scores.std(1)
    assert float(off.max()) < 0.01 + 4e-3  # four standard errors of the draws


@pytest.mark.parametrize("classes", [2, 4])
def test_an_average_is_a_dataset_s_own(classes: int) -> None:
    """Not that of the datasets beside it, which have more rows, nor of the padding."""
    model = model_of(classes)
    few, many = data_of(model, 5), data_of(model, 700)
    theta = model.sample_prior(few, 1, generator_for(5))[:, 0]
    alone, padded = averaged(model, theta, few), few.padded(700, 2)
    together = Dataset(*(torch.cat([getattr(many, name), getattr(padded, name)])
                         for name in ("x", "y", "observed", "features")))
    beside = averaged(model, theta.repeat(2, 1), together)
    torch.testing.assert_close(beside.score[3:], alone.score, rtol=1e-4, atol=1e-4)
    one, other = (found.rows.mT @ found.rows for found in (beside, alone))
    torch.testing.assert_close(one[3:], other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", [
    "bernoulli", "poisson", "probit", "negative_binomial", "gamma", "survival", "gaussian"])
def test_the_best_gaussian_has_the_curvature_that_y_causes(family: str) -> None:
    """Its precision is minus the mean Hessian (Opper & Archambeau 2009, eq. 8), here by automatic differentiation.

    In the coefficients, over 20,000 draws, whose own error is a few thousandths; within 4%, for the few nodes of an
    average over outputs and another parameter. Most Fisher informations, which do not see y, are 10% and more away.
    """
    model = build_model("generalized_linear", family=family)
    dataset = simulated(model, 2 + len(model.extra_columns), rows=12, batch=1)
    theta = model.sample_prior(dataset, 1, generator_for(1))[:, 0]
    found = model.likelihood_expectation(theta, lambda rows: 0.2 * rows, dataset)
    assert found is not None
    free = slice(0, 3)  # two weights and an intercept
    noise = torch.randn(1, 10_000, theta.shape[1], generator=generator_for(2))
    draws = (theta[:, None] + 0.2 * torch.cat([noise, -noise], 1)).requires_grad_()
    slope = model.likelihood_gradient(draws, dataset)
    hessian = torch.stack([torch.autograd.grad(slope[..., i].sum(), draws, retain_graph=True)[0][0, :, free].mean(0)
                           for i in range(3)])
    curvature = (found.rows[0].mT @ found.rows[0])[free, free]
    assert float((curvature + hessian).norm() / hessian.norm()) < 0.04
