"""Contract of an objective: run :func:`check_objective` on your own.

Every function raises AssertionError with what differs. All checks use a conjugate model, whose exact posterior is
known, and a Gaussian with full covariance, which can represent it; they run in double precision, with fixed seeds.
Gradients are averaged over many copies of one dataset, each with its own draws and its own parameters of q, so that
one backward pass gives independent samples of the gradient; tolerances are in standard errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from posteria.densities.gaussian import GaussianTheta
from posteria.errors import UnsupportedError
from posteria.models.base import Model
from posteria.models.linear import LinearRegression
from posteria.objectives.base import Objective, Step
from posteria.randomness import generator_for
from posteria.types import Dataset, ThetaDistribution

# A correct objective exceeds this many standard errors once in about two million comparisons.
_STANDARD_ERRORS = 5.0
_COPIES = 4096
# Equal sums of a batch and of its padded copy differ by rounding alone.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Problem:
    """One dataset of a conjugate model, copied, with its exact posterior.

    Attributes:
        model: the conjugate model.
        dataset: B equal copies.
        exact: the posterior of one copy, over theta (P,).
        theta: (B, P) independent draws from it: what could have generated the copies.
    """

    model: Model
    dataset: Dataset
    exact: MultivariateNormal
    theta: Tensor

    @property
    def size(self) -> int:
        """Rows + parameters of one copy: what :class:`~posteria.objectives.ReverseKL` divides by."""
        return int(self.dataset.observed[0].sum()) + self.theta.shape[-1]


@dataclass(frozen=True)
class Guess:
    """A Gaussian q for every copy, whose parameters are leaves of the graph.

    Attributes:
        mean: (B, P).
        factor: (B, P, P) lower Cholesky factor of the precision.
    """

    mean: Tensor
    factor: Tensor

    def distribution(self) -> ThetaDistribution:
        """The densities that an objective reads."""
        active = torch.ones_like(self.mean, dtype=torch.bool)
        return cast(ThetaDistribution, GaussianTheta(self.mean, torch.ones_like(self.mean), active, self.factor.tril()))


def conjugate_problem(model: Model | None = None, num_columns: int = 2, rows: int = 6, copies: int = _COPIES,
                      seed: int = 0) -> Problem:
    """A dataset that the model simulates at a draw of its prior.

    Args:
        model: one with an exact posterior; linear regression by default.
        num_columns: columns of x.
        rows: observations.
        copies: B.
        seed: of the dataset and of theta.
    """
    model = model or LinearRegression()
    x = model.draw_inputs(1, rows, num_columns, generator_for(seed, 1))
    inputs = Dataset(x, None, torch.ones(1, rows, dtype=torch.bool), torch.ones(1, num_columns, dtype=torch.bool))
    simulated = model.simulate(model.sample_prior(inputs, 1, generator_for(seed, 2))[:, 0], inputs,
                               generator_for(seed, 3))
    y = None if simulated.y is None else simulated.y.double()
    one = replace(simulated, x=simulated.x.double(), y=y)
    exact = model.exact_posterior(one)
    exact = MultivariateNormal(exact.mean[0], exact.covariance_matrix[0], validate_args=False)
    noise = torch.randn(copies, exact.mean.shape[-1], generator=generator_for(seed, 4), dtype=torch.float64)
    return Problem(model, one[torch.zeros(copies, dtype=torch.long)], exact, exact.mean + noise @ exact.scale_tril.mT)


def guess_near(problem: Problem, distance: float = 0.0, seed: int = 0) -> Guess:
    """The exact posterior for every copy, moved and deformed by about ``distance`` posterior standard deviations."""
    size, generator = problem.theta.shape[-1], generator_for(seed, 9)
    factor = torch.linalg.cholesky(problem.exact.precision_matrix)
    noise = torch.randn(size, size + 1, generator=generator, dtype=torch.float64) * distance
    mean = problem.exact.mean + problem.exact.stddev * noise[:, 0]
    deformed = torch.eye(size, dtype=torch.float64) + 0.3 * noise[:, 1:].tril()
    factor = factor @ deformed
    factor = factor * factor.diagonal().sign()  # columns may change sign: R Rᵀ stays
    copies = len(problem.dataset)
    return Guess(*(t.expand(copies, *t.shape).clone().requires_grad_() for t in (mean, factor)))


def check_objective(objective: Objective, model: Model | None = None, num_columns: int = 2, seed: int = 0) -> None:
    """The whole contract.

    Args:
        objective: the objective.
        model: a model with an exact posterior; linear regression by default.
        num_columns: columns of x.
        seed: of every random choice.

    Examples:
        >>> from posteria.objectives import ReverseKL
        >>> check_objective(ReverseKL(num_samples=2))
    """
    problem = conjugate_problem(model, num_columns, seed=seed)
    few = conjugate_problem(model, num_columns, copies=3, seed=seed)
    check_scalar(objective, few)
    check_theta(objective, few)
    check_repeatable(objective, few)
    check_row_padding(objective, few)
    check_stationary(objective, problem)
    check_prefers_the_posterior(objective, problem)


def check_scalar(objective: Objective, problem: Problem) -> None:
    """One finite number, with finite gradients in all parameters of q."""
    guess = guess_near(problem, 0.5)
    loss = loss_of(objective, problem, guess)
    assert loss.shape == (), f"loss: shape {tuple(loss.shape)}, not a scalar"
    assert torch.isfinite(loss), f"loss: {float(loss.detach())}"
    for name, gradient in zip(("mean", "factor"), _gradients(loss, guess), strict=True):
        assert torch.isfinite(gradient).all(), f"gradient in the {name} is not finite"
        assert (gradient != 0).any(), f"gradient in the {name} is zero everywhere"


def check_theta(objective: Objective, problem: Problem) -> None:
    """``needs_theta`` is true: without it, theta is never read; with it, its absence is refused.

    For the refusal an :class:`~posteria.errors.UnsupportedError` is expected.
    """
    guess = guess_near(problem, 0.5)
    if objective.needs_theta:
        try:
            loss_of(objective, replace(problem, theta=None), guess)  # type: ignore[arg-type]
        except UnsupportedError:
            return
        raise AssertionError("needs_theta is True, but theta=None is accepted")
    expected = loss_of(objective, problem, guess)
    for theta in (None, torch.full_like(problem.theta, torch.nan), torch.zeros(0)):
        actual = loss_of(objective, replace(problem, theta=theta), guess)  # type: ignore[arg-type]
        assert torch.equal(actual, expected), "needs_theta is False, but theta changes the loss"


def check_repeatable(objective: Objective, problem: Problem) -> None:
    """All randomness comes from the step's generator: the same state gives the same loss, and nothing else moves."""
    guess, before = guess_near(problem, 0.5), torch.random.get_rng_state()
    first, second = (loss_of(objective, problem, guess) for _ in range(2))
    assert torch.equal(first, second), "the same generator state gives another loss"
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state has moved"


def check_row_padding(objective: Objective, problem: Problem) -> None:
    """Padded rows change nothing."""
    guess, (rows, columns) = guess_near(problem, 0.5), problem.dataset.x.shape[1:]
    padded = replace(problem, dataset=problem.dataset.padded(rows + 3, columns))
    expected, actual = loss_of(objective, problem, guess), loss_of(objective, padded, guess)
    torch.testing.assert_close(actual, expected, rtol=_ROUNDING, atol=_ROUNDING, msg=_named("padded rows"))


def check_stationary(objective: Objective, problem: Problem) -> None:
    """The exact posterior is a stationary point: the gradient's mean is zero, in standard errors."""
    guess = guess_near(problem)
    zeros = torch.zeros_like(guess.mean[0]), torch.zeros_like(guess.factor[0])
    for name, samples, zero in zip(("mean", "factor"), gradient_samples(objective, problem, guess), zeros, strict=True):
        assert_mean(samples, zero, f"gradient in the {name} at the exact posterior")


def check_prefers_the_posterior(objective: Objective, problem: Problem) -> None:
    """The exact posterior has a smaller loss than a Gaussian a few standard deviations away."""
    best, other = (float(loss_of(objective, problem, guess_near(problem, d)).detach()) for d in (0.0, 2.0))
    assert best < other, f"loss {best:.4g} at the exact posterior, {other:.4g} away from it"


def check_reverse_kl_gradient(objective: Objective, model: Model | None = None, num_columns: int = 2,
                              distance: float = 0.7, seed: int = 0) -> None:
    """The mean gradient is that of KL(q || exact posterior) / (rows + parameters), in standard errors.

    For objectives that are reverse KL up to a constant, in the units of :class:`~posteria.objectives.ReverseKL`.
    """
    problem = conjugate_problem(model, num_columns, seed=seed)
    guess = guess_near(problem, distance, seed)
    samples = gradient_samples(objective, problem, guess)
    for name, sample, expected in zip(("mean", "factor"), samples, _exact_gradient(problem, guess), strict=True):
        assert_mean(sample, expected, f"gradient in the {name}")


def loss_of(objective: Objective, problem: Problem, guess: Guess, progress: float = 1.0, seed: int = 5) -> Tensor:
    """The loss, with the step's generator seeded."""
    step = Step(progress, generator_for(seed))
    return objective(guess.distribution(), problem.dataset, problem.theta, problem.model, step)


def gradient_samples(objective: Objective, problem: Problem, guess: Guess, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Independent gradients of one dataset's loss in its mean (B, P) and factor (B, P, P; lower part)."""
    loss = loss_of(objective, problem, guess, seed=seed) * len(problem.dataset)
    mean, factor = _gradients(loss, guess)
    return mean, factor.tril()


def assert_mean(samples: Tensor, expected: Tensor, what: str) -> None:
    """The mean over the first axis is as expected, in standard errors (and rounding, where samples are all equal)."""
    error = samples.std(0) / len(samples) ** 0.5
    allowed = _STANDARD_ERRORS * error + _ROUNDING * (1.0 + expected.abs())
    difference = (samples.mean(0) - expected).abs()
    worst = int((difference / allowed).argmax())
    assert (difference <= allowed).all(), (
        f"{what}: mean {float(samples.mean(0).flatten()[worst]):.6g}, expected {float(expected.flatten()[worst]):.6g}, "
        f"standard error {float(error.flatten()[worst]):.2g}"
    )


def _exact_gradient(problem: Problem, guess: Guess) -> tuple[Tensor, Tensor]:
    """Of KL(q || exact) per row and parameter, in one copy's mean and factor."""
    mean, factor = (t[0].detach().clone().requires_grad_() for t in (guess.mean, guess.factor))
    lower = factor.tril()
    q = MultivariateNormal(mean, precision_matrix=lower @ lower.mT, validate_args=False)
    loss = kl_divergence(q, problem.exact) / problem.size
    on_mean, on_factor = torch.autograd.grad(loss, (mean, factor))
    return on_mean, on_factor.tril()


def _gradients(loss: Tensor, guess: Guess) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (guess.mean, guess.factor))


def _named(what: str):
    return lambda message: f"{what}: {message}"
