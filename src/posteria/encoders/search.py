"""Finding where a log joint's mass lies, without learned parts: a mode, then a Gaussian around it.

:func:`climb` is Levenberg-Marquardt with steps accepted per dataset. :func:`widen` then looks at draws from the
current Gaussian guess instead of at its centre alone: averaged score and curvature make a step of natural-gradient
variational inference (Khan & Nielsen 2018), whose fixed point is the best Gaussian in reverse KL. The draws come from
fixed noise, so that both are deterministic. All of it runs without gradients, in prior-whitened parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.curvature import DenseCurvature, DiagonalCurvature
from posteria.types import Curvature, LogJoint

# Largest step per coordinate, in prior standard deviations: keeps far starts from overshooting.
_TRUST_RADIUS = 4.0
# A dataset's search is over when the next step promises less than this many nats.
_CONVERGED = 1e-5
# Share of a step taken where the averages are exact, falling to the least; with draws it falls to zero, which
# averages their noise out.
_EXACT_WEIGHT, _LEAST_EXACT_WEIGHT = 0.7, 0.3
_DAMPING_UP, _DAMPING_DOWN, _LEAST_DAMPING = 8.0, 4.0, 1e-2


@dataclass(frozen=True)
class Guess:
    """A Gaussian guess of the posterior and what the log joint looks like there.

    Attributes:
        z: (B, P) centre.
        curvature: precision of the guess.
        score: (B, P) gradient, averaged over the points looked at.
        wobble: (B, P) standard deviation of the gradient over them.
        step: (B, P) preconditioned gradient: where the search would go next.
        moved: (B, P) the last move of the centre.
    """

    z: Tensor
    curvature: Curvature
    score: Tensor
    wobble: Tensor
    step: Tensor
    moved: Tensor

    @property
    def spread(self) -> Tensor:
        """(B, P) standard deviation of each parameter given the others."""
        return self.curvature.diagonal().rsqrt()


@torch.no_grad()
def climb(log_joint: LogJoint, z: Tensor, iterations: int, damping: float, dense_up_to: int) -> Guess:
    """Levenberg-Marquardt from z (B, P); datasets that have converged stay put.

    Args:
        log_joint: what to climb.
        z: starting points.
        iterations: at most so many steps; ends early when every dataset has converged.
        damping: initial damping, in units of the prior's precision; 0 is a Newton step.
        dense_up_to: see :meth:`LogJoint.curvature`.
    """
    start, strength = z, torch.full_like(z[:, 0], damping)
    density, score = _at(log_joint, z)
    curvature = log_joint.curvature(z[:, None], dense_up_to)
    step = _bounded(curvature.solve(score, strength))
    for _ in range(iterations):
        searching = (score * step).sum(-1) > _CONVERGED
        if not searching.any():
            break
        proposed_density, proposed_score = _at(log_joint, z + step)
        better = searching & (proposed_density > density)
        z = torch.where(better[:, None], z + step, z)
        score = torch.where(better[:, None], proposed_score, score)
        density = torch.where(better, proposed_density, density)
        strength = torch.where(better, _lowered(strength), torch.where(searching, _raised(strength), strength))
        curvature = log_joint.curvature(z[:, None], dense_up_to)
        step = _bounded(curvature.solve(score, strength))
    return Guess(z, curvature, score, torch.zeros_like(z), step, z - start)


@torch.no_grad()
def widen(log_joint: LogJoint, guess: Guess, depth: int, candidates: int, correlated: bool, damping: float,
          dense_up_to: int) -> Guess:
    """One step of natural-gradient variational inference from a guess.

    Args:
        log_joint: the target.
        guess: the last guess.
        depth: 0, 1, ... counts the widenings.
        candidates: number of draws, even (they come in antithetic pairs), where the model has no exact averages.
        correlated: the guess has a full precision, as far as the curvature is dense; otherwise a diagonal one
            (mean-field inference).
        damping, dense_up_to: as in :func:`climb`.
    """
    factor = guess.curvature.factor() if correlated else None
    exact = log_joint.expectation(guess.z, guess.spread, factor, dense_up_to)
    if exact is not None:
        (score, whole), wobble = exact, torch.zeros_like(guess.z)
        weight, diagonal = max(_EXACT_WEIGHT * 0.9**depth, _LEAST_EXACT_WEIGHT), whole.diagonal()
    else:
        score, wobble, diagonal, whole = _over_draws(log_joint, guess, factor, depth, candidates, dense_up_to)
        weight = 2.0 / (depth + 2)
    curvature = _mixed(guess.curvature, DiagonalCurvature(diagonal) if factor is None else whole, weight)
    preconditioner = whole if factor is None else curvature
    step = _bounded(preconditioner.solve(score, torch.full_like(score[:, 0], damping)), 1.0)
    moved = weight * step
    return Guess(guess.z + moved, curvature, score, wobble, step - moved, moved)


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


def _mixed(old: Curvature, new: Curvature, weight: float) -> Curvature:
    """The running average of two of one form; the new one alone where the form changes or all weight is on it."""
    if weight == 1.0 or type(old) is not type(new):
        return new
    if isinstance(old, DenseCurvature) and isinstance(new, DenseCurvature):
        return DenseCurvature(torch.lerp(old.matrix, new.matrix, weight))
    return DiagonalCurvature(torch.lerp(old.diagonal(), new.diagonal(), weight))


def _offsets(log_joint: LogJoint, guess: Guess, factor: Tensor | None, depth: int, candidates: int) -> Tensor:
    """(B, C, P) antithetic draws from the guess, around zero."""
    noise = torch.where(log_joint.active[:, None], log_joint.fixed_noise(candidates // 2, depth), 0.0)
    if factor is None:
        offsets = noise * guess.spread[:, None]
    else:
        offsets = torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
    return torch.cat([offsets, -offsets], 1)


def _at(log_joint: LogJoint, z: Tensor) -> tuple[Tensor, Tensor]:
    density, score = log_joint.score(z[:, None])
    return density[:, 0].nan_to_num(-torch.inf, neginf=-torch.inf), score[:, 0]


def _bounded(step: Tensor, radius: float = _TRUST_RADIUS) -> Tensor:
    return step * (radius / step.abs().amax(-1, keepdim=True).clamp(min=radius))


def _raised(damping: Tensor) -> Tensor:
    return (damping * _DAMPING_UP).clamp(min=1.0)


def _lowered(damping: Tensor) -> Tensor:
    lower = damping / _DAMPING_DOWN
    return torch.where(lower < _LEAST_DAMPING, 0.0, lower)
