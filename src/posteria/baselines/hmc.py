"""Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011, arXiv 1206.1901): a correct one, and the paper's.

:func:`build` adapts step size and metric per dataset, and takes trajectories of a length that varies from iteration to
iteration, so that no parameter can come back to where it was for ever. :func:`build_paper` is the paper's recipe (arXiv
2502.06601, appendix on baselines): 5 leapfrog steps, step sizes that fall whatever happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.baselines.adaptation import Tuning, Warmup
from posteria.baselines.base import Info, Point, at_least, fraction, start
from posteria.baselines.dynamics import Metric, Steer, transition
from posteria.baselines.schedule import Falling
from posteria.errors import InputError
from posteria.types import LogJoint

# Trajectories last a quarter of a normal target's period on average, varied by this share.
_QUARTER_PERIOD, _JITTER = 0.5 * math.pi, 0.5


def build(log_joint: LogJoint, num_warmup: int = 500, target_accept: float = 0.8, dense_up_to: int = 128,
          trajectory: float = _QUARTER_PERIOD, max_steps: int = 64, steer: Steer | None = None) -> Hmc:
    """A sampler whose step size and metric are learned in the warm-up.

    Args:
        log_joint: the target.
        num_warmup: iterations that adapt.
        target_accept: mean acceptance probability to aim at.
        dense_up_to: up to this many parameters the metric is a full covariance; beyond, its diagonal.
        trajectory: mean length of trajectories, in units of the metric: pi / 2 takes a normal target to an
            independent draw; 0 is one leapfrog step.
        max_steps: most leapfrog steps of a trajectory.
        steer: cheaper gradients (B, C, P) at z (B, C, P), which lead trajectories in place of the log joint's own;
            draws are as right, and fewer of them accepted where it is far off.

    Raises:
        InputError: a setting out of its range.
    """
    if not trajectory >= 0:
        raise InputError.of("trajectory", repr(trajectory), "a length of 0 or more")
    warmup = Warmup(log_joint, at_least("num_warmup", num_warmup, 0), fraction("target_accept", target_accept),
                    at_least("dense_up_to", dense_up_to, 0))
    return Hmc(log_joint, warmup, trajectory, at_least("max_steps", max_steps, 1), steer)


def build_paper(log_joint: LogJoint, num_warmup: int = 5_000, iterations: int = 10_000, first: float = 1e-3,
                last: float = 1e-5, num_steps: int = 5) -> PaperHmc:
    """The paper's sampler: no adaptation, and step sizes that fall geometrically from first to last.

    Args:
        log_joint: the target.
        num_warmup: iterations whose draws do not count.
        iterations: after so many the step size has reached its last value.
        first, last: step sizes, in prior standard deviations.
        num_steps: leapfrog steps of a trajectory.

    Raises:
        InputError: a setting out of its range.
    """
    return PaperHmc(log_joint, at_least("num_warmup", num_warmup, 0), Falling(first, last, iterations),
                    at_least("num_steps", num_steps, 1))


@dataclass(frozen=True)
class State:
    """Where the chains are, what the warm-up has learned, and how many updates were made."""

    point: Point
    tuning: Tuning
    iteration: int = 0

    @property
    def z(self) -> Tensor:
        return self.point.z


class Hmc:
    """See :func:`build`."""

    def __init__(self, log_joint: LogJoint, warmup: Warmup, trajectory: float, max_steps: int,
                 steer: Steer | None = None):
        self.log_joint, self.warmup, self.trajectory, self.max_steps = log_joint, warmup, trajectory, max_steps
        self.num_warmup, self.steer = warmup.num_warmup, steer

    def init(self, z: Tensor, generator: torch.Generator) -> State:
        """The state at z (B, C, P), with a first guess of metric and step sizes."""
        return State(*self.warmup.init(start(self.log_joint, z), generator))

    @torch.no_grad()
    def update(self, state: State, generator: torch.Generator) -> tuple[State, Info]:
        """One trajectory of every chain."""
        step = self.warmup.step_size(state.tuning, state.iteration)
        move = transition(self.log_joint, state.tuning.metric, state.point, step, self._num_steps(step, generator),
                          generator, self.steer)
        tuning = self.warmup.update(state.tuning, move.point, move.info.accept.mean(1), state.iteration, generator)
        return State(move.point, tuning, state.iteration + 1), move.info

    def _num_steps(self, step: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand((), device=step.device, generator=generator)
        length = self.trajectory * (1 + _JITTER * (2 * share - 1))
        return (length / step).ceil().clamp(1, self.max_steps).long()


@dataclass(frozen=True)
class PaperState:
    """Where the chains are, and how many updates were made."""

    point: Point
    iteration: int = 0

    @property
    def z(self) -> Tensor:
        return self.point.z


class PaperHmc:
    """See :func:`build_paper`."""

    def __init__(self, log_joint: LogJoint, num_warmup: int, schedule: Falling, num_steps: int):
        self.log_joint, self.num_warmup, self.schedule, self.num_steps = log_joint, num_warmup, schedule, num_steps

    def init(self, z: Tensor, generator: torch.Generator) -> PaperState:
        """The state at z (B, C, P)."""
        return PaperState(start(self.log_joint, z))

    @torch.no_grad()
    def update(self, state: PaperState, generator: torch.Generator) -> tuple[PaperState, Info]:
        """One trajectory of every chain."""
        z = state.z
        step = torch.full_like(z[:, 0, 0], self.schedule(state.iteration))
        num_steps = torch.full_like(step, self.num_steps, dtype=torch.long)
        move = transition(self.log_joint, Metric.identity(z), state.point, step, num_steps, generator)
        return PaperState(move.point, state.iteration + 1), move.info
