"""Validation's parts: the exact posterior's draws and divergence, and figures that survive a broken estimator."""

from __future__ import annotations

import math

import pytest
import torch

from posteria.densities.gaussian import GaussianTheta
from posteria.metrics import gaussian_symmetric_kl
from posteria.models.gaussian import GaussianMean
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.tasks import SimulatedTask
from posteria.training.validation import Validation, draw_exact, exact_posterior, split_rows, symmetric_kl_to
from posteria.types import Dataset


def regression(generator: torch.Generator) -> Dataset:
    features = torch.tensor([[True, True], [True, False]])
    return Dataset.of(torch.randn(2, 30, 2, generator=generator), torch.randn(2, 30, generator=generator),
                      features=features)


def test_exact_draws_have_the_exact_moments(generator: torch.Generator) -> None:
    dataset = regression(generator)
    exact = exact_posterior(LinearRegression(), dataset)
    assert exact is not None
    draws = draw_exact(exact, 10_000, generator)
    z = (draws.mean(1) - exact.mean) / (exact.variance / 10_000).sqrt()
    assert z.abs().max() < 4
    torch.testing.assert_close(draws.var(1), exact.variance, rtol=0.06, atol=0.0)  # 4 SE = 4 √(2 / 10,000)


def test_divergence_is_over_active_parameters(generator: torch.Generator) -> None:
    model, dataset = LinearRegression(), regression(generator)
    exact, active = exact_posterior(model, dataset), model.active(dataset)
    assert exact is not None
    scale = torch.where(active, 1.5 * exact.variance.sqrt(), 1.0).float()
    density = GaussianTheta(exact.mean.float(), scale, active)
    theta, log_q = density.rsample_and_log_prob(20_000, generator)
    value = symmetric_kl_to(exact, density, model, dataset, theta, log_q, generator)
    expected = gaussian_symmetric_kl(density.mean, density.covariance, exact.mean, exact.covariance_matrix, active)
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0.0)


def test_rows_are_split_with_their_masks(generator: torch.Generator) -> None:
    dataset = regression(generator)
    first, rest = split_rows(dataset, 12)
    assert (first.x.shape[1], rest.x.shape[1]) == (12, 18)
    assert first.y is not None
    assert rest.y is not None
    assert dataset.y is not None
    assert torch.equal(torch.cat([first.y, rest.y], 1), dataset.y)
    assert first.features is dataset.features
    none, _ = split_rows(Dataset.of(dataset.x), 3)
    assert none.y is None


def test_models_without_one_have_no_exact_posterior() -> None:
    dataset = Dataset.of(torch.zeros(1, 3, 1), torch.zeros(1, 3))
    assert exact_posterior(LinearClassification(), dataset) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_estimator_does_not_stop_training(value: float) -> None:
    """Figures are not finite; nothing is raised."""

    class Broken:
        def __init__(self) -> None:
            self.model = GaussianMean()

        def for_model(self, model: GaussianMean) -> Broken:
            return self

        def distribution(self, dataset: Dataset) -> GaussianTheta:
            active = self.model.active(dataset)
            return GaussianTheta(torch.full(active.shape, value), torch.ones(active.shape), active)

    broken = Broken()
    figures = Validation(SimulatedTask(broken.model, (5, 10), (2, 2)), broken.model)(broken)  # type: ignore[arg-type]
    assert set(figures) == {"symmetric_kl", "log_predictive", "negative_elbo"}
    assert not any(math.isfinite(figure) for figure in figures.values())
