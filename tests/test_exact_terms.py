"""Exact terms in estimators: the option, what is saved, and what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posteria.densities.exact_terms import ExactTermsTheta
from posteria.densities.gaussian import GaussianTheta
from posteria.estimator import Estimator, EstimatorInfo
from posteria.every_model import universal
from posteria.models import build_model
from posteria.parts import Part
from posteria.reference import run_baseline
from posteria.types import Dataset
from tests.problems import logistic, simulated

# Means of 2,000 effective draws on either side are this far apart by chance, in sds: four standard errors of both.
_CHANCE = 4 * (2 / 2000) ** 0.5


@pytest.fixture(scope="module")
def cone() -> Dataset:
    return simulated(logistic(0.1), 10, rows=60, batch=3)


def estimator(**options: bool) -> Estimator:
    return Estimator(logistic(0.1), "iterative", Part("full", options), EstimatorInfo(columns=(10, 10))).eval()


def test_the_option(cone: Dataset) -> None:
    plain = estimator()
    assert isinstance(plain.posterior(cone).distribution, GaussianTheta)
    for other in (plain.with_exact_terms(), estimator(exact_terms=True)):
        assert isinstance(other.posterior(cone).distribution, ExactTermsTheta)


def test_training_does_not_see_them(cone: Dataset) -> None:
    """Draws with exact terms carry no gradient: what is trained is the Gaussian."""
    trained = estimator(exact_terms=True)
    assert isinstance(trained.distribution(trained.prepare(cone)), GaussianTheta)


def test_saved_and_loaded(cone: Dataset, tmp_path: Path) -> None:
    own = estimator(exact_terms=True)
    own.save(tmp_path)
    loaded = Estimator.load(tmp_path)
    theta = own.posterior(cone).sample_theta(20, 0)
    torch.testing.assert_close(loaded.posterior(cone).distribution.log_prob(theta),
                               own.posterior(cone).distribution.log_prob(theta))


def test_the_second_rung_is_enough_and_agrees_with_chains(cone: Dataset) -> None:
    """Where a Gaussian has a handful of effective draws, and every dataset would need chains."""
    posterior = universal().posterior(logistic(0.1), cone)
    refined = posterior.refine(num_draws=8000, seed=1)
    assert set(refined.status) <= {"amortized", "reweighted"}
    run = run_baseline(posterior.model, cone, "hmc", num_chains=8, num_samples=1000, seed=2)
    assert run.converged.all()
    theta = refined.posterior.sample_theta(8000, 0)
    known = run.theta.flatten(1, 2)
    off = (theta.mean(1) - known.mean(1)).abs() / known.std(1)
    assert off.max() < _CHANCE
    assert (theta.std(1) / known.std(1) - 1).abs().max() < _CHANCE


def test_models_without_terms_are_as_before() -> None:
    model = build_model("generalized_linear", family="gamma")
    dataset = simulated(model, 2)
    assert not isinstance(universal().posterior(model, dataset).distribution, ExactTermsTheta)
