"""Laplace's approximation: the mode, and the Gaussian whose precision is the curvature there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.ascent import climb
from posteria.baselines.base import Info, Point, at_least, evaluate, moved, noise, start
from posteria.types import Curvature, LogJoint

_DAMPING = 1.0


def build(log_joint: LogJoint, iterations: int = 200, num_starts: int = 4, dense_up_to: int = 1024) -> Laplace:
    """A sampler of independent draws around the highest mode that it finds.

    Args:
        log_joint: the target.
        iterations: at most so many steps uphill from every start.
        num_starts: how many of the starting points are climbed from.
        dense_up_to: up to this many parameters the curvature is a full matrix; beyond, its diagonal.

    Raises:
        InputError: a setting out of its range.
    """
    return Laplace(log_joint, at_least("iterations", iterations, 1), at_least("num_starts", num_starts, 1),
                   at_least("dense_up_to", dense_up_to, 0))


@dataclass(frozen=True)
class State:
    """The last draws, the mode (B, P), and the curvature there."""

    point: Point
    mode: Tensor
    curvature: Curvature

    @property
    def z(self) -> Tensor:
        return self.point.z


class Laplace:
    """See :func:`build`."""

    num_warmup = 0

    def __init__(self, log_joint: LogJoint, iterations: int, num_starts: int, dense_up_to: int):
        self.log_joint, self.iterations = log_joint, iterations
        self.num_starts, self.dense_up_to = num_starts, dense_up_to

    def init(self, z: Tensor, generator: torch.Generator) -> State:
        """The highest mode uphill of some of the places z (B, C, P)."""
        point = start(self.log_joint, z)
        modes = [self._climb(point.z[:, i]) for i in range(min(self.num_starts, z.shape[1]))]
        found = evaluate(self.log_joint, torch.stack(modes, 1))
        mode = found.z[torch.arange(len(z), device=z.device), found.log_density.argmax(1)]
        return State(point, mode, self.log_joint.curvature(mode[:, None], self.dense_up_to))

    @torch.no_grad()
    def update(self, state: State, generator: torch.Generator) -> tuple[State, Info]:
        """Fresh draws."""
        drawn, factor = noise(self.log_joint, state.z, generator), state.curvature.factor()
        if factor is None:
            offset = drawn * state.curvature.diagonal().rsqrt()[:, None]
        else:
            offset = torch.linalg.solve_triangular(factor.mT, drawn.mT, upper=True).mT
        z = torch.where(self.log_joint.active[:, None], state.mode[:, None] + offset, 0.0)
        state = replace(state, point=evaluate(self.log_joint, z))
        return state, moved(state.point, torch.zeros_like(z[:, 0, 0]))

    def _climb(self, z: Tensor) -> Tensor:
        return climb(self.log_joint, z, self.iterations, _DAMPING, self.dense_up_to).z
