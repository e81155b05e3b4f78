"""Every registered objective keeps the contract of ``posteria.testing.objectives``; and what each promises beyond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from posteria.errors import InputError, UnsupportedError
from posteria.models import build_model
from posteria.objectives import OBJECTIVES, ForwardKL, Objective, ReverseKL, Step
from posteria.randomness import generator_for
from posteria.testing.objectives import (
    Guess,
    Problem,
    assert_mean,
    check_objective,
    check_reverse_kl_gradient,
    conjugate_problem,
    gradient_samples,
    guess_near,
    loss_of,
)

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("reverse_kl", {"num_samples": 1, "path_gradient": False}),
    ("reverse_kl", {"num_samples": 2, "path_gradient": False, "closed_form": False}),
    ("reverse_kl", {"num_samples": 2, "warm_up": 0.25, "limit": None}),
]
REVERSE = {"path": {}, "closed": {"path_gradient": False}, "draws": {"path_gradient": False, "closed_form": False}}
CONJUGATE = {"regression": ("linear_regression", {}, 3), "mean": ("gaussian_mean", {"covariance": [0.5, 2.0]}, 2)}


def build(name: str, options: dict[str, Any]) -> Objective:
    make: Callable[..., Objective] = OBJECTIVES[name]
    return make(**options)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("model", CONJUGATE.values(), ids=CONJUGATE)
def test_contract(name: str, options: dict[str, Any], model: tuple[str, dict[str, Any], int]) -> None:
    check_objective(build(name, options), build_model(model[0], **model[1]), model[2])


def test_every_objective_is_covered() -> None:
    assert {name for name, _ in VARIANTS} == set(OBJECTIVES)


# -- the contract finds what is broken -----------------------------------------------------------
class _Broken(ReverseKL):
    """A reverse KL that, one promise at a time, is broken."""

    def __init__(self, broken: str):
        super().__init__(num_samples=2)
        self.broken = broken

    def __call__(self, distribution, dataset, theta, model, step: Step) -> Tensor:
        if self.broken == "unseeded":
            step = replace(step, generator=None)
        loss = super().__call__(distribution, dataset, theta, model, step)
        if self.broken == "vector":
            return loss[None]
        if self.broken == "theta" and theta is not None:
            return loss + theta.sum()
        if self.broken == "padding":
            return loss * dataset.x.shape[1]
        if self.broken == "sign":
            return -loss
        if self.broken == "biased":
            return loss + 0.1 * distribution.rsample(1, step.generator).mean()
        return loss


@pytest.mark.parametrize("broken", ["unseeded", "vector", "theta", "padding", "sign", "biased"])
def test_the_contract_finds_what_is_broken(broken: str) -> None:
    with pytest.raises(AssertionError):
        check_objective(_Broken(broken))


def test_the_gradient_check_finds_a_wrong_weight() -> None:
    with pytest.raises(AssertionError, match="gradient in the"):
        check_reverse_kl_gradient(_Weighted(num_samples=8))


class _Weighted(ReverseKL):
    def _divergence(self, *arguments: Any) -> Tensor:
        return 0.8 * super()._divergence(*arguments)


# -- reverse KL ----------------------------------------------------------------------------------
@pytest.mark.parametrize("options", REVERSE.values(), ids=REVERSE)
@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("model", CONJUGATE.values(), ids=CONJUGATE)
def test_the_gradient_is_that_of_the_divergence_from_the_posterior(
    options: dict[str, Any], num_samples: int, model: tuple[str, dict[str, Any], int]
) -> None:
    objective = ReverseKL(num_samples=num_samples, limit=None, **options)
    for distance in (0.3, 1.5):
        check_reverse_kl_gradient(objective, build_model(model[0], **model[1]), model[2], distance)


@pytest.mark.parametrize("model", CONJUGATE.values(), ids=CONJUGATE)
def test_the_path_gradient_has_no_variance_at_the_posterior(model: tuple[str, dict[str, Any], int]) -> None:
    problem = conjugate_problem(build_model(model[0], **model[1]), model[2], copies=64)
    for samples in gradient_samples(ReverseKL(num_samples=1), problem, guess_near(problem)):
        torch.testing.assert_close(samples, torch.zeros_like(samples), rtol=0.0, atol=1e-10)
    other = gradient_samples(ReverseKL(num_samples=1, path_gradient=False), problem, guess_near(problem))
    assert all((samples.std(0).max() > 1e-3) for samples in other)


def test_the_loss_at_the_posterior_is_minus_the_log_evidence() -> None:
    problem = conjugate_problem(copies=4)
    theta = problem.theta[:, None]
    joint = problem.model.log_joint(theta, problem.dataset)[:, 0]
    evidence = joint - problem.exact.log_prob(problem.theta)  # the same at every theta
    loss = loss_of(ReverseKL(num_samples=3), problem, guess_near(problem))
    torch.testing.assert_close(evidence, evidence[:1].expand_as(evidence))
    torch.testing.assert_close(loss, -evidence[0] / problem.size)


def test_the_closed_form_divergence_is_the_mean_of_the_drawn_one() -> None:
    problem, seeds = conjugate_problem(copies=1), range(400)
    guess = guess_near(problem, 1.0)
    closed, drawn = (torch.stack([_prior_divergence(problem, guess, form, seed) for seed in seeds])
                     for form in (True, False))
    size = problem.theta.shape[-1]
    q = MultivariateNormal(guess.mean[0], precision_matrix=guess.factor[0].tril() @ guess.factor[0].tril().mT)
    zero, eye = torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    expected = kl_divergence(q, MultivariateNormal(zero, eye)).detach() / problem.size
    assert_mean(drawn, expected, "divergence from the prior, by draws")
    torch.testing.assert_close(closed, expected.expand_as(closed))


def _prior_divergence(problem: Problem, guess: Guess, closed_form: bool, seed: int) -> Tensor:
    """The part of the loss that warm-up scales, at one seed."""
    objective = ReverseKL(num_samples=4, path_gradient=False, closed_form=closed_form, warm_up=0.5, limit=None)
    start, end = (loss_of(objective, problem, guess, progress, seed) for progress in (0.0, 1.0))
    return (end - start).detach()


def test_no_closed_form_falls_back_to_draws() -> None:
    model = build_model("linear_regression", noise="inferred")  # half-normal noise: not normal in theta
    assert not model.layout(2).has_normal_prior
    plain = conjugate_problem(copies=3)
    guess = guess_near(replace(plain, exact=MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()),
                               theta=torch.zeros(3, 4)), 0.3)
    closed, drawn = (loss_of(ReverseKL(path_gradient=False, closed_form=form), replace(plain, model=model), guess)
                     for form in (True, False))
    assert torch.equal(closed, drawn)


@pytest.mark.parametrize("options", REVERSE.values(), ids=REVERSE)
def test_warm_up_scales_the_divergence_alone(options: dict[str, Any]) -> None:
    problem = conjugate_problem(copies=3)
    guess, objective = guess_near(problem, 0.5), ReverseKL(warm_up=0.5, limit=None, **options)
    start, half, full, end = (loss_of(objective, problem, guess, p) for p in (0.0, 0.25, 0.5, 1.0))
    likelihood = -problem.model.log_likelihood(_draws(problem, guess), problem.dataset).mean() / problem.size
    torch.testing.assert_close(start, likelihood)
    torch.testing.assert_close(half, (start + end) / 2)
    assert torch.equal(full, end)
    assert torch.equal(end, loss_of(ReverseKL(limit=None, **options), problem, guess, 0.0))


def _draws(problem: Problem, guess: Guess) -> Tensor:
    return guess.distribution().rsample(4, generator_for(5))


def test_the_limit_leaves_small_losses_untouched() -> None:
    problem = conjugate_problem(copies=8)
    guess = guess_near(problem, 0.5)
    assert torch.equal(loss_of(ReverseKL(limit=20.0), problem, guess), loss_of(ReverseKL(limit=None), problem, guess))


def test_the_limit_tames_one_bad_dataset_and_keeps_its_direction() -> None:
    problem = conjugate_problem(copies=2)
    guess = guess_near(problem, 0.5)
    with torch.no_grad():
        guess.mean[1] += 1e4
    objectives = ReverseKL(limit=20.0), ReverseKL(limit=None)
    tamed, free = (loss_of(objective, problem, guess) for objective in objectives)
    assert tamed < 400.0 < 1e5 < free
    limited, plain = (gradient_samples(objective, problem, guess)[0] for objective in objectives)
    assert torch.equal(limited[0], plain[0])
    cosine = torch.cosine_similarity(limited[1], plain[1], dim=0)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert 0 < limited[1].norm() < 1e-3 * plain[1].norm()


@pytest.mark.parametrize(("options", "message"), [
    ({"num_samples": 0}, "num_samples: got 0"),
    ({"warm_up": 1.5}, "warm_up: got 1.5"),
    ({"warm_up": -0.1}, "warm_up: got -0.1"),
])
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReverseKL(**options)


# -- forward KL ----------------------------------------------------------------------------------
def test_forward_kl_refuses_data_without_theta() -> None:
    problem = conjugate_problem(copies=2)
    distribution = guess_near(problem).distribution()
    with pytest.raises(UnsupportedError, match="reverse_kl"):
        ForwardKL()(distribution, problem.dataset, None, problem.model, Step())


def test_forward_kl_at_the_posterior_is_its_entropy() -> None:
    problem = conjugate_problem()
    guess, size = guess_near(problem), problem.theta.shape[-1]
    each = -guess.distribution().log_prob(problem.theta[:, None])[:, 0].detach() / size
    torch.testing.assert_close(loss_of(ForwardKL(), problem, guess).detach(), each.mean())
    assert_mean(each, problem.exact.entropy() / size, "negative log density per parameter")


def test_forward_kl_counts_active_parameters_only() -> None:
    problem = conjugate_problem(copies=3)
    padded = guess_near(problem, 0.5).distribution()
    padded.active[:, -1] = False
    theta = problem.theta.clone()
    expected = ForwardKL()(padded, problem.dataset, theta, problem.model, Step())
    theta[:, -1] = 1e6
    assert torch.equal(ForwardKL()(padded, problem.dataset, theta, problem.model, Step()), expected)
