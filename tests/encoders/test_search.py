"""The search of the iterative encoder on the library's models: averages, hostile data, invariances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Dirichlet,
    Distribution,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Laplace,
    LogNormal,
    StudentT,
    constraints,
)

from posteria import widening
from posteria.ascent import Guess
from posteria.curvature import DenseCurvature
from posteria.errors import InputError, UnsupportedError
from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import Model, ModelLogJoint, Parameter, build_model
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.types import Dataset
from posteria.widening import widen
from tests.problems import CONJUGATE, climbed, logistic, simulated

DENSE, WIDENINGS = 256, 8


def widened(log_joint: ModelLogJoint, guess: Guess, times: int = WIDENINGS, correlated: bool = True,
            dense: int = DENSE) -> Guess:
    for depth in range(times):
        guess = widen(log_joint, guess, depth, 8, correlated, 0.0, dense)
    return guess


@pytest.mark.parametrize("correlated", [True, False])
def test_whole_steps_near_the_end_lead_to_the_same_place_in_fewer_looks(correlated: bool,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("generalized_linear", family="poisson")
    dataset = SimulatedTask(model, (20, 40), (3, 3)).draw(16, generator_for(4))[0]
    log_joint = ModelLogJoint(model, dataset)
    mode = climbed(log_joint)
    monkeypatch.setattr(widening, "_SETTLED", 1e-9)
    far = widening.widened(log_joint, mode, 60, 8, correlated, 0.0, DENSE)[-1]
    whole = widening.widened(log_joint, mode, 12, 8, correlated, 0.0, DENSE)[-1]
    monkeypatch.setattr(widening, "_NEAR", 0.0)
    damped = widening.widened(log_joint, mode, 12, 8, correlated, 0.0, DENSE)[-1]
    left, otherwise = (((guess.z - far.z) / far.spread).abs().amax() for guess in (whole, damped))
    assert left < 1e-3
    assert left < 0.1 * otherwise


# -- looks at what has settled -----------------------------------------------------------------------
@pytest.mark.parametrize("correlated", [True, False])
def test_datasets_that_have_settled_are_not_looked_at_again(correlated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("generalized_linear", family="gamma")
    dataset = SimulatedTask(model, (6, 12), (1, 3)).draw(12, generator_for(3))[0]
    log_joint = ModelLogJoint(model, dataset)
    mode, batches = climbed(log_joint), []

    def counted(part: ModelLogJoint, *rest: Any) -> Guess:
        batches.append(len(part.dataset))
        return widen(part, *rest)

    monkeypatch.setattr(widening, "widen", counted)
    ours = widening.widened(log_joint, mode, 40, 8, correlated, 0.0, DENSE)
    assert len(ours) == 41
    assert batches[0] == 12 > batches[-1]
    assert batches == sorted(batches, reverse=True)
    every = widened(log_joint, mode, 40, correlated)
    assert ((ours[-1].z - every.z) / every.spread).abs().max() < 0.02
    torch.testing.assert_close(ours[-1].spread, every.spread, rtol=0.02, atol=0.0)
    for i in (0, 5, 11):
        alone = widening.widened(log_joint[torch.tensor([i])], mode[torch.tensor([i])], 40, 8, correlated, 0.0, DENSE)
        torch.testing.assert_close(alone[-1].z[0], ours[-1].z[i], rtol=1e-4, atol=1e-4)


# -- hostile data --------------------------------------------------------------------------------
def _hostile(kind: str, classes: bool) -> Dataset:
    generator = generator_for(11)
    x = torch.randn(2, 30, 4, generator=generator)
    noise = torch.randn(2, 30, generator=generator)
    y = x[..., 0] + 0.5 * noise
    if kind == "large":
        x = 1e3 * x
    if kind == "separable":
        y = 100.0 * x[..., 0]
    if kind == "one_row":
        x, y = x[:, :1], y[:, :1]
    if kind == "few_rows":
        x, y = torch.randn(2, 3, 40, generator=generator), y[:, :3]
    if kind == "collinear":
        x = x[..., :1].expand(-1, -1, 4).clone()
    if kind == "constant":
        x, y = torch.zeros_like(x), torch.ones_like(y)
    if kind == "tiny":
        x = 1e-6 * x
    return Dataset.of(x, (y > 0).float() if classes else y)


@pytest.mark.parametrize("kind", ["large", "separable", "one_row", "few_rows", "collinear", "constant", "tiny"])
@pytest.mark.parametrize(("name", "options"), [
    ("linear_regression", {}), ("linear_regression", {"noise": "inferred"}),
    ("linear_classification", {"temperature": 0.1}),
    ("linear_classification", {"temperature": 1.0, "reference": True}), ("neural_regression", {"hidden": 4}),
], ids=str)
@pytest.mark.parametrize("dense", [DENSE, 0])
@pytest.mark.parametrize("correlated", [True, False])
def test_hostile_data_stay_finite(kind: str, name: str, options: dict[str, Any], dense: int, correlated: bool) -> None:
    model = build_model(name, **options)
    log_joint = ModelLogJoint(model, _hostile(kind, name == "linear_classification"))
    guess = climbed(log_joint, dense=dense)
    before, after = (log_joint.score(z[:, None])[0] for z in (torch.zeros_like(guess.z), guess.z))
    assert (after >= before - 1e-5 * before.abs()).all()
    for found in (guess, widened(log_joint, guess, 3, correlated, dense)):
        factor = found.curvature.factor()
        numbers = [found.z, found.score, found.wobble, found.step, found.moved, found.curvature.diagonal().log()]
        for values in numbers if factor is None else [*numbers, factor]:
            assert torch.isfinite(values).all()


# -- widen ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CONJUGATE.values(), ids=CONJUGATE)
@pytest.mark.parametrize("correlated", [True, False])
def test_widening_a_quadratic_changes_nothing(case: tuple[str, dict[str, Any], int], correlated: bool) -> None:
    model = build_model(case[0], **case[1])
    log_joint = ModelLogJoint(model, simulated(model, case[2]))
    start = climbed(log_joint)
    end = widened(log_joint, start, correlated=correlated)
    assert ((end.z - start.z) / start.spread).abs().max() < 1e-2
    torch.testing.assert_close(end.curvature.diagonal(), start.curvature.diagonal(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("columns", [1, 4])
def test_the_widened_gaussian_beats_laplace(columns: int) -> None:
    model = logistic(0.1)
    log_joint = ModelLogJoint(model, simulated(model, columns, rows=30, batch=16))
    laplace = climbed(log_joint)
    wide = widened(log_joint, laplace)
    gain = _elbo_terms(log_joint, wide) - _elbo_terms(log_joint, laplace)
    error = gain.std(-1) / gain.shape[-1] ** 0.5
    assert (gain.mean(-1) >= -5 * error - 1e-3).all()
    assert gain.mean() > 0.01


def _elbo_terms(log_joint: ModelLogJoint, guess: Guess, draws: int = 4000) -> Tensor:
    """(B, S) log joint + entropy at draws with common noise."""
    factor = guess.curvature.factor()
    assert factor is not None
    half = torch.randn(draws // 2, factor.shape[-1], generator=generator_for(21))
    noise = torch.cat([half, -half]).expand(len(factor), -1, -1)
    z = guess.z[:, None] + torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
    entropy = -factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return log_joint.score(z)[0] + entropy[:, None]


def test_mean_field_widening_finds_the_best_diagonal_gaussian() -> None:
    """Of a Gaussian posterior, that is its mean and its conditional variances (Bishop 2006, section 10.1.2)."""
    model = build_model("linear_regression")
    dataset = simulated(model, 4, rows=8)
    log_joint = ModelLogJoint(model, dataset)
    guess = widened(log_joint, climbed(log_joint, 1), correlated=False)
    exact = model.exact_posterior(dataset)
    assert ((log_joint.theta(guess.z) - exact.mean) / exact.stddev).abs().max() < 1e-2
    expected = exact.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt().float()
    torch.testing.assert_close(guess.spread * log_joint.scale, expected, rtol=1e-3, atol=0)


# -- exact averages ------------------------------------------------------------------------------
AVERAGED: dict[str, tuple[str, dict[str, Any]]] = {
    "noise": ("linear_regression", {"noise": "inferred", "priors": {"noise_scale": LogNormal(-0.5, 0.5)}}),
    "binary": ("linear_classification", {"temperature": 0.5, "reference": True}),
    "both_logits": ("linear_classification", {"temperature": 1.0}),
    "three_classes": ("linear_classification", {"classes": 3, "temperature": 1.0}),
}


@pytest.mark.parametrize("case", AVERAGED.values(), ids=AVERAGED)
@pytest.mark.parametrize("correlated", [True, False])
def test_expectation_is_the_average_over_draws(case: tuple[str, dict[str, Any]], correlated: bool) -> None:
    """Of score and curvature, in standard errors, and within the error of the nodes (3% of their size)."""
    model = build_model(case[0], **case[1])
    dataset = simulated(model, 2, rows=12, batch=2, seed=4)
    log_joint = ModelLogJoint(model, dataset)
    z, spread, factor = _some_gaussian(log_joint, correlated)
    made = log_joint.expectation(z, spread, factor, DENSE)
    assert made is not None
    score, curvature = made
    assert isinstance(curvature, DenseCurvature)
    points = z[:, None] + _draws(spread, factor, 2000)
    scores = log_joint.score(points)[1]
    _check_mean(scores, score, 0.03 * scores.abs().mean(1))
    each = torch.stack([_matrix(log_joint, point) for point in points[:, :500].unbind(1)], 1)
    size = curvature.diagonal().sqrt()
    _check_mean(each, curvature.matrix, 0.03 * size[:, :, None] * size[:, None])


def _some_gaussian(log_joint: ModelLogJoint, correlated: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """A guess of about posterior width; the noise scale, averaged apart from the outputs, is not correlated."""
    guess = climbed(log_joint)
    if not correlated:
        return guess.z, guess.spread, None
    assert isinstance(guess.curvature, DenseCurvature)
    same = log_joint.roles != log_joint.roles.max()
    blocks = (same[:, None] == same) if log_joint.model.name == "linear_regression" else torch.ones(()).bool()
    return guess.z, guess.spread, torch.linalg.cholesky(guess.curvature.matrix * blocks)


def _draws(spread: Tensor, factor: Tensor | None, num: int) -> Tensor:
    noise = torch.randn(len(spread), num, spread.shape[1], generator=generator_for(31))
    if factor is None:
        return noise * spread[:, None]
    return torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT


def _matrix(log_joint: ModelLogJoint, z: Tensor) -> Tensor:
    curvature = log_joint.curvature(z[:, None], DENSE)
    assert isinstance(curvature, DenseCurvature)
    return curvature.matrix


def _check_mean(samples: Tensor, expected: Tensor, nodes: Tensor) -> None:
    error = samples.std(1) / samples.shape[1] ** 0.5
    difference = (samples.mean(1) - expected).abs()
    assert (difference <= 5 * error + nodes + 1e-4).all(), float((difference / (error + nodes + 1e-4)).max())


def test_expectation_at_no_width_is_the_value_at_the_centre() -> None:
    model = build_model("linear_classification", classes=3, temperature=1.0)
    log_joint = ModelLogJoint(model, simulated(model, 2))
    z = 0.3 * log_joint.fixed_noise(1, 0)[0].expand(log_joint.active.shape)
    made = log_joint.expectation(z, torch.full_like(z, 1e-6), None, DENSE)
    assert made is not None
    torch.testing.assert_close(made[0], log_joint.score(z[:, None])[1][:, 0], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(made[1].diagonal(), log_joint.geometry(z[:, None]).curvature[:, 0], rtol=1e-3, atol=1e-3)


# -- orders --------------------------------------------------------------------------------------
ORDERED: dict[str, tuple[str, dict[str, Any]]] = {
    "regression": ("linear_regression", {"noise": "inferred"}),
    "logistic": ("linear_classification", {"temperature": 0.5, "reference": True}),
    "poisson": ("poisson_regression", {}),
}


def _found(model: Model, dataset: Dataset) -> tuple[Tensor, Tensor]:
    log_joint = ModelLogJoint(model, dataset)
    guess = widened(log_joint, climbed(log_joint), 4)
    return guess.z, guess.spread


@pytest.mark.parametrize("case", ORDERED.values(), ids=ORDERED)
def test_the_order_of_rows_does_not_matter(case: tuple[str, dict[str, Any]]) -> None:
    model = build_model(case[0], **case[1])
    dataset = simulated(model, 4)
    assert dataset.y is not None
    order = torch.randperm(dataset.x.shape[1], generator=generator_for(0))
    shuffled = replace(dataset, x=dataset.x[:, order], y=dataset.y[:, order])
    (z, spread), (z_other, spread_other) = _found(model, dataset), _found(model, shuffled)
    assert ((z - z_other) / spread).abs().max() < 2e-3
    torch.testing.assert_close(spread_other, spread, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("name", "allowed"), [("regression", 2e-3), ("logistic", 2e-3), ("poisson", 0.15)])
def test_the_order_of_features_matters_only_through_the_draws(name: str, allowed: float) -> None:
    """Exactly not where averages are exact; else by a fraction of a posterior standard deviation."""
    model = build_model(ORDERED[name][0], **ORDERED[name][1])
    dataset, extra = simulated(model, 4), len(model.extra_columns)
    order = torch.randperm(4 - extra, generator=generator_for(1))
    columns = torch.cat([torch.arange(extra), extra + order])
    turned = replace(dataset, x=dataset.x[..., columns])
    (z, spread), (z_other, _) = _found(model, dataset), _found(model, turned)
    block = model.layout(4)["weights"]
    places = torch.arange(z.shape[1])
    places[block.span] = block.start + order
    assert ((z[:, places] - z_other) / spread[:, places]).abs().max() < allowed


# -- priors that are not normal ------------------------------------------------------------------
PRIORS: dict[str, tuple[tuple[int, ...], Distribution, constraints.Constraint]] = {
    "half_normal": ((3,), HalfNormal(1.5), constraints.positive),
    "gamma": ((3,), Gamma(2.0, 3.0), constraints.positive),
    "half_cauchy": ((3,), HalfCauchy(2.0), constraints.positive),
    "inverse_gamma": ((3,), InverseGamma(3.0, 2.0), constraints.positive),
    "beta": ((3,), Beta(2.0, 3.0), constraints.unit_interval),
    "laplace": ((3,), Laplace(0.5, 2.0), constraints.real),
    "student_t": ((3,), StudentT(4.0, 0.0, 1.0), constraints.real),
    "dirichlet": ((2, 4), Dirichlet(torch.tensor([2.0, 3.0, 1.0, 2.0])), constraints.simplex),
}


class _PriorOnly(Model):
    """A likelihood that says nothing: the log joint is the prior."""

    name = "prior_only"

    def row_log_prob(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return 0.0 * theta.sum(-1, keepdim=True).expand(*theta.shape[:2], dataset.x.shape[1])

    def simulate(self, theta: Tensor, inputs: Dataset, generator: torch.Generator | None = None) -> Dataset:
        return inputs

    def predict(self, theta: Tensor, dataset: Dataset) -> Distribution:
        raise NotImplementedError


@pytest.mark.parametrize("name", PRIORS)
def test_differences_of_the_prior_agree_with_differentiation(name: str) -> None:
    shape, prior, support = PRIORS[name]
    model = _PriorOnly((Parameter("plain", (2,)), Parameter("other", shape, support, prior)))
    log_joint = ModelLogJoint(model, Dataset.of(torch.zeros(2, 1, 1), torch.zeros(2, 1)))
    z = torch.randn(2, 7, log_joint.layout.size, generator=generator_for(0))
    counted = (~log_joint.layout.normal).expand_as(z)
    density, score, curvature = log_joint._other_prior(z, counted)

    point = z.double().requires_grad_()
    theta = log_joint.location.double() + log_joint.scale.double() * point
    terms = torch.where(counted, log_joint.layout.log_prior_terms(theta), 0.0)
    (slope,) = torch.autograd.grad(terms.sum(), point, create_graph=True)
    bend = torch.zeros_like(slope)
    if name != "laplace":  # linear on both sides: a curvature of zero, which autograd does not connect
        bend = torch.stack([torch.autograd.grad(s.sum(), point, retain_graph=True)[0][..., i]
                            for i, s in enumerate(slope.unbind(-1))], -1)
    torch.testing.assert_close(density, terms.detach().sum(-1).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score, slope.detach().float(), rtol=1e-4, atol=1e-4)
    expected = torch.where(counted, -bend, 0.0).clamp(min=0.05).float()
    torch.testing.assert_close(torch.where(counted, curvature, 0.05), expected, rtol=1e-3, atol=1e-3)


def test_looking_longer_shares_weights_and_changes_the_search_alone() -> None:
    """Untrained on a network's posterior, whose guess goes on moving with more looks."""
    torch.manual_seed(0)
    model = build_model("neural_regression", hidden=4)
    short = Estimator(model, "iterative", "low_rank", EstimatorInfo((1, 2))).eval()
    long = short.looking(widenings=24, candidates=16)
    assert long.encoder.layers is short.encoder.layers
    assert (short.encoder.widenings, long.encoder.widenings, long.encoder.climbs) == (8, 24, short.encoder.climbs)
    dataset = simulated(model, 1, rows=40, batch=4)
    bounds = []
    for estimator in (short, long):
        with torch.no_grad():
            theta, log_q = estimator.distribution(dataset).rsample_and_log_prob(500, generator_for(0))
            bounds.append(float((model.log_joint(theta, dataset) - log_q).mean()))
    assert bounds[1] > bounds[0]
    with pytest.raises(InputError, match="candidates: got 3"):
        short.looking(candidates=3)
    with pytest.raises(UnsupportedError, match="does not search"):
        Estimator(model, "deepsets", "gaussian", EstimatorInfo((2, 2))).looking(climbs=3)
