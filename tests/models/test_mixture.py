"""Gaussian mixture: the density by hand, label switching, the EM curvature, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal

from posteria.errors import DataError, InputError
from posteria.models import GaussianMixture
from posteria.randomness import generator_for
from posteria.testing.models import example
from posteria.types import Dataset


def test_density_by_hand() -> None:
    x, theta = torch.randn(1, 5, 2, generator=generator_for(0)), torch.randn(1, 1, 4, generator=generator_for(1))
    covariances = [[1.0, 4.0], [[1.0, 0.3], [0.3, 0.5]]]
    model = GaussianMixture(2, weights=[0.3, 0.7], covariances=covariances)
    means = theta.reshape(2, 2)
    first = 0.3 * MultivariateNormal(means[0], torch.diag(torch.tensor([1.0, 4.0]))).log_prob(x[0]).exp()
    second = 0.7 * MultivariateNormal(means[1], torch.tensor(covariances[1])).log_prob(x[0]).exp()
    torch.testing.assert_close(model.log_likelihood(theta, Dataset.of(x))[0, 0], (first + second).log().sum())


def test_labels_can_be_exchanged_only_where_components_are_alike() -> None:
    assert GaussianMixture(3).exchangeable_axes == ("components",)
    assert GaussianMixture(2, weights=[0.5, 0.5]).exchangeable_axes == ("components",)
    assert GaussianMixture(2, weights=[0.4, 0.6]).exchangeable_axes == ()
    assert GaussianMixture(2, covariances=[1.0, 2.0]).exchangeable_axes == ()


def test_curvature_bounds_the_observed_information() -> None:
    """Complete-data information less observed information is the missing information, which is positive."""
    model = GaussianMixture(2)
    dataset, theta = example(model, 2, num_datasets=1, rows=30, num_draws=1)
    hessian = torch.autograd.functional.hessian(
        lambda point: model.log_likelihood(point[None, None], dataset)[0, 0], theta[0, 0])
    missing = model.likelihood_precision(theta, dataset)[0] + hessian
    assert torch.linalg.eigvalsh(missing).min() > -1e-8


def test_predictions_are_rows() -> None:
    distribution = GaussianMixture(3).predict(torch.zeros(2, 5, 6), Dataset.of(torch.zeros(2, 4, 2)))
    assert distribution.batch_shape == (2, 5, 4)
    assert distribution.event_shape == (2,)


@pytest.mark.parametrize(("options", "message"), [
    ({"components": 1}, "components: got 1; takes 2 or more"),
    ({"components": 2.5}, "components: got"),
    ({"weights": [0.5, 0.6]}, "sum to one"),
    ({"weights": [0.0, 1.0]}, "2 positive numbers"),
    ({"weights": [0.2, 0.3, 0.5]}, "2 positive numbers"),
    ({"covariances": [1.0]}, "covariances"),
    ({"covariance": 1.0, "covariances": [1.0, 2.0]}, "and then no covariance"),
    ({"covariance": -1.0}, "covariance"),
])
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GaussianMixture(**options)


def test_too_many_columns() -> None:
    with pytest.raises(DataError, match="at most 2"):
        GaussianMixture(covariance=[1.0, 2.0]).check(Dataset.of(torch.zeros(3, 3)))
