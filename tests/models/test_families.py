"""Observation families: densities against scipy, informations against simulation, far outputs, refused data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from posteria.errors import DataError, InputError
from posteria.models import FAMILIES, build_model
from posteria.models.families import build_head
from posteria.models.heads import CategoricalHead, Head, precision_secant
from posteria.models.laws import BetaBinomial, CensoredExponential
from posteria.models.links import bounded_log, bounded_log_slope, mills
from posteria.randomness import generator_for, seeded
from posteria.types import Dataset

STANDARD_ERRORS = 5.0
# Families with exact Fisher information in the output, and in the head's own parameter.
EXACT = ("gaussian", "student_t", "bernoulli", "probit", "poisson", "negative_binomial", "gamma", "survival")
OWN = ("gaussian", "student_t", "negative_binomial", "gamma")
SCIPY: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "gaussian": lambda y, f, own: stats.norm.logpdf(y, f, own),
    "student_t": lambda y, f, own: stats.t.logpdf(y, 4, f, own),
    "bernoulli": lambda y, f, own: stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-f))),
    "probit": lambda y, f, own: stats.bernoulli.logpmf(y, stats.norm.cdf(f)),
    "poisson": lambda y, f, own: stats.poisson.logpmf(y, np.exp(f)),
    "negative_binomial": lambda y, f, own: stats.nbinom.logpmf(y, own, own / (own + np.exp(f))),
    "gamma": lambda y, f, own: stats.gamma.logpdf(y, own, scale=np.exp(f) / own),
    "beta_binomial": lambda y, f, own: stats.betabinom.logpmf(y, 6, own / (1 + np.exp(-f)), own / (1 + np.exp(f))),
}


def extra_of(head: Head, shape: tuple[int, int, int], own: float, column: float) -> dict[str, Tensor]:
    """The head's own parameters (B, S) at one value, its columns (B, 1, N) at another."""
    batch, draws, rows = shape
    values = {p.name: torch.full((batch, draws), own, dtype=torch.float64) for p in head.parameters}
    return values | {c.name: torch.full((batch, 1, rows), column, dtype=torch.float64) for c in head.columns}


def drawn(head: Head, outputs: Tensor, extra: dict[str, Tensor], seed: int = 0) -> Tensor:
    """(B, 1, N) observations at one draw of the outputs."""
    with seeded(generator_for(seed)):
        return head.distribution(outputs, extra).sample().to(outputs.dtype)


def own_curvature(head: Head, outputs: Tensor, y: Tensor, observed: Tensor, extra: dict[str, Tensor]) -> Tensor:
    return head.own_curvature(outputs, y, observed, extra, head.own_score(outputs, y, observed, extra),
                              head.own_information(outputs, observed, extra))


def spread_outputs(rows: int) -> Tensor:
    return torch.linspace(-2.0, 2.0, rows, dtype=torch.float64)[None, None, :, None]


@pytest.mark.parametrize("family", SCIPY)
def test_densities_are_those_of_scipy(family: str) -> None:
    head, outputs = build_head(family), spread_outputs(50)
    extra = extra_of(head, (1, 1, 50), own=1.7, column=6.0)
    y = drawn(head, outputs, extra)
    expected = SCIPY[family](y[0, 0].numpy(), outputs[0, 0, :, 0].numpy(), 1.7)
    torch.testing.assert_close(head.log_prob(outputs, y, extra)[0, 0], torch.from_numpy(expected))


def test_every_family_is_entered() -> None:
    assert set(SCIPY) | {"categorical", "survival"} == set(FAMILIES)


def test_censored_times_have_the_survival_function() -> None:
    head, outputs = build_head("survival"), spread_outputs(4)
    rate, censoring = outputs[0, 0, :, 0].exp(), torch.tensor([[[1.0, 2.0, 0.5, 3.0]]], dtype=torch.float64)
    law = stats.expon(scale=1 / rate.numpy())
    extra = {"censoring": censoring}
    torch.testing.assert_close(head.log_prob(outputs, censoring, extra)[0, 0],
                               torch.from_numpy(law.logsf(censoring[0, 0].numpy())))
    early = 0.5 * censoring
    torch.testing.assert_close(head.log_prob(outputs, early, extra)[0, 0],
                               torch.from_numpy(law.logpdf(early[0, 0].numpy())))  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", [*SCIPY, "survival"])
@pytest.mark.parametrize("own", [0.4, 3.0])
def test_scores_are_gradients(family: str, own: float) -> None:
    head, outputs = build_head(family), spread_outputs(40).requires_grad_()
    extra = extra_of(head, (1, 1, 40), own, column=4.0)
    y = drawn(head, outputs.detach(), extra)
    free = {p.name: extra[p.name].log().requires_grad_() for p in head.parameters}
    log_prob = head.log_prob(outputs, y, extra | {name: value.exp() for name, value in free.items()}).sum()
    gradients = torch.autograd.grad(log_prob, [outputs, *free.values()])
    torch.testing.assert_close(head.score(outputs.detach(), y, extra), gradients[0])
    observed = torch.ones(1, 40, dtype=torch.bool)
    own_score = head.own_score(outputs.detach(), y, observed, extra)
    assert own_score.shape == (1, 1, len(head.parameters))
    for i, gradient in enumerate(gradients[1:]):
        torch.testing.assert_close(own_score[..., i], gradient)


@pytest.mark.parametrize("family", [*SCIPY, "survival", "categorical"])
@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_scores_and_informations_together_are_those_alone(family: str, spread: float) -> None:
    head = build_head(family)
    outputs = (spread * spread_outputs(20)).expand(-1, -1, -1, head.num_outputs)
    extra = extra_of(head, (1, 1, 20), own=0.7, column=4.0)
    y = drawn(head, 0.1 * outputs, extra)
    score, information = head.score_and_information(outputs, y, extra)
    root = head.root(outputs, extra)
    torch.testing.assert_close(score, head.score(outputs, y, extra))
    torch.testing.assert_close(information, root @ root.mT)


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("output", [-1.5, 0.3, 2.0])
def test_informations_are_variances_of_scores(family: str, output: float) -> None:
    head, rows = build_head(family), 40_000
    outputs = torch.full((1, 1, rows, 1), output, dtype=torch.float64)
    extra = extra_of(head, (1, 1, rows), own=0.8, column=1.5)
    score = head.score(outputs, drawn(head, outputs, extra), extra)[0, 0, :, 0]
    _check_mean(score, 0.0)
    _check_mean(score.square(), float(head.root(outputs, extra)[0, 0, 0].square().sum()))


@pytest.mark.parametrize("family", OWN)
@pytest.mark.parametrize(("output", "own"), [(-0.5, 0.5), (1.0, 2.0), (2.5, 6.0), (1.0, 30.0)])
def test_own_informations_are_variances_of_own_scores(family: str, output: float, own: float) -> None:
    head, datasets = build_head(family), 40_000
    outputs = torch.full((datasets, 1, 1, 1), output, dtype=torch.float64)
    extra, observed = extra_of(head, (datasets, 1, 1), own, column=1.0), torch.ones(datasets, 1, dtype=torch.bool)
    score = head.own_score(outputs, drawn(head, outputs, extra), observed, extra)[:, 0, 0]
    _check_mean(score, 0.0)
    _check_mean(score.square(), float(head.own_information(outputs, observed, extra)[0, 0, 0]), relative=0.02)


def _check_mean(values: Tensor, expected: float, relative: float = 0.0) -> None:
    allowed = STANDARD_ERRORS * float(values.std()) / len(values) ** 0.5 + relative * expected + 1e-12
    assert abs(float(values.mean()) - expected) < allowed


@pytest.mark.parametrize("output", [-1.0, 1.5])
def test_the_quasi_information_of_a_beta_binomial_is_a_lower_bound_and_near(output: float) -> None:
    head, y = build_head("beta_binomial"), torch.arange(9.0, dtype=torch.float64)[None, None]
    outputs = torch.full((1, 1, 9, 1), output, dtype=torch.float64)
    for own, share in ((2.0, 0.6), (500.0, 0.99)):
        extra = extra_of(head, (1, 1, 9), own, column=8.0)
        probs = head.log_prob(outputs, y, extra).exp()
        fisher = float((probs * head.score(outputs, y, extra)[..., 0] ** 2).sum())
        quasi = float(head.root(outputs, extra)[0, 0, 0].square().sum())
        assert float(probs.sum()) == pytest.approx(1.0)
        assert share * fisher < quasi <= fisher


def test_the_own_curvature_of_a_beta_binomial_is_its_second_derivative() -> None:
    head, outputs = build_head("beta_binomial"), spread_outputs(200)
    extra, observed = extra_of(head, (1, 1, 200), 2.0, column=8.0), torch.ones(1, 200, dtype=torch.bool)
    y = drawn(head, outputs, extra)

    def score(free: Tensor) -> Tensor:
        return head.own_score(outputs, y, observed, extra | {"concentration": free.exp().view(1, 1)})[0, 0, 0]

    second = torch.autograd.functional.jacobian(score, torch.tensor(2.0, dtype=torch.float64).log())
    torch.testing.assert_close(own_curvature(head, outputs, y, observed, extra)[0, 0, 0], -second)


@pytest.mark.parametrize("family", ["gamma", "negative_binomial", "beta_binomial"])
@pytest.mark.parametrize("start", [0.05, 200.0])
def test_newton_steps_with_the_own_curvature_arrive(family: str, start: float) -> None:
    head, rows, truth = build_head(family), 2000, 2.0
    outputs = torch.full((1, 1, rows, 1), 1.5, dtype=torch.float64)
    observed = torch.ones(1, rows, dtype=torch.bool)
    y = drawn(head, outputs, extra_of(head, (1, 1, rows), truth, column=8.0))
    value = torch.tensor(start, dtype=torch.float64).log()
    for _ in range(12):
        extra = extra_of(head, (1, 1, rows), float(value.exp()), column=8.0)
        score = head.own_score(outputs, y, observed, extra)[0, 0, 0]
        curvature = own_curvature(head, outputs, y, observed, extra)[0, 0, 0]
        assert curvature > 0
        value = value + (score / (curvature + 1.0)).clamp(-3, 3)  # the prior's pull, and the trust region
    assert abs(float(value) - np.log(truth)) < 0.25


def test_the_secant_is_the_information_at_the_mode() -> None:
    information = torch.tensor([[[4.0]]], dtype=torch.float64)
    torch.testing.assert_close(precision_secant(torch.zeros_like(information), information), information)
    best = 1 - torch.tensor([[[np.exp(0.7)]]])  # the parameter is e^0.7 times its best value
    step = information * best / precision_secant(information * best, information)
    assert float(step) == pytest.approx(-0.7)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("output", [-30.0, 30.0])
def test_far_outputs_stay_finite_in_single_precision(family: str, output: float) -> None:
    head = build_head(family)
    outputs = torch.full((1, 1, 3, head.num_outputs), output).requires_grad_()
    extra = {name: value.float() for name, value in extra_of(head, (1, 1, 3), 0.5, column=9.0).items()}
    y, observed = torch.tensor([[[1.0, 1.0, 0.5 if head.target == "positive" else 0.0]]]), torch.ones(1, 3).bool()
    score = head.score(outputs, y, extra)
    (gradient,) = torch.autograd.grad(head.log_prob(outputs, y, extra).sum(), outputs, retain_graph=True)
    torch.testing.assert_close(score.detach(), gradient, rtol=1e-3, atol=1e-4)
    (second,) = torch.autograd.grad(score.sum(), outputs) if score.requires_grad else (torch.zeros(1),)
    parts = (head.log_prob(outputs, y, extra), head.root(outputs, extra), second,
             head.own_score(outputs, y, observed, extra), own_curvature(head, outputs, y, observed, extra),
             drawn(head, outputs.detach(), extra))
    assert all(torch.isfinite(part).all() for part in parts)


def test_the_bounded_logarithm_is_smooth() -> None:
    points = torch.tensor([-40.0, -15.0, -3.0, 0.0, 14.9, 15.1, 80.0], dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(bounded_log(points).sum(), points)
    torch.testing.assert_close(bounded_log_slope(points).detach(), slope)
    torch.testing.assert_close(bounded_log(points)[2:5], points[2:5])
    assert (bounded_log(points).diff() > 0).all()


def test_mills_ratio_in_both_tails() -> None:
    points = np.array([-30.0, -5.0, 0.0, 4.0, 9.0])
    expected = np.exp(stats.norm.logpdf(points) - stats.norm.logcdf(points))
    torch.testing.assert_close(mills(torch.from_numpy(points)), torch.from_numpy(expected), rtol=1e-9, atol=1e-20)


# -- distributions ----------------------------------------------------------------------------------
def test_beta_binomial_moments_and_draws() -> None:
    law, known = BetaBinomial(torch.tensor(7.0), torch.tensor(0.6), torch.tensor(2.0)), stats.betabinom(7, 0.6, 2.0)
    assert float(law.mean) == pytest.approx(known.mean(), rel=1e-5)
    assert float(law.variance) == pytest.approx(known.var(), rel=1e-5)
    with seeded(generator_for(0)):
        draws = law.sample((40_000,))
    assert law.support.check(draws).all()
    _check_mean(draws, known.mean())
    _check_mean((draws - known.mean()) ** 2, known.var())


@pytest.mark.parametrize("censoring", [0.0005, 0.7, 50.0])
def test_censored_exponential_moments_and_draws(censoring: float) -> None:
    law = CensoredExponential(torch.tensor(1.3, dtype=torch.float64), torch.tensor(censoring, dtype=torch.float64))
    with seeded(generator_for(1)):
        draws = law.sample((200_000,))
    assert float(draws.max()) <= censoring
    _check_mean(draws, float(law.mean))
    _check_mean((draws - law.mean) ** 2, float(law.variance))
    _check_mean((draws == censoring).double(), float(torch.exp(-1.3 * law.censoring)))


# -- averages and refusals --------------------------------------------------------------------------
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_averages_are_means_over_draws(family: str) -> None:
    """Of the information, where it is the curvature; where not, tests/models/test_averages.py has the curvature."""
    head = build_head(family)
    outputs = torch.randn(2, 50, 6, head.num_outputs, generator=generator_for(0), dtype=torch.float64)
    extra = extra_of(head, (2, 50, 6), 0.7, column=3.0)
    y = torch.ones(2, 1, 6, dtype=torch.float64)
    score, information = head.averages(outputs, y, extra)
    root = head.root(outputs, extra)
    torch.testing.assert_close(score, head.score(outputs, y, extra).mean(1, keepdim=True))
    if head.canonical:
        torch.testing.assert_close(information, (root @ root.mT).mean(1, keepdim=True))


REFUSED: list[tuple[dict[str, Any], list[list[float]], list[float], str]] = [
    ({"family": "beta_binomial"}, [[2.0, 0.1]], [3.0], "y: got 3 with 2 in the column trials"),
    ({"family": "beta_binomial"}, [[2.5, 0.1]], [1.0], "column trials: got 2.5"),
    ({"family": "survival"}, [[1.0, 0.1]], [1.5], "y: got 1.5 with 1 in the column censoring"),
    ({"family": "gamma"}, [[0.1]], [0.0], "takes positive values"),
    ({"family": "poisson", "exposure": True}, [[0.0, 0.1]], [1.0], "column exposure: got 0"),
    ({"family": "poisson"}, [[0.1]], [0.5], "not whole"),
    ({"noise": "column"}, [[-1.0, 0.1]], [0.5], "column noise: got -1"),
    ({"family": "probit"}, [[0.1]], [2.0], "class 2"),
]


@pytest.mark.parametrize(("options", "x", "y", "message"), REFUSED)
def test_impossible_data_are_refused(options: dict[str, Any], x: list[list[float]], y: list[float],
                                     message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_model("generalized_linear", **options).check(Dataset.of(x, y))


@pytest.mark.parametrize(("options", "message"), [
    ({"family": "cauchy"}, "family: got 'cauchy'"),
    ({"family": "gamma", "noise": 1.0}, r"options of the family gamma: got \['noise'\]"),
    ({"family": "student_t", "degrees": 2.0}, "degrees: got 2"),
    ({"noise": "unknown"}, "noise: got 'unknown'"),
    ({"family": "categorical", "classes": 1}, "classes: got 1"),
])
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model("generalized_linear", **options)


def test_bernoulli_has_one_output() -> None:
    head = build_head("bernoulli")
    assert isinstance(head, CategoricalHead)
    assert (head.num_outputs, head.num_classes) == (1, 2)
