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
    step = bounded(curvature.solve(score, strength))
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
        step = bounded(curvature.solve(score, strength))
    return Guess(z, curvature, score, torch.zeros_like(z), step, z - start)


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
