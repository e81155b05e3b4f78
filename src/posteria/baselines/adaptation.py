"""Warm-up: a step size per dataset by dual averaging, and a metric per dataset from windows of draws.

The schedule is Stan's (reference manual, "HMC algorithm parameters"): an initial stretch for the step size alone,
windows of doubling length, each of which ends with a new metric, and a last stretch for the step size. What is
learned is pooled over the chains of a dataset, so that many chains make it quick. The first metric is the curvature at
a mode, which spares the first windows most of their leapfrog steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.ascent import climb
from posteria.baselines.base import Point, evaluate, noise
from posteria.baselines.dynamics import Metric, acceptance, chosen, leapfrog
from posteria.types import LogJoint

_FIRST_WINDOW = 25
_EDGE = 0.15  # share of the warm-up before the first window, and after the last one
# Dual averaging's constants (Hoffman & Gelman 2014, section 3.2).
_GAMMA, _OFFSET, _KAPPA = 0.05, 10.0, 0.75
_MOST_DOUBLINGS = 60
_MOST_CLIMBS, _DAMPING = 50, 1.0
# Chains that start further below the best one than a posterior draw would lie are led uphill first.
_NEAR_PER_PARAMETER, _NEAR, _MOST_APPROACHES = 2.0, 10.0, 40
# A full covariance needs so many draws per parameter; windows that see fewer would spoil the mode's metric.
_DRAWS_PER_PARAMETER = 20
# Stan's regularisation of the covariance: as if so many draws had had this variance.
_PRIOR_DRAWS, _PRIOR_VARIANCE = 5.0, 1e-3


@dataclass(frozen=True)
class StepSize:
    """Nesterov's dual averaging of the log step size (Hoffman & Gelman 2014, algorithm 5), per dataset.

    Attributes:
        log_step, log_average: (B,) the step to try next, and the average to keep in the end.
        gap: (B,) running average of target minus acceptance.
        centre: (B,) what steps are pulled to.
        count: updates so far.
    """

    log_step: Tensor
    log_average: Tensor
    gap: Tensor
    centre: Tensor
    count: int = 0

    @classmethod
    def at(cls, step_size: Tensor) -> StepSize:
        """Start from step sizes (B,)."""
        return cls(step_size.log(), step_size.log(), torch.zeros_like(step_size), math.log(10.0) + step_size.log())

    def learn(self, accept: Tensor, target: float) -> StepSize:
        """After trajectories that were accepted with mean probability accept (B,)."""
        count = self.count + 1
        weight = 1.0 / (count + _OFFSET)
        gap = (1 - weight) * self.gap + weight * (target - accept)
        log_step = self.centre - math.sqrt(count) / _GAMMA * gap
        keep = count**-_KAPPA
        return replace(self, log_step=log_step, log_average=keep * log_step + (1 - keep) * self.log_average, gap=gap,
                       count=count)


@dataclass(frozen=True)
class Moments:
    """Running covariance of draws, around each chain's own mean and pooled over the chains of a dataset.

    Around their own means, because chains in different modes would stretch the metric across both.

    Attributes:
        mean: (B, C, P) of every chain.
        scatter: (B, P) or (B, P, P) sum of (products of) deviations.
        count: draws per chain.
    """

    mean: Tensor
    scatter: Tensor
    count: int = 0

    @classmethod
    def empty(cls, z: Tensor, dense: bool) -> Moments:
        """No draws yet of chains like z (B, C, P)."""
        shape = (len(z), z.shape[-1]) + (z.shape[-1:] if dense else ())
        return cls(torch.zeros_like(z), z.new_zeros(shape))

    def add(self, z: Tensor) -> Moments:
        """With one more draw z (B, C, P) of every chain (Welford's update)."""
        count, away = self.count + 1, z - self.mean
        mean = self.mean + away / count
        rest = z - mean
        scatter = away.mT @ rest if self.scatter.ndim == 3 else (away * rest).sum(1)
        return Moments(mean, self.scatter + scatter, count)

    def metric(self, active: Tensor) -> Metric:
        """The root of the regularised covariance; one for inactive parameters (B, P)."""
        num_draws = self.mean.shape[1] * (self.count - 1)
        weight = num_draws / (num_draws + _PRIOR_DRAWS)
        floor = (1 - weight) * _PRIOR_VARIANCE
        covariance = weight * self.scatter / num_draws
        if covariance.ndim == 2:
            return Metric(torch.where(active, covariance + floor, 1.0).sqrt())
        both = active[:, :, None] & active[:, None, :]
        covariance = torch.where(both, covariance, 0.0) + torch.diag_embed(torch.where(active, floor, 1.0))
        root, failed = torch.linalg.cholesky_ex(covariance)
        diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1).sqrt())
        return Metric(torch.where((failed > 0)[:, None, None], diagonal, root))


@dataclass(frozen=True)
class Tuning:
    """What the warm-up has learned so far, and the iterations after which its windows end."""

    metric: Metric
    step: StepSize
    moments: Moments
    ends: tuple[int, ...]


def windows(num_warmup: int, shortest: int = _FIRST_WINDOW) -> tuple[int, ...]:
    """The iterations after which windows end, the first one where the first window begins; none in a short warm-up."""
    edge = int(_EDGE * num_warmup)
    stop, length = num_warmup - edge, max(shortest, _FIRST_WINDOW)
    if stop - edge < length:
        return ()
    ends = [edge]
    while ends[-1] < stop:
        end = ends[-1] + length
        length *= 2
        ends.append(stop if end + length > stop else end)
    return tuple(ends)


class Warmup:
    """Adapts step size and metric.

    Args:
        log_joint: the target.
        num_warmup: iterations that adapt.
        target_accept: the mean acceptance probability that step sizes aim at.
        dense_up_to: up to this many parameters the metric is a full covariance; beyond, its diagonal.
    """

    def __init__(self, log_joint: LogJoint, num_warmup: int, target_accept: float, dense_up_to: int):
        self.log_joint, self.num_warmup, self.target = log_joint, num_warmup, target_accept
        self.dense_up_to = dense_up_to

    def init(self, point: Point, generator: torch.Generator) -> tuple[Point, Tuning]:
        """Where to start, with the metric of a mode and a step size that is about right for one step."""
        metric = metric_at_mode(self.log_joint, point, self.dense_up_to)
        if self.num_warmup:
            point = approach(self.log_joint, metric, point)
        chains, parameters = point.z.shape[1:]
        shortest = -(-_DRAWS_PER_PARAMETER * parameters // chains) if parameters <= self.dense_up_to else 0
        return point, self._restarted(metric, point, windows(self.num_warmup, shortest), generator)

    def update(self, tuning: Tuning, point: Point, accept: Tensor, iteration: int,
               generator: torch.Generator) -> Tuning:
        """After an iteration (0, 1, ...) that ended at a point, accepted with mean probability accept (B,)."""
        if iteration >= self.num_warmup:
            return tuning
        tuning = replace(tuning, step=tuning.step.learn(accept, self.target))
        if not self._adapting(tuning, iteration):
            return tuning
        tuning = replace(tuning, moments=tuning.moments.add(point.z))
        if iteration + 1 not in tuning.ends:
            return tuning
        return self._restarted(tuning.moments.metric(self.log_joint.active), point, tuning.ends, generator)

    def _adapting(self, tuning: Tuning, iteration: int) -> bool:
        """The iteration lies in a window."""
        return bool(tuning.ends) and tuning.ends[0] <= iteration < tuning.ends[-1]

    def step_size(self, tuning: Tuning, iteration: int) -> Tensor:
        """(B,) the step size to use: the one to try during the warm-up, then the average."""
        return (tuning.step.log_step if iteration < self.num_warmup else tuning.step.log_average).exp()

    def _restarted(self, metric: Metric, point: Point, ends: tuple[int, ...], generator: torch.Generator) -> Tuning:
        step = reasonable_step_size(self.log_joint, metric, point, generator)
        moments = Moments.empty(point.z, point.z.shape[-1] <= self.dense_up_to)
        return Tuning(metric, StepSize.at(step), moments, ends)


def metric_at_mode(log_joint: LogJoint, point: Point, dense_up_to: int) -> Metric:
    """The inverse curvature at the mode that lies uphill of each dataset's best chain; unit scales where it is lost."""
    best = point.log_density.argmax(1)
    z = point.z[torch.arange(len(best)), best]
    curvature = climb(log_joint, z, _MOST_CLIMBS, _DAMPING, dense_up_to).curvature
    factor = curvature.factor()
    if factor is None:
        return Metric(_finite(curvature.diagonal().rsqrt(), torch.ones_like(z)))
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand_as(factor)
    covariance = torch.cholesky_solve(eye, factor)
    root, failed = torch.linalg.cholesky_ex(0.5 * (covariance + covariance.mT))
    return Metric(_finite(torch.where((failed > 0)[:, None, None], torch.nan, root), eye))


def _finite(root: Tensor, otherwise: Tensor) -> Tensor:
    """The roots of the datasets where all entries are finite."""
    lost = ~torch.isfinite(root).flatten(1).all(1)
    return torch.where(lost.view(-1, *[1] * (root.ndim - 1)), otherwise, root)


def approach(log_joint: LogJoint, metric: Metric, point: Point) -> Point:
    """Lead the chains that start far below their dataset's best one uphill; the others stay where they are.

    One step size serves all chains of a dataset, and one that suits the bulk would leave far chains stuck.
    """
    near = _NEAR_PER_PARAMETER * log_joint.active.sum(-1) + _NEAR
    size = torch.ones_like(point.log_density)
    for _ in range(_MOST_APPROACHES):
        far = point.log_density < (point.log_density.amax(1) - near)[:, None]
        if not far.any():
            break
        uphill = metric.velocity(metric.pull(point.score))
        proposal = evaluate(log_joint, point.z + torch.where(far, size, 0.0)[..., None] * uphill)
        better = far & (proposal.log_density > point.log_density)
        point, size = chosen(better, proposal, point), torch.where(better, 2.0 * size, 0.25 * size)
    return point


def reasonable_step_size(log_joint: LogJoint, metric: Metric, point: Point, generator: torch.Generator) -> Tensor:
    """(B,) by doubling or halving from one until one leapfrog step's mean acceptance crosses one half.

    Hoffman & Gelman 2014, algorithm 4, for all datasets at once.
    """
    momentum = noise(log_joint, point.z, generator)
    step = torch.ones_like(point.z[:, 0, 0])
    rising = _one_step(log_joint, metric, point, momentum, step) > 0.5
    searching = torch.ones_like(rising)
    for _ in range(_MOST_DOUBLINGS):
        proposed = torch.where(searching, torch.where(rising, 2 * step, 0.5 * step), step)
        crossed = (_one_step(log_joint, metric, point, momentum, proposed) > 0.5) != rising
        step = torch.where(crossed & rising, step, proposed)  # the last step that was accepted
        searching = searching & ~crossed
        if not searching.any():
            break
    return step


def _one_step(log_joint: LogJoint, metric: Metric, point: Point, momentum: Tensor, step: Tensor) -> Tensor:
    once = torch.ones_like(step, dtype=torch.long)
    accept, _ = acceptance(point, momentum, *leapfrog(log_joint, metric, point, momentum, step, once))
    return accept.mean(1)
