"""Gaussian mean: marginals, the exact posterior against quadrature, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.distributions import HalfNormal, Laplace, MultivariateNormal, Normal

from posteria.errors import DataError, InputError, UnsupportedError
from posteria.models import GaussianMean
from posteria.randomness import generator_for
from posteria.types import Dataset

FULL = [[1.0, 0.5, 0.1], [0.5, 2.0, 0.0], [0.1, 0.0, 1.0]]


def test_masked_features_are_marginalised() -> None:
    x, theta = torch.randn(1, 6, 3, generator=generator_for(0)), torch.randn(1, 2, 3, generator=generator_for(1))
    dataset = Dataset.of(x, features=torch.tensor([[True, False, True]]))
    keep = torch.tensor([0, 2])
    sub = torch.tensor(FULL)[keep][:, keep]
    expected = MultivariateNormal(theta[0][:, None, keep], sub).log_prob(x[0][None, :, keep]).sum(-1)
    torch.testing.assert_close(GaussianMean(FULL).log_likelihood(theta, dataset)[0], expected)


def test_fewer_columns_take_the_first_of_the_covariance() -> None:
    x, theta = torch.randn(1, 5, 2, generator=generator_for(0)), torch.zeros(1, 1, 2)
    expected = MultivariateNormal(torch.zeros(2), torch.tensor(FULL)[:2, :2]).log_prob(x[0]).sum()
    torch.testing.assert_close(GaussianMean(FULL).log_likelihood(theta, Dataset.of(x))[0, 0], expected)


def test_exact_posterior_against_quadrature() -> None:
    model = GaussianMean(covariance=0.5, priors={"mean": Normal(1.0, 2.0)})
    dataset = Dataset.of(torch.tensor([[0.3], [1.1], [-0.4]]))
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    density = model.log_joint(grid[None, :, None], dataset)[0].exp().double()
    density = density / torch.trapezoid(density, grid)
    mean = torch.trapezoid(density * grid, grid)
    variance = torch.trapezoid(density * (grid - mean) ** 2, grid)
    exact = model.exact_posterior(dataset)
    torch.testing.assert_close(exact.loc[0, 0], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exact.variance[0, 0], variance, rtol=1e-4, atol=1e-5)


def test_identity_posterior_by_hand() -> None:
    x = torch.randn(2, 10, 3, generator=generator_for(0))
    exact = GaussianMean().exact_posterior(Dataset.of(x))
    torch.testing.assert_close(exact.loc, x.double().sum(1) / 11)
    torch.testing.assert_close(exact.variance, torch.full((2, 3), 1 / 11, dtype=torch.float64))


def test_large_offsets_keep_their_precision() -> None:
    """Sums of squares around the data's mean, not around zero: float32 data at 1e3 would lose the likelihood."""
    x = 1000 + torch.randn(1, 50, 1, generator=generator_for(0))
    theta = torch.tensor([[[1000.0]]])
    expected = Normal(0.0, 1.0).log_prob(x[0].double() - 1000).sum()
    actual = GaussianMean().log_likelihood(theta, Dataset.of(x))
    assert math.isclose(float(actual), float(expected), rel_tol=1e-5)


def test_predictions_are_rows() -> None:
    dataset = Dataset.of(torch.zeros(2, 4, 3))
    distribution = GaussianMean(FULL).predict(torch.zeros(2, 5, 3), dataset)
    assert distribution.batch_shape == (2, 5, 4)
    assert distribution.event_shape == (3,)
    torch.testing.assert_close(distribution.variance[0, 0, 0], torch.tensor([1.0, 2.0, 1.0]))


def test_another_prior_has_no_exact_posterior() -> None:
    with pytest.raises(UnsupportedError, match="normal priors only"):
        GaussianMean(priors={"mean": Laplace(0.0, 1.0)}).exact_posterior(Dataset.of(torch.zeros(3, 1)))


@pytest.mark.parametrize("covariance", [0.0, -1.0, [1.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.4, 1.0]],
                                        [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0]], float("nan")])
def test_bad_covariances(covariance: Any) -> None:
    with pytest.raises(InputError, match="covariance: got"):
        GaussianMean(covariance)


def test_errors_of_data_and_priors() -> None:
    model = GaussianMean(FULL)
    with pytest.raises(DataError, match="at most 3"):
        model.check(Dataset.of(torch.zeros(2, 4)))
    with pytest.raises(DataError, match="at most 3"):
        model.log_likelihood(torch.zeros(1, 1, 4), Dataset.of(torch.zeros(2, 4)))
    with pytest.raises(DataError, match="models x alone"):
        model.check(Dataset.of(torch.zeros(2, 3), torch.zeros(2)))
    with pytest.raises(InputError, match=r"theta: got shape \(1, 1, 2\); takes shape \(1, draws, 3\)"):
        model.log_likelihood(torch.zeros(1, 1, 2), Dataset.of(torch.zeros(2, 3)))
    with pytest.raises(InputError, match=r"priors: got \['weights'\]"):
        GaussianMean(priors={"weights": Normal(0.0, 1.0)})
    with pytest.raises(InputError, match="prior of mean"):
        GaussianMean(priors={"mean": HalfNormal(1.0)})
