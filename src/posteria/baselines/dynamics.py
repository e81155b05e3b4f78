"""Hamiltonian moves of all datasets and chains at once: a metric, leapfrog steps, and the accept step.

With the metric's root L (covariance L Lᵀ), the momentum p is kept in the whitened coordinates u = L⁻¹ z, where it is
N(0, I): dz/dt = L p, dp/dt = Lᵀ ∇ log density. That is Hamiltonian Monte Carlo with mass matrix (L Lᵀ)⁻¹
(Neal 2011, arXiv 1206.1901, section 5.4.2.4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.baselines.base import Info, Point, evaluate, noise
from posteria.types import LogJoint

# (B, C, P) places -> (B, C, P) gradients there.
Steer = Callable[[Tensor], Tensor]
# An energy error past this is a divergence (Stan's limit).
_LARGEST_ERROR = 1000.0


@dataclass(frozen=True)
class Metric:
    """The scales that moves are made in: (B, P) standard deviations, or (B, P, P) the root L of a covariance."""

    root: Tensor

    @classmethod
    def identity(cls, like: Tensor) -> Metric:
        """Unit scales for z (B, C, P)."""
        return cls(torch.ones_like(like[:, 0]))

    @property
    def dense(self) -> bool:
        """The root is a matrix."""
        return self.root.ndim == 3

    def velocity(self, momentum: Tensor) -> Tensor:
        """(B, C, P) L p."""
        return momentum @ self.root.mT if self.dense else momentum * self.root[:, None]

    def pull(self, score: Tensor) -> Tensor:
        """(B, C, P) Lᵀ score."""
        return score @ self.root if self.dense else score * self.root[:, None]

    def whiten(self, z: Tensor) -> Tensor:
        """(B, C, P) L⁻¹ z."""
        if self.dense:
            return torch.linalg.solve_triangular(self.root, z.mT, upper=False).mT
        return z / self.root[:, None]


@dataclass(frozen=True)
class Move:
    """A transition: where the chains are now, what was proposed, and the info."""

    point: Point
    proposal: Point
    momentum: Tensor  # (B, C, P) at the end of the trajectory
    info: Info


def leapfrog(log_joint: LogJoint, metric: Metric, point: Point, momentum: Tensor, step_size: Tensor,
             num_steps: Tensor, steer: Steer | None = None) -> tuple[Point, Tensor]:
    """The end of a trajectory of num_steps (B,) leapfrog steps of step_size (B,); both may differ between datasets.

    With ``steer``, its gradients lead the trajectory, and the density is asked for at the end alone. Any function of z
    leaves trajectories reversible and their volume as it is, and so the accept step right.
    """
    for i in range(int(num_steps.max())):
        size = torch.where(i < num_steps, step_size, 0.0)[:, None, None]  # who is done stands still
        momentum = momentum + 0.5 * size * metric.pull(point.score)
        z = point.z + size * metric.velocity(momentum)
        point = evaluate(log_joint, z) if steer is None else replace(point, z=z, score=steer(z))
        momentum = momentum + 0.5 * size * metric.pull(point.score)
    return (point if steer is None else replace(evaluate(log_joint, point.z), score=point.score)), momentum


def transition(log_joint: LogJoint, metric: Metric, point: Point, step_size: Tensor, num_steps: Tensor,
               generator: torch.Generator, steer: Steer | None = None) -> Move:
    """One move of Hamiltonian Monte Carlo: fresh momentum, a trajectory, and Metropolis' accept step.

    Args:
        log_joint: the target.
        metric: scales of the moves.
        point: where the chains are.
        step_size: (B,) of a leapfrog step, in units of the metric.
        num_steps: (B,) long, must not depend on the chains' places.
        generator: the source of randomness.
        steer: see :func:`leapfrog`.
    """
    before = noise(log_joint, point.z, generator)
    proposal, after = leapfrog(log_joint, metric, point, before, step_size, num_steps, steer)
    accept, divergent = acceptance(point, before, proposal, after)
    draw = torch.rand(accept.shape, dtype=accept.dtype, device=accept.device, generator=generator)
    return Move(chosen(draw < accept, proposal, point), proposal, after, Info(accept, divergent, step_size))


def acceptance(point: Point, before: Tensor, proposal: Point, after: Tensor) -> tuple[Tensor, Tensor]:
    """Probability (B, C) of accepting the end of a trajectory, and whether it diverged (B, C)."""
    kinetic = 0.5 * (before.square().sum(-1) - after.square().sum(-1))
    gain = proposal.log_density + kinetic - point.log_density
    possible = torch.isfinite(proposal.log_density) & torch.isfinite(kinetic)
    accept = torch.where(possible, gain.clamp(max=0.0).exp(), 0.0)
    return accept, ~possible | (gain < -_LARGEST_ERROR)


def chosen(take: Tensor, new: Point, old: Point) -> Point:
    """The new point where take (B, C), else the old one."""
    return Point(torch.where(take[..., None], new.z, old.z), torch.where(take, new.log_density, old.log_density),
                 torch.where(take[..., None], new.score, old.score))
