"""Langevin dynamics: unadjusted, as in the paper, and with Metropolis' accept step.

The unadjusted one moves by step / 2 * score + √step * noise (Welling & Teh 2011, equation 4, on all rows at once). It
targets the posterior only as the step goes to zero, and the paper's steps are so short that it stays near its start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.baselines import hmc
from posteria.baselines.base import Info, Point, at_least, evaluate, moved, noise, start
from posteria.baselines.dynamics import chosen
from posteria.baselines.schedule import Falling
from posteria.types import LogJoint


def build(log_joint: LogJoint, num_warmup: int = 1000, target_accept: float = 0.574, dense_up_to: int = 128) -> hmc.Hmc:
    """The Metropolis-adjusted Langevin algorithm: Hamiltonian moves of one leapfrog step (Neal 2011, section 5.5.2).

    By default it aims at the acceptance that is best in high dimensions (Roberts & Rosenthal 1998). Arguments as
    :func:`posteria.baselines.hmc.build`.
    """
    return hmc.build(log_joint, num_warmup, target_accept, dense_up_to, trajectory=0.0, max_steps=1)


def build_paper(log_joint: LogJoint, num_warmup: int = 5_000, iterations: int = 10_000, first: float = 1e-4,
                last: float = 1e-6) -> Langevin:
    """The paper's sampler (arXiv 2502.06601): no accept step, step sizes that fall geometrically.

    Args:
        log_joint: the target.
        num_warmup: iterations whose draws do not count.
        iterations: after so many the step size has reached its last value.
        first, last: step sizes, in units of prior variances.

    Raises:
        InputError: a setting out of its range.
    """
    return Langevin(log_joint, at_least("num_warmup", num_warmup, 0), Falling(first, last, iterations))


@dataclass(frozen=True)
class State:
    """Where the chains are, and how many updates were made."""

    point: Point
    iteration: int = 0

    @property
    def z(self) -> Tensor:
        return self.point.z


class Langevin:
    """See :func:`build_paper`."""

    def __init__(self, log_joint: LogJoint, num_warmup: int, schedule: Falling):
        self.log_joint, self.num_warmup, self.schedule = log_joint, num_warmup, schedule

    def init(self, z: Tensor, generator: torch.Generator) -> State:
        """The state at z (B, C, P)."""
        return State(start(self.log_joint, z))

    @torch.no_grad()
    def update(self, state: State, generator: torch.Generator) -> tuple[State, Info]:
        """One step of every chain; a step to where the density is not finite is not made."""
        step = self.schedule(state.iteration)
        drawn = noise(self.log_joint, state.z, generator)
        proposal = evaluate(self.log_joint, state.z + 0.5 * step * state.point.score + math.sqrt(step) * drawn)
        info = moved(proposal, torch.full_like(state.z[:, 0, 0], step))
        point = chosen(~info.divergent, proposal, state.point)
        return State(point, state.iteration + 1), info
