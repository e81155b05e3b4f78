"""The shipped estimators on what real tables bring: outliers, collinear columns, separated classes, extreme sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import posteria
from posteria import Dataset, shipped
from posteria.randomness import generator_for

NAMES = ["linear_classification", "linear_regression"]
NETWORKS = ["neural_classification", "neural_regression"]
MOST_BYTES = 10_000_000
# Nats of KL(q || posterior), estimated from below by importance weighting.
CLOSE = 1.5


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator_for(3))


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0, correction=0)


def _outlier(rows: int) -> Tensor:
    x = _normal(rows, 5)
    x[0, 0] = 1e6
    return _standardised(x)


INPUTS = {
    "fewest rows, one feature": _normal(8, 1),
    "fewest rows, most features": _normal(8, 100),
    "most rows, most features": _normal(2000, 100),
    "every column twice": _normal(200, 4).repeat(1, 2),
    "fifty equal columns": _normal(200, 1).repeat(1, 50),
    "a value 38 sd out": _outlier(1500),
    "constant column": torch.cat([_normal(60, 2), torch.zeros(60, 1)], 1),
}


def _gap(estimator: posteria.Estimator, dataset: Dataset, num: int = 500) -> float:
    with torch.no_grad():
        theta, log_q = estimator.distribution(dataset).rsample_and_log_prob(num, generator_for(1))
        ratio = (estimator.model.log_joint(theta, dataset) - log_q)[0].double()
    return (ratio.logsumexp(0) - math.log(num) - ratio.mean()).item()


def test_all_are_shipped() -> None:
    assert {*NAMES, *NETWORKS} <= {*shipped.shipped_names()}


@pytest.mark.parametrize("name", [*NAMES, *NETWORKS])
def test_they_are_small_and_have_a_card(name: str) -> None:
    folder = Path(shipped.__file__).parent / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    assert name in (folder / "card.md").read_text()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inputs", INPUTS)
def test_posteriors_are_close_on_awkward_inputs(name: str, inputs: str) -> None:
    estimator, x = posteria.load(name), INPUTS[inputs]
    signal = x.sum(1) / x.shape[1] ** 0.5 + 0.5 * torch.randn(len(x), generator=generator_for(4))
    y = _standardised(signal) if name == "linear_regression" else (signal > 0).to(x.dtype)
    dataset = Dataset.of(x, y)
    assert torch.isfinite(estimator.posterior(dataset).sample_theta(200, seed=0)).all()
    assert _gap(estimator, dataset) < CLOSE


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("inputs", ["fewest rows, one feature", "every column twice", "a value 38 sd out",
                                    "constant column"])
def test_networks_predict_finite_numbers_on_awkward_inputs(name: str, inputs: str) -> None:
    """Better than the prior's predictions, too: the bound of what the data say is above that of the prior."""
    estimator, x = posteria.load(name), INPUTS[inputs]
    signal = x.sum(1) / x.shape[1] ** 0.5 + 0.5 * torch.randn(len(x), generator=generator_for(4))
    y = _standardised(signal) if name == "neural_regression" else (signal > 0).to(x.dtype)
    dataset = Dataset.of(x, y)
    with torch.no_grad():
        theta, log_q = estimator.distribution(dataset).rsample_and_log_prob(200, generator_for(1))
        bound = (estimator.model.log_joint(theta, dataset) - log_q).mean()
        prior = estimator.model.sample_prior(dataset, 200, generator_for(2))
        assert bound > estimator.model.log_likelihood(prior, dataset).mean()
    assert torch.isfinite(theta).all()


@pytest.mark.parametrize("y", [(_normal(200, 5)[:, 0] > 0).float(), torch.ones(200), torch.zeros(200)],
                         ids=["separated", "all one", "all zero"])
def test_separated_classes_have_a_finite_posterior(y: Tensor) -> None:
    estimator, dataset = posteria.load("linear_classification"), Dataset.of(_normal(200, 5), y)
    draws = estimator.posterior(dataset).sample_theta(500, seed=0)
    assert draws.abs().max() < 40
    assert _gap(estimator, dataset) < CLOSE
