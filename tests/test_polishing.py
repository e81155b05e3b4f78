"""Polishing: optimization of an answer, dataset by dataset, against known evidence; and its place in an estimator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import StudentT

from posteria.bench.variational import bound_of
from posteria.densities.gaussian import GaussianTheta
from posteria.densities.mixed import MixedTheta
from posteria.densities.skewed import SkewedTheta
from posteria.errors import InputError, UnsupportedError
from posteria.estimator import Estimator, EstimatorInfo
from posteria.every_model import Universal
from posteria.mixing import mixed
from posteria.models import LinearRegression, build_model
from posteria.models.repriored import repriored
from posteria.parts import Part
from posteria.polishing import polished
from posteria.types import Dataset, ThetaDistribution
from tests.problems import simulated

STEPS = 400


def lines() -> tuple[LinearRegression, Dataset]:
    model = LinearRegression()
    return model, simulated(model, 2, rows=30, batch=3)


def wrong(model: LinearRegression, dataset: Dataset) -> GaussianTheta:
    """Means off by a standard deviation, twice as wide, without correlations."""
    exact = model.exact_posterior(dataset)
    return GaussianTheta(exact.mean.float() + exact.stddev.float(), 2.0 * exact.stddev.float(), model.active(dataset),
                         torch.eye(3).expand(3, -1, -1))


@pytest.mark.parametrize("skewed", [False, True])
def test_the_evidence_is_found_where_the_density_holds_the_posterior(skewed: bool) -> None:
    """From a start with wrong means, widths, correlations and skewness; the exact posterior's bound is the evidence."""
    model, dataset = lines()
    exact, gaussian = model.exact_posterior(dataset), wrong(model, dataset)
    start = SkewedTheta(gaussian, gaussian.scale, torch.full((3, 3), 0.2), torch.full((3, 3), 1.1)) if skewed else (
        gaussian)

    def log_joint(theta: Tensor) -> Tensor:
        return model.log_joint(theta, dataset)

    evidence = log_joint(exact.mean.float()[:, None])[:, 0] - exact.log_prob(exact.mean)
    found = bound_of(polished(start, model, dataset, STEPS), log_joint, 4000)
    assert (evidence - bound_of(start, log_joint)).min() > 0.5
    assert (evidence - found).abs().max() < 0.05  # nats: a thousandth per row


def test_a_dataset_s_answer_is_its_own() -> None:
    """Neither the datasets beside it nor padding change it, but for rounding that optimization carries on."""
    model, dataset = lines()
    start, index = wrong(model, dataset), torch.tensor([1])
    alone = GaussianTheta(start.mean[index], start.scale[index], start.active[index], start.factor[index])  # type: ignore[index]
    one = polished(alone, model, dataset[index].padded(40, 2), 50)
    beside = polished(start, model, dataset, 50)
    assert isinstance(one, SkewedTheta)
    assert isinstance(beside, SkewedTheta)
    torch.testing.assert_close(one.gaussian.mean, beside.gaussian.mean[index], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.tail, beside.tail[index], rtol=1e-3, atol=1e-3)


def network() -> Estimator:
    torch.manual_seed(0)
    return Estimator(build_model("linear_regression"), Part("iterative", {"shared": True, "lines": True}),
                     Part("skewed", {"whiten": True}), EstimatorInfo(columns=(1, 4096))).eval()


def test_networks_answers_are_polished_and_others_are_not() -> None:
    universal = Universal(network())
    assert universal.estimator(build_model("neural_regression", hidden=6)).polish == STEPS
    assert universal.estimator(build_model("neural_regression", hidden=6), polish=0).polish == 0
    assert universal.estimator(build_model("gaussian_mixture", components=3)).polish == 0
    assert universal.estimator(build_model("gaussian_mixture", components=3), polish=7).polish == 7
    assert universal.estimator(build_model("poisson_regression")).polish == 0
    # Exact posteriors have nothing to gain.
    exact = universal.posterior(build_model("linear_regression"), lines()[1], polish=5)
    assert isinstance(exact.distribution, GaussianTheta)


@pytest.mark.parametrize(("name", "options"), [
    ("neural_regression", {"hidden": 4, "noise": "inferred"}), ("gaussian_mixture", {"components": 2})])
def test_bounds_grow(name: str, options: dict[str, object]) -> None:
    model = build_model(name, **options)
    dataset = simulated(model, 2, rows=8, batch=4)
    universal = Universal(network())
    before, after = (bound_of(universal.posterior(model, dataset, polish=steps).distribution,
                              lambda theta: model.log_joint(theta, dataset)) for steps in (0, 150))
    assert (after - before).min() > -0.2  # nats: what 1,000 draws of each leave open
    assert (after - before).mean() > 0.1


def test_parts_of_a_mixture_share_a_posterior_that_one_cannot_hold() -> None:
    """Two searches that end in the same place: optimised together they part, and their bound is higher."""
    model = build_model("gaussian_mixture", components=2)
    dataset = simulated(model, 1, rows=6, batch=4)
    one = network().for_model(model).posterior(dataset).distribution

    def bound(distribution: ThetaDistribution) -> Tensor:
        return bound_of(distribution, lambda theta: model.log_joint(theta, dataset), 4_000)

    alone = polished(one, model, dataset, 300)
    twice = mixed([alone, alone], model, dataset)
    torch.testing.assert_close(twice.log_share.exp(), torch.full((4, 2), 0.5))
    both = polished(mixed([one, _shaken(one)], model, dataset), model, dataset, 300)
    assert isinstance(both, MixedTheta)
    torch.testing.assert_close(both.log_share.exp().sum(-1), torch.ones(4))
    # Nats; a bound by 4,000 draws has a standard error of about 0.02 here.
    assert (bound(both) - bound(alone)).min() > -0.1
    assert (bound(both) - bound(alone)).max() > 0.2


def _shaken(distribution: ThetaDistribution) -> ThetaDistribution:
    """The same, its mean a little off: where parts are exactly alike, nothing tells them where to go."""
    assert isinstance(distribution, SkewedTheta)
    gaussian = distribution.gaussian
    noise = torch.randn(gaussian.mean.shape[-1], generator=torch.Generator().manual_seed(0))
    return replace(distribution, gaussian=replace(gaussian, mean=gaussian.mean + 0.3 * distribution.sd * noise))


def test_heavy_tailed_priors_are_polished_in_both_units() -> None:
    model = repriored(build_model("poisson_regression"), {"weights": StudentT(3.0, 0.0, 1.0)})
    dataset = simulated(model, 3, rows=8, batch=2)
    posterior = Universal(network()).posterior(model, dataset, polish=20)
    assert posterior.distribution.log_prob(posterior.sample_theta(10)).isfinite().all()


def test_what_cannot_be_polished_says_so() -> None:
    made = Estimator(build_model("linear_regression"), "iterative", "flow", EstimatorInfo(columns=(2, 2))).eval()
    with pytest.raises(UnsupportedError, match="polish: got FlowTheta; takes a Gaussian or skewed density"):
        made.polished(3).posterior(lines()[1])
    with pytest.raises(InputError, match="polish: got -1; takes a number of steps"):
        made.polished(-1)


def test_polish_is_saved_with_an_estimator(tmp_path: Path) -> None:
    made = Estimator(build_model("linear_regression"), "iterative", "full", EstimatorInfo(columns=(2, 2))).polished(9)
    made.save(tmp_path)
    assert Estimator.load(tmp_path).polish == 9
