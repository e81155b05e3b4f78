"""Finding where a log joint's mass lies, without learned parts: a mode, then a Gaussian around it.

:func:`posteria.ascent.climb` is Levenberg-Marquardt with steps accepted per dataset. :func:`widen` then looks at draws
from the current Gaussian guess instead of at its centre alone: averaged score and curvature make a step of
natural-gradient variational inference (Khan & Nielsen 2018), whose fixed point is the best Gaussian in reverse KL. The
draws come from fixed noise, so that both are deterministic. All of it runs without gradients, in prior-whitened
parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.ascent import Guess, bounded
from posteria.curvature import DenseCurvature, DiagonalCurvature
from posteria.types import Curvature, LogJoint

# Share of a step taken where the averages are exact, falling to the least; with draws it falls to zero, which
# averages their noise out.
_EXACT_WEIGHT, _LEAST_EXACT_WEIGHT = 0.7, 0.3
# With exact averages whole steps are taken, which are nearly Newton's and converge a few times as fast, once one would
# change a guess by less than the first and steps become shorter: a whole one by so much, or guesses may swing.
_NEAR, _SHRINKING = 0.2, 0.7
# A look that changes a guess by less is the last: what is still to come is about twice as much at most.
_SETTLED = 1e-3


@torch.no_grad()
def widened(log_joint: LogJoint, guess: Guess, looks: int, candidates: int, correlated: bool, damping: float,
            dense_up_to: int) -> list[Guess]:
    """The guess, and what it is after each of a number of looks (``looks`` + 1 in all).

    Where the model's averages are exact, a dataset whose guess has settled is not looked at again: the others' number
    of looks does not change its answer.

    Args:
        log_joint, guess, candidates, correlated, damping, dense_up_to: as for :func:`widen`.
        looks: how many.
    """
    guesses, part = [guess], log_joint
    going = torch.arange(len(guess.z), device=guess.z.device)
    step, near = torch.full_like(guess.z[:, 0], torch.inf), torch.zeros_like(guess.z[:, 0], dtype=torch.bool)
    for depth in range(looks):
        if not len(going):
            return guesses + guesses[-1:] * (looks - depth)
        whole, before = guesses[-1], guesses[-1] if len(going) == len(guess.z) else guesses[-1][going]
        after = widen(part, before, depth, candidates, correlated, damping, dense_up_to, near)
        guesses.append(after if before is whole else whole.put(going, after))
        changed = _change(before, after)
        last, step = step, torch.where(near, changed, changed / _exact_weight(depth))
        near = (step < _NEAR) & (step < torch.where(near, _SHRINKING, 1.0) * last)
        going_on = changed >= _SETTLED
        if not going_on.all():
            going, near, step = going[going_on], near[going_on], step[going_on]
            part = log_joint[going]
    return guesses


def _change(before: Guess, after: Guess) -> Tensor:
    """(B,) the most that a look has changed a centre (in standard deviations) or a precision (relatively).

    Infinite with draws, whose weight falls.
    """
    if after.wobble.any() or type(before.curvature) is not type(after.curvature):
        return torch.full_like(after.z[:, 0], torch.inf)
    moved = (after.moved.abs() / after.spread).amax(-1)
    return torch.maximum(moved, (after.curvature.diagonal() / before.curvature.diagonal()).log().abs().amax(-1))


@torch.no_grad()
def widen(log_joint: LogJoint, guess: Guess, depth: int, candidates: int, correlated: bool, damping: float,
          dense_up_to: int, near: Tensor | None = None) -> Guess:
    """One step of natural-gradient variational inference from a guess.

    Args:
        log_joint: the target.
        guess: the last guess.
        depth: 0, 1, ... counts the widenings.
        candidates: number of draws, even (they come in antithetic pairs), where the model has no exact averages.
        correlated: the guess has a full precision, as far as the curvature is dense; otherwise a diagonal one
            (mean-field inference).
        damping, dense_up_to: as in :func:`posteria.ascent.climb`.
        near: (B,) bool, which guesses take a whole step where averages are exact; none if not given.
    """
    factor = guess.curvature.factor() if correlated else None
    exact = log_joint.expectation(guess.z, guess.spread, factor, dense_up_to)
    if exact is not None:
        (score, whole), wobble = exact, torch.zeros_like(guess.z)
        diagonal = whole.diagonal()
        weight = torch.full_like(score[:, :1], _exact_weight(depth))
        weight = weight if near is None else torch.where(near[:, None], 1.0, weight)
    else:
        score, wobble, diagonal, whole = _over_draws(log_joint, guess, factor, depth, candidates, dense_up_to)
        weight = torch.full_like(score[:, :1], 2.0 / (depth + 2))
    curvature = _mixed(guess.curvature, DiagonalCurvature(diagonal) if factor is None else whole, weight)
    preconditioner = whole if factor is None else curvature
    step = bounded(preconditioner.solve(score, torch.full_like(score[:, 0], damping)), 1.0)
    moved = weight * step
    return Guess(guess.z + moved, curvature, score, wobble, step - moved, moved)


def _exact_weight(depth: int) -> float:
    return max(_EXACT_WEIGHT * 0.9**depth, _LEAST_EXACT_WEIGHT)


def _over_draws(log_joint: LogJoint, guess: Guess, factor: Tensor | None, depth: int, candidates: int,
                dense_up_to: int) -> tuple[Tensor, Tensor, Tensor, Curvature]:
    """Over draws from the guess: the score's mean and standard deviation and the mean diagonal curvature (B, P).

    And a whole curvature: the mean one too for a correlated guess, else the one at the centre, which costs less.
    """
    points = guess.z[:, None] + _offsets(log_joint, guess, factor, depth, candidates)
    if factor is not None:
        score, whole = log_joint.score(points)[1], log_joint.curvature(points, dense_up_to)
        diagonal = whole.diagonal()
    else:
        geometry = log_joint.geometry(points)
        score, diagonal = geometry.score, geometry.curvature.mean(1)
        whole = log_joint.curvature(guess.z[:, None], dense_up_to)
    mean = score.mean(1)
    return mean, (score - mean[:, None]).square().mean(1).sqrt(), diagonal, whole


def _mixed(old: Curvature, new: Curvature, weight: Tensor) -> Curvature:
    """The running average of two of one form, with weights (B, 1); the new one alone where the form changes or all
    weight is on it."""
    if bool((weight == 1.0).all()) or type(old) is not type(new):
        return new
    if isinstance(old, DenseCurvature) and isinstance(new, DenseCurvature):
        return DenseCurvature(torch.lerp(old.matrix, new.matrix, weight[..., None]))
    return DiagonalCurvature(torch.lerp(old.diagonal(), new.diagonal(), weight))


def _offsets(log_joint: LogJoint, guess: Guess, factor: Tensor | None, depth: int, candidates: int) -> Tensor:
    """(B, C, P) antithetic draws from the guess, around zero."""
    noise = log_joint.fixed_noise(candidates // 2, depth).to(guess.z)
    noise = torch.where(log_joint.active[:, None], noise, 0.0)
    if factor is None:
        offsets = noise * guess.spread[:, None]
    else:
        offsets = torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
    return torch.cat([offsets, -offsets], 1)
