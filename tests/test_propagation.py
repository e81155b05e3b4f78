"""Expectation propagation against exact posteriors and quadrature."""

from __future__ import annotations

import torch

from posteria.models import LinearRegression, Model, build_model
from posteria.models.repriored import repriored
from posteria.models.terms import LinearTerms, terms_of
from posteria.propagation import Sites, disagreement, kinks, linearized, propagated
from posteria.types import Dataset
from tests.problems import logistic, simulated


def terms(model: Model, dataset: Dataset) -> LinearTerms:
    found = terms_of(model, dataset.double())
    assert found is not None
    return found


def from_nothing(found: LinearTerms, rounds: int) -> Sites:
    nothing = torch.zeros_like(found.offsets)
    return propagated(found, nothing + 0.01, nothing, rounds)


def test_a_line_s_posterior_is_exact() -> None:
    model = LinearRegression()
    dataset = simulated(model, 3)
    exact, sites = model.exact_posterior(dataset), from_nothing(terms(model, dataset), 60)
    covariance = torch.cholesky_inverse(sites.factor)
    torch.testing.assert_close(sites.centre, exact.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(covariance, exact.covariance_matrix, rtol=1e-6, atol=1e-8)


def test_one_observation_of_a_step_has_the_moments_of_quadrature() -> None:
    """With one term there is nothing to approximate: a wide prior and a label that contradicts it."""
    model = repriored(logistic(0.1), prior_scale=3.0)
    dataset = Dataset.of([[[1.5]]], [[1.0]])
    found = terms(model, dataset)
    sites = from_nothing(found, 40)
    line = torch.linspace(-40.0, 40.0, 2001, dtype=torch.double)
    theta = torch.cartesian_prod(line, line)
    log_joint = model.log_joint(theta[None], dataset.double())[0]
    weight = log_joint.softmax(0)[:, None]
    mean = (weight * theta).sum(0)
    sd = (weight * (theta - mean).square()).sum(0).sqrt()
    own = found.scale * torch.cholesky_inverse(sites.factor).diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(found.scale * sites.centre[0], mean, rtol=2e-2, atol=0.0)
    torch.testing.assert_close(own[0], sd, rtol=2e-2, atol=0.0)


def test_it_agrees_with_long_averages_where_there_are_many_observations() -> None:
    """Means of a logistic regression by self-normalised importance sampling: within 0.05 sd."""
    model = logistic()
    dataset = simulated(model, 2, rows=60)
    found = terms(model, dataset)
    sites = from_nothing(found, 30)
    noise = torch.randn(4, 40_000, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    z = sites.centre[:, None] + torch.linalg.solve_triangular(sites.factor.mT, noise.mT, upper=True).mT
    theta = found.location + found.scale * z
    weight = (model.log_joint(theta, dataset.double()) + 0.5 * noise.square().sum(-1)).softmax(-1)[..., None]
    mean = (weight * z).sum(1)
    sd = (weight * (z - mean[:, None]).square()).sum(1).sqrt()
    assert ((sites.centre - mean).abs() / sd).max() < 0.05
    own = torch.cholesky_inverse(sites.factor).diagonal(dim1=-2, dim2=-1).sqrt()
    assert (own / sd - 1).abs().max() < 0.05


def test_terms_that_are_quadratic_are_their_stand_ins() -> None:
    model = LinearRegression()
    found = terms(model, simulated(model, 3))
    mean, variance = torch.randn_like(found.offsets), torch.rand_like(found.offsets) + 0.5
    precision, shift, distance = linearized(found, mean, variance)
    torch.testing.assert_close(precision, torch.full_like(precision, 4.0))  # one over the noise variance
    assert found.dataset.y is not None
    torch.testing.assert_close(shift, 4.0 * found.dataset.y)
    assert distance.max() < 1e-9
    assert disagreement(found, Sites.of(found, precision, shift)).abs().max() < 1e-6


def test_stand_ins_are_mean_derivatives() -> None:
    """-E f'' and E f' + precision * mean of a logistic term, by automatic differentiation at many points."""
    found = terms(logistic(0.5), simulated(logistic(0.5), 1, rows=3, batch=1))
    mean, variance = torch.tensor([[0.3, -1.0, 2.0]]).double(), torch.tensor([[1.0, 4.0, 0.25]]).double()
    precision, shift, _ = linearized(found, mean, variance)
    levels = (torch.arange(20_000, dtype=torch.double) + 0.5) / 20_000
    at = (mean[..., None] + variance.sqrt()[..., None] * torch.special.ndtri(levels))
    assert found.dataset.y is not None
    p = torch.sigmoid(at / 0.5)
    slope, bend = (found.dataset.y[..., None] - p) / 0.5, -p * (1 - p) / 0.25
    torch.testing.assert_close(precision, -bend.mean(-1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shift, slope.mean(-1) - bend.mean(-1) * mean, rtol=1e-3, atol=1e-3)


def test_a_step_s_kink_is_found() -> None:
    found = terms(logistic(0.01), simulated(logistic(0.01), 1, rows=2, batch=1))
    centre, width = kinks(found, torch.tensor([[0, 1]]), torch.tensor([[1.0, -0.5]]).double(),
                          torch.tensor([[4.0, 1.0]]).double())
    assert centre.abs().max() < 0.05  # where both labels are as likely
    assert (width < 0.2).all()


def test_padding_changes_nothing() -> None:
    model = build_model("generalized_linear", family="bernoulli")
    dataset = simulated(model, 2, rows=10)
    plain, padded = (from_nothing(terms(model, data), 20) for data in (dataset, dataset.padded(13, 4)))
    places = torch.tensor([0, 1, 4])
    torch.testing.assert_close(padded.centre[:, places], plain.centre, rtol=1e-8, atol=1e-8)
    assert (padded.precision[:, 10:] == 0).all()
    assert (padded.centre[:, 2:4] == 0).all()
