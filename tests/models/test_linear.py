"""Linear models: known answers, units, errors of the target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import HalfNormal, Laplace

from posteria.errors import DataError, InputError, UnsupportedError
from posteria.models import GaussianMean, LinearClassification, LinearRegression
from posteria.randomness import generator_for
from posteria.types import Dataset


def test_exact_posterior_is_ridge_regression() -> None:
    x, y = torch.randn(30, 3, generator=generator_for(0)).double(), torch.randn(30, generator=generator_for(1)).double()
    design = torch.cat([x, torch.ones(30, 1)], -1).double()
    precision = design.T @ design / 0.25 + torch.eye(4)
    exact = LinearRegression().exact_posterior(Dataset.of(x, y))
    mean = torch.linalg.solve(precision, design.T @ y.double() / 0.25)
    torch.testing.assert_close(exact.loc[0], mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(exact.covariance_matrix[0], torch.linalg.inv(precision), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [LinearRegression("inferred"),
                                   LinearRegression(priors={"weights": Laplace(0.0, 1.0)})])
def test_no_exact_posterior(model: LinearRegression) -> None:
    with pytest.raises(UnsupportedError, match="known noise and normal priors"):
        model.exact_posterior(Dataset.of(torch.zeros(3, 1), torch.zeros(3)))


def test_regression_in_units_predicts_the_same() -> None:
    generator = generator_for(0)
    x, draws = 5 + 3 * torch.randn(20, 2, generator=generator), {
        "weights": torch.randn(6, 2, generator=generator), "intercept": torch.randn(6, generator=generator),
        "noise_scale": torch.rand(6, generator=generator)}
    location, scale = x.mean(0), x.std(0)
    plain = LinearRegression("inferred").in_units(draws, location, scale, 10.0, 2.0)
    expected = 10.0 + 2.0 * (((x - location) / scale) @ draws["weights"].T + draws["intercept"])
    torch.testing.assert_close(x @ plain["weights"].T + plain["intercept"], expected)
    torch.testing.assert_close(plain["noise_scale"], 2.0 * draws["noise_scale"])


@pytest.mark.parametrize(("y", "message"), [
    (torch.tensor([0.0, 1.0, 3.0]), "class 3; takes classes 0 to 2"),
    (torch.tensor([0.0, 1.5, 2.0]), "not whole"),
    (torch.tensor([0.0, -1.0, 2.0]), "negative"),
    (None, "y: got None"),
])
def test_targets_that_are_no_classes(y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LinearClassification(classes=3).check(Dataset.of(torch.zeros(3, 2), y))


def test_padding_is_no_class() -> None:
    dataset = Dataset(torch.zeros(1, 3, 2), torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[True, True, False]]),
                      torch.ones(1, 2, dtype=torch.bool))
    LinearClassification(classes=2).check(dataset)


def test_missing_target() -> None:
    with pytest.raises(DataError, match="y: got None"):
        LinearRegression().log_likelihood(torch.zeros(1, 1, 3), Dataset.of(torch.zeros(4, 2)))


def test_wrong_width_of_theta() -> None:
    with pytest.raises(InputError, match=r"takes shape \(1, draws, 3\)"):
        LinearRegression().log_likelihood(torch.zeros(1, 1, 2), Dataset.of(torch.zeros(4, 2), torch.zeros(4)))


def test_a_prior_off_the_support() -> None:
    with pytest.raises(InputError, match="prior of weights"):
        LinearRegression(priors={"weights": HalfNormal(1.0)})


def test_no_posterior_by_default() -> None:
    model = LinearClassification()
    with pytest.raises(UnsupportedError, match="linear_classification has no exact posterior"):
        model.exact_posterior(Dataset.of(torch.zeros(3, 1), torch.zeros(3)))
    assert GaussianMean().num_classes == 0
