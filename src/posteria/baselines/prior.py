"""Draws of the prior: the starting points themselves, which nothing moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.baselines.base import Info, Point, moved, start
from posteria.types import LogJoint


def build(log_joint: LogJoint) -> Prior:
    """A sampler that stays where it starts: started at prior draws, it is the prior."""
    return Prior(log_joint)


@dataclass(frozen=True)
class State:
    """The prior draws."""

    point: Point

    @property
    def z(self) -> Tensor:
        return self.point.z


class Prior:
    """See :func:`build`."""

    num_warmup = 0

    def __init__(self, log_joint: LogJoint):
        self.log_joint = log_joint

    def init(self, z: Tensor, generator: torch.Generator) -> State:
        """The state at prior draws z (B, C, P)."""
        return State(start(self.log_joint, z))

    def update(self, state: State, generator: torch.Generator) -> tuple[State, Info]:
        """The same state."""
        return state, moved(state.point, torch.zeros_like(state.z[:, 0, 0]))
