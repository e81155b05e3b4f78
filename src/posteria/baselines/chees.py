"""ChEES-HMC (Hoffman, Radul, Sountsov 2021): Hamiltonian Monte Carlo whose trajectory length adapts across chains.

Their criterion is the change in the estimator of the expected square, 1/4 E[(|x' - E x'|² - |x - E x|²)²], here with x
in units of the metric. The length climbs the criterion per leapfrog step, by stochastic gradients: a metric makes
targets nearly isotropic, where the criterion alone is as high for very long trajectories as for short ones (TensorFlow
Probability's ``chees_rate_criterion`` divides likewise). Trajectories are jittered by a Halton sequence. Step size and
metric adapt as in :mod:`posteria.baselines.hmc`; they have one step size without a metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.baselines.adaptation import Tuning, Warmup
from posteria.baselines.base import Info, Point, at_least, fraction, start
from posteria.baselines.dynamics import Metric, Move, transition
from posteria.errors import InputError
from posteria.types import LogJoint

# Adam's constants for the log length (their section 4), and the decay of its average.
_RATE, _SECOND, _FLOOR, _KAPPA = 0.025, 0.95, 1e-12, 0.75
_LEAST_CHAINS = 2
# In units of the metric, where a normal target's period is 2 pi.
_SHORTEST, _LONGEST = 0.5, 100.0
_ARRIVED = 0.15  # share of the warm-up


def build(log_joint: LogJoint, num_warmup: int = 500, target_accept: float = 0.651, dense_up_to: int = 128,
          max_steps: int = 64) -> Chees:
    """A sampler that learns trajectory lengths too; it wants many chains, 16 or more.

    Args:
        log_joint: the target.
        num_warmup: iterations that adapt.
        target_accept: mean acceptance probability to aim at; the default is theirs.
        dense_up_to: up to this many parameters the metric is a full covariance; beyond, its diagonal.
        max_steps: most leapfrog steps of a trajectory.

    Raises:
        InputError: a setting out of its range.
    """
    warmup = Warmup(log_joint, at_least("num_warmup", num_warmup, 0), fraction("target_accept", target_accept),
                    at_least("dense_up_to", dense_up_to, 0))
    return Chees(log_joint, warmup, at_least("max_steps", max_steps, 1))


@dataclass(frozen=True)
class Length:
    """The longest trajectory (B,) in units of the metric, as a log; its average, and Adam's squared gradient."""

    log_length: Tensor
    log_average: Tensor
    second: Tensor
    count: int = 0

    def learn(self, gradient: Tensor) -> Length:
        """After a gradient (B,) of what is climbed with respect to the log length."""
        count = self.count + 1
        second = _SECOND * self.second + (1 - _SECOND) * gradient.square()
        step = _RATE * gradient / ((second / (1 - _SECOND**count)).sqrt() + _FLOOR)
        log_length = (self.log_length + step).clamp(math.log(_SHORTEST), math.log(_LONGEST))
        keep = count**-_KAPPA
        return Length(log_length, keep * log_length + (1 - keep) * self.log_average, second, count)


@dataclass(frozen=True)
class State:
    """Where the chains are, what the warm-up has learned, and how many updates were made."""

    point: Point
    tuning: Tuning
    length: Length
    iteration: int = 0

    @property
    def z(self) -> Tensor:
        return self.point.z


class Chees:
    """See :func:`build`."""

    def __init__(self, log_joint: LogJoint, warmup: Warmup, max_steps: int):
        self.log_joint, self.warmup, self.max_steps = log_joint, warmup, max_steps
        self.num_warmup = warmup.num_warmup

    def init(self, z: Tensor, generator: torch.Generator) -> State:
        """The state at z (B, C, P), with trajectories of one unit of the metric.

        Raises:
            InputError: fewer than two chains.
        """
        if z.ndim == 3 and z.shape[1] < _LEAST_CHAINS:
            raise InputError.of("num_chains", z.shape[1], f"{_LEAST_CHAINS} or more: chains learn from each other")
        zeros = torch.zeros_like(z[:, 0, 0])
        return State(*self.warmup.init(start(self.log_joint, z), generator), Length(zeros, zeros, zeros))

    @torch.no_grad()
    def update(self, state: State, generator: torch.Generator) -> tuple[State, Info]:
        """One trajectory of every chain."""
        warming = state.iteration < self.num_warmup
        step = self.warmup.step_size(state.tuning, state.iteration)
        length = (state.length.log_length if warming else state.length.log_average).exp()
        num_steps = (halton(state.iteration + 1) * length / step).ceil().clamp(1, self.max_steps).long()
        move = transition(self.log_joint, state.tuning.metric, state.point, step, num_steps, generator)
        # Chains that are still on their way in ask for long trajectories.
        arrived = warming and state.iteration >= _ARRIVED * self.num_warmup
        learned = self._learned(state, move, step, num_steps) if arrived else state.length
        tuning = self.warmup.update(state.tuning, move.point, move.info.accept.mean(1), state.iteration, generator)
        return replace(state, point=move.point, tuning=tuning, length=learned, iteration=state.iteration + 1), move.info

    def _learned(self, state: State, move: Move, step: Tensor, num_steps: Tensor) -> Length:
        value, slope = criterion(state.tuning.metric, state.point, move)
        # T d/dT (criterion / T), up to a positive factor which Adam takes out.
        return state.length.learn(step * num_steps * slope - value)


def criterion(metric: Metric, point: Point, move: Move) -> tuple[Tensor, Tensor]:
    """(B,) the criterion and its derivative in the time at the end of the trajectories.

    Means over a dataset's chains, weighted by their acceptance.
    """
    accept = move.info.accept
    counts = (accept > 0)[..., None]
    before, after = metric.whiten(point.z), torch.where(counts, metric.whiten(move.proposal.z), 0.0)
    before = before - before.mean(1, keepdim=True)
    after = after - _weighted(after, accept) / accept.mean(1)[:, None, None].clamp(min=_FLOOR)
    growth = after.square().sum(-1) - before.square().sum(-1)
    speed = (after * torch.where(counts, move.momentum, 0.0)).sum(-1)
    return (accept * growth.square()).mean(1) / 4, (accept * growth * speed).mean(1)


def _weighted(values: Tensor, accept: Tensor) -> Tensor:
    """(B, 1, P) mean over chains of values (B, C, P) times accept (B, C)."""
    return (accept[..., None] * values).mean(1, keepdim=True)


def halton(index: int) -> float:
    """Element 1, 2, ... of the Halton sequence in base 2, in (0, 1)."""
    value, share = 0.0, 0.5
    while index:
        value, index, share = value + share * (index % 2), index // 2, share / 2
    return value
