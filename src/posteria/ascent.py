"""Climbing to a mode of a log joint, for many datasets at once: what search and baselines share."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from posteria.types import Curvature, LogJoint

# Largest step per coordinate, in prior standard deviations: keeps far starts from overshooting.
_TRUST_RADIUS = 4.0
# A dataset's search is over when the next step promises less than this many nats.
_CONVERGED = 1e-5
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

    def __getitem__(self, index: Tensor) -> Guess:
        """That of the chosen datasets."""
        return Guess(*(getattr(self, field.name)[index] for field in fields(self)))

    def put(self, index: Tensor, other: Guess) -> Guess:
        """The same, but ``other`` for the chosen datasets."""
        moved = {name: getattr(self, name).index_copy(0, index, getattr(other, name))
                 for name in ("z", "score", "wobble", "step", "moved")}
        return Guess(curvature=self.curvature.put(index, other.curvature), **moved)

    @property
    def spread(self) -> Tensor:
        """(B, P) standard deviation of each parameter given the others."""
        return self.curvature.diagonal().rsqrt()


@dataclass(frozen=True)
class _Place:
    """Where climbs are: B points z with all that the next step takes."""

    z: Tensor
    density: Tensor
    score: Tensor
    strength: Tensor
    curvature: Curvature
    step: Tensor

    def __getitem__(self, index: Tensor) -> _Place:
        return _Place(*(getattr(self, field.name)[index] for field in fields(self)))

    def put(self, index: Tensor, other: _Place) -> _Place:
        moved = {name: getattr(self, name).index_copy(0, index, getattr(other, name))
                 for name in ("z", "density", "score", "strength", "step")}
        return _Place(curvature=self.curvature.put(index, other.curvature), **moved)


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
    density, score = _at(log_joint, z)
    curvature, strength = log_joint.curvature(z[:, None], dense_up_to), torch.full_like(z[:, 0], damping)
    start = _Place(z, density, score, strength, curvature, bounded(curvature.solve(score, strength)))
    end = _climbed(log_joint, start, iterations, dense_up_to)
    return Guess(end.z, end.curvature, end.score, torch.zeros_like(z), end.step, end.z - z)


def _climbed(log_joint: LogJoint, place: _Place, iterations: int, dense_up_to: int) -> _Place:
    for left in range(iterations, 0, -1):
        searching = (place.score * place.step).sum(-1) > _CONVERGED
        if not searching.any():
            break
        if 2 * int(searching.sum()) <= len(searching):
            rest = searching.nonzero()[:, 0]  # the others are there, and would cost as much
            return place.put(rest, _climbed(log_joint[rest], place[rest], left, dense_up_to))
        place = _next(log_joint, place, searching, dense_up_to)
    return place


def _next(log_joint: LogJoint, place: _Place, searching: Tensor, dense_up_to: int) -> _Place:
    density, score = _at(log_joint, place.z + place.step)
    better = searching & (density > place.density)
    z = torch.where(better[:, None], place.z + place.step, place.z)
    score = torch.where(better[:, None], score, place.score)
    raised = torch.where(searching, _raised(place.strength), place.strength)
    strength = torch.where(better, _lowered(place.strength), raised)
    curvature = log_joint.curvature(z[:, None], dense_up_to)
    step = bounded(curvature.solve(score, strength))
    return _Place(z, torch.where(better, density, place.density), score, strength, curvature, step)


def bounded(step: Tensor, radius: float = _TRUST_RADIUS) -> Tensor:
    """The steps (B, P), shortened where a coordinate moves further than the radius."""
    return step * (radius / step.abs().amax(-1, keepdim=True).clamp(min=radius))


def _at(log_joint: LogJoint, z: Tensor) -> tuple[Tensor, Tensor]:
    density, score = log_joint.score(z[:, None])
    return density[:, 0].nan_to_num(-torch.inf, neginf=-torch.inf), score[:, 0]


def _raised(damping: Tensor) -> Tensor:
    return (damping * _DAMPING_UP).clamp(min=1.0)


def _lowered(damping: Tensor) -> Tensor:
    lower = damping / _DAMPING_DOWN
    return torch.where(lower < _LEAST_DAMPING, 0.0, lower)
