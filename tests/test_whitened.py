"""Estimators with the option ``whiten``, and the ladder, under priors that are not normal: against quadrature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributions

from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import Model, build_model
from posteria.models.whitened import prior_is_log_concave, whitened
from posteria.parts import Part, exact_distribution
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from posteria.trust import refine_draws
from posteria.types import Dataset
from tests.test_estimator import SMALL, make, outputs, regression_data, simulated

WHITENED = Part("full", {"whiten": True})
PRIORS = {"weights": {"family": "laplace", "loc": 0.0, "scale": 1.0},
          "intercept": {"family": "student_t", "df": 4.0, "loc": 0.5, "scale": 0.5}}


def line(**options: object) -> Model:
    return build_model("linear_regression", priors=PRIORS, **options)


def on_grid(model: Model, dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and sd (B, P) of both parameters of a line of one feature, and the log evidence (B,)."""
    axis = torch.linspace(-12.0, 12.0, 1201, dtype=torch.double)
    theta = torch.cartesian_prod(axis, axis)[None].expand(len(dataset), -1, -1)
    height = model.log_joint(theta, dataset.double())
    weight = height.softmax(-1)[..., None]
    mean = (weight * theta).sum(1)
    sd = (weight * (theta - mean[:, None]).square()).sum(1).sqrt()
    return mean, sd, height.logsumexp(-1) + 2 * (axis[1] - axis[0]).log()


@pytest.mark.parametrize("encoder", list(SMALL))
def test_density_is_that_of_its_draws(encoder: str) -> None:
    model = line()
    posterior = make(model, encoder, WHITENED).posterior(simulated(model, 2))
    theta, log_prob = posterior.distribution.rsample_and_log_prob(500, generator_for(0))
    torch.testing.assert_close(posterior.log_prob(theta), log_prob.detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 4])
def test_few_rows_leave_a_posterior_that_is_nearly_normal_in_u(rows: int) -> None:
    """With hardly any data the posterior is all but the prior, which a density of u has exactly."""
    model = line(noise=4.0)
    generator = generator_for(3)
    dataset = Dataset.of(torch.randn(3, rows, 1, generator=generator), torch.randn(3, rows, generator=generator))
    own = Estimator(model, "iterative", WHITENED, EstimatorInfo((1, 1))).posterior(dataset)
    plain = Estimator(model, "iterative", "full", EstimatorInfo((1, 1))).posterior(dataset)
    diagnosis = own.diagnose()
    assert (diagnosis.pareto_k < 0.7).all()
    assert (diagnosis.ess > plain.diagnose().ess).all()
    mean, sd, evidence = on_grid(model, dataset)
    assert ((diagnosis.log_evidence - evidence).abs() < 5 * diagnosis.log_evidence_error + 1e-3).all()
    draws = own.refine(num_draws=20_000).posterior.sample_theta(20_000, seed=0).double()
    assert ((draws.mean(1) - mean).abs() < 0.1 * sd).all()
    assert ((draws.std(1) / sd).log().abs() < 0.1).all()


def test_ladder_weighs_draws_from_elsewhere_in_theta() -> None:
    """Its own parameters are u: a user's draws and densities are of theta."""
    model = line()
    dataset = regression_data(rows=3)
    assert whitened(model) is not model
    theta = distributions.StudentT(4.0).sample(torch.Size((2, 2000, 3)))
    log_prob = distributions.StudentT(4.0).log_prob(theta).sum(-1)
    refined = refine_draws(model, dataset, theta, log_prob)
    direct = (model.log_joint(theta, dataset) - log_prob).double()
    evidence = direct.logsumexp(-1) - torch.tensor(2000.0).log()
    torch.testing.assert_close(refined.diagnosis.log_evidence, evidence, rtol=0, atol=1e-3)


def test_padding_changes_nothing() -> None:
    model = line()
    made = make(model, "iterative", WHITENED)
    dataset = simulated(model, 2)
    padded = dataset.padded(dataset.x.shape[1] + 3, 2)
    for one, other in zip(outputs(made, dataset), outputs(made, padded), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = line()
    made = make(model, "iterative", WHITENED)
    made.save(tmp_path / "one")
    dataset = simulated(model, 2)
    for one, other in zip(outputs(made, dataset), outputs(Estimator.load(tmp_path / "one"), dataset), strict=True):
        torch.testing.assert_close(one, other)


def test_collapse_and_whiten_together() -> None:
    """The noise's prior is half-normal: one parameter is left, in units in which it is normal."""
    model, dataset = build_model("linear_regression", noise="inferred"), regression_data(rows=6)
    both = Part("full", {"collapse": True, "whiten": True})
    posterior = Estimator(model, "iterative", both, EstimatorInfo((2, 2))).posterior(dataset)
    theta, log_prob = posterior.distribution.rsample_and_log_prob(300, generator_for(0))
    torch.testing.assert_close(posterior.log_prob(theta), log_prob, rtol=1e-4, atol=1e-3)
    refined = posterior.refine(num_draws=20_000)
    assert "failed" not in refined.status
    exact = Posterior(model, dataset, exact_distribution(model, dataset)).sample_theta(20_000, seed=1)
    draws = refined.posterior.sample_theta(20_000, seed=1)
    assert ((draws.mean(1) - exact.mean(1)).abs() < 0.1 * exact.std(1)).all()
    assert ((draws.std(1) / exact.std(1)).log().abs() < 0.1).all()


def test_modes_are_those_of_theta() -> None:
    """A mode depends on the parameters it is looked for in: users mean theta."""
    model, dataset = line(), regression_data(rows=5)
    point = Estimator(model, "iterative", WHITENED, EstimatorInfo((2, 2))).posterior(dataset).refine("map")
    theta = point.posterior.sample_theta(1)
    height = model.log_joint(theta.double(), dataset.double())
    nearby = theta + 0.03 * torch.randn(2, 200, 3, generator=generator_for(0))
    assert (model.log_joint(nearby.double(), dataset.double()) <= height + 1e-3).all()


@pytest.mark.parametrize(("prior", "concave"), [
    (distributions.Normal(0.0, 1.0), True), (distributions.Laplace(1.0, 2.0), True),
    (distributions.Gumbel(0.0, 1.0), True), (distributions.StudentT(3.0, 0.0, 1.0), False),
    (distributions.StudentT(10.0, 2.0, 0.1), False), (distributions.Cauchy(0.0, 2.0), False)])
def test_heavy_tails_are_known(prior: distributions.Distribution, concave: bool) -> None:
    assert prior_is_log_concave(build_model("poisson_regression", priors={"weights": prior})) == concave


@pytest.mark.parametrize("prior", [
    distributions.HalfNormal(1.0), distributions.HalfCauchy(1.0), distributions.Gamma(2.0, 1.0),
    distributions.LogNormal(0.0, 1.0), distributions.InverseGamma(2.0, 1.0)])
def test_scales_are_log_concave_in_their_logarithms(prior: distributions.Distribution) -> None:
    assert prior_is_log_concave(build_model("linear_regression", noise="inferred", priors={"noise_scale": prior}))
