"""Climbing on the library's models: modes are reached, every step climbs, no dataset disturbs another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Distribution, Gamma, HalfCauchy, HalfNormal, Laplace, Normal, StudentT

from posteria.ascent import climb
from posteria.curvature import DenseCurvature
from posteria.models import Model, ModelLogJoint, build_model
from posteria.randomness import generator_for
from posteria.types import Dataset
from tests.problems import CONJUGATE, climbed, logistic, simulated

DENSE, CLIMBS = 256, 12


@pytest.mark.parametrize(("case", "dense"), [
    *[(case, DENSE) for case in CONJUGATE.values()],  # in the space of the parameters
    (CONJUGATE["regression"], 0), (CONJUGATE["little_noise"], 0),  # and of the rows, which the mean has no form for
], ids=str)
def test_two_steps_reach_the_mode_of_a_conjugate_model(case: tuple[str, dict[str, Any], int], dense: int) -> None:
    name, options, columns = case
    model = build_model(name, **options)
    dataset = simulated(model, columns)
    log_joint = ModelLogJoint(model, dataset)
    guess = climbed(log_joint, 2, dense=dense)
    exact = model.exact_posterior(dataset)
    error = (log_joint.theta(guess.z) - exact.mean) / exact.stddev
    assert error.abs().max() < 1e-2
    if dense:
        assert isinstance(guess.curvature, DenseCurvature)
        torch.testing.assert_close(guess.curvature.matrix.double(), exact.precision_matrix, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_climb_reaches_the_map_of_logistic_regression(temperature: float) -> None:
    model = logistic(temperature)
    log_joint = ModelLogJoint(model, simulated(model, 4, rows=60, batch=8))
    guess = climbed(log_joint)
    score = log_joint.score(guess.z[:, None])[1][:, 0]
    assert (score * guess.spread).abs().max() < 0.02  # in posterior standard deviations
    torch.testing.assert_close(score, guess.score)


@pytest.mark.parametrize(("name", "options"), [("linear_classification", {"classes": 3}), ("poisson_regression", {}),
                                               ("neural_regression", {"hidden": 4}), ("gaussian_mixture", {})])
@pytest.mark.parametrize("damping", [0.0, 100.0])
def test_every_step_climbs(name: str, options: dict[str, Any], damping: float) -> None:
    model = build_model(name, **options)
    log_joint = ModelLogJoint(model, simulated(model, 3))
    start = 0.5 * log_joint.fixed_noise(1, 7)[0].expand(log_joint.active.shape)
    path = [climb(log_joint, start, iterations, damping, DENSE).z for iterations in range(CLIMBS + 1)]
    density = torch.stack([log_joint.score(z[:, None])[0][:, 0] for z in path])
    gains = density.diff(dim=0)
    assert (gains >= -1e-5 * density[1:].abs()).all()
    assert (density[-1] > density[0]).all()


def test_converged_datasets_stay_put_while_others_climb() -> None:
    model = logistic(0.1)
    easy, hard = simulated(logistic(), 3, batch=2), simulated(model, 3, batch=3, seed=1)
    assert easy.y is not None
    assert hard.y is not None
    both = Dataset(*(torch.cat([getattr(easy, k), getattr(hard, k)]) for k in ("x", "y", "observed", "features")))
    together = climbed(ModelLogJoint(model, both))
    for i in range(len(both)):
        alone = climbed(ModelLogJoint(model, both[i:i + 1]))
        error = (together.z[i] - alone.z[0]) / alone.spread[0]
        assert error.abs().max() < 1e-3
        torch.testing.assert_close(together.curvature.diagonal()[i], alone.curvature.diagonal()[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("prior", [Laplace(0.5, 2.0), StudentT(4.0, 0.0, 1.0), Normal(0.5, 2.0)], ids=str)
def test_climb_reaches_the_mode_under_any_prior_of_the_weights(prior: Distribution) -> None:
    """Zero is where the search starts, in prior-whitened parameters, and where a Laplace prior has its kink."""
    model = build_model("linear_regression", priors={"weights": prior})
    _check_at_the_mode(model, simulated(model, 3, batch=16))


@pytest.mark.parametrize("prior", [HalfNormal(1.0), Gamma(2.0, 2.0), HalfCauchy(0.5)], ids=str)
def test_climb_reaches_the_mode_with_inferred_noise(prior: Distribution) -> None:
    """Also where the noise is a hundredth of what the prior expects."""
    model = build_model("linear_regression", noise="inferred", priors={"noise_scale": prior})
    _check_at_the_mode(model, simulated(model, 3, batch=128))


def _check_at_the_mode(model: Model, dataset: Dataset) -> None:
    """No point nearby is better by more than a few hundredths of a nat."""
    log_joint = ModelLogJoint(model, dataset)
    guess = climbed(log_joint)
    density = log_joint.score(guess.z[:, None])[0][:, 0]
    noise = torch.randn(len(dataset), 100, guess.z.shape[1], generator=generator_for(2))
    nearby = log_joint.score(guess.z[:, None] + 0.05 * guess.spread[:, None] * noise)[0].amax(1)
    settled = climbed(log_joint, 100).z
    best = log_joint.score(settled[:, None])[0][:, 0]
    assert (torch.maximum(nearby, best) - density).max() < 5e-2
