"""Normals around most parameters, given a few: what a nested proposal is made of.

Given hyperparameters h the others r are nearly normal. Their normal is found by Newton steps with the likelihood's
Gauss-Newton curvature, exact after one for normal likelihoods and priors. A prior that is not normal is averaged over
the normal itself, as in natural-gradient variational inference (Khan & Nielsen 2018): its kinks and tails then have the
weight that the posterior gives them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.ascent import bounded
from posteria.refinement.arrow import ArrowFactor
from posteria.refinement.problem import Nesting, Problem
from posteria.refinement.proposal import log_normal

# A centre is found when the next step's squared length, in standard deviations, is less than this, and the spread
# changes by less than a share. More steps than these would make the proposal only a little better.
_CONVERGED, _SAME_SPREAD = 1e-2, 0.1
_STEPS = 8
# A step after which the next one would be so much longer went too far, and is cut.
_WORSE, _SHORTER = 2.0, 0.25
_LOG_T4 = math.log(0.375)


def heavier(noise: Tensor) -> Tensor:
    """Standard normal numbers as draws of Student's t with 4 degrees of freedom, by its quantiles (Shaw 2006)."""
    spare = 4.0 * torch.special.ndtr(noise) * torch.special.ndtr(-noise)
    root = spare.clamp(1e-30, 1.0).sqrt()
    return 2.0 * noise.sign() * (torch.cos(torch.acos(root) / 3.0) / root - 1.0).clamp(min=0.0).sqrt()


@dataclass(frozen=True)
class Conditional:
    """q(r | h) of S values of h for each of B datasets.

    Its draws are normal; in a share of them the standardised offsets are independent draws of Student's t with 4
    degrees of freedom instead, so that single parameters may lie far out.

    Attributes:
        z: (B, S, P) h, and the normals' centres elsewhere.
        factor: of the precisions of r.
        active: (B, R) bool.
        nesting: which parameters are which.
        looks: how often the likelihood was asked for, per value of h, rounded up.
    """

    z: Tensor
    factor: ArrowFactor
    active: Tensor
    nesting: Nesting
    looks: int

    def at(self, noise: Tensor) -> Tensor:
        """(B, S, M, P) points at M standardised offsets from each centre, (B, S, M, R) or fewer axes."""
        noise = torch.where(self.active[:, None, None], noise, 0.0).expand(*self.z.shape[:2], -1, -1)
        points = self.z[:, :, None].expand(-1, -1, noise.shape[2], -1).clone()
        points[..., self.nesting.rest] += self.factor.colour(noise)
        return points

    def log_ratio(self, problem: Problem, points: Tensor, noise: Tensor, heavy: float) -> Tensor:
        """(B, S, M) log joint density at points of :meth:`at`, over their density given h."""
        log_joint = problem.density(points.flatten(1, 2)).unflatten(1, points.shape[1:3])
        return log_joint - self.log_prob(noise, heavy)

    def log_prob(self, noise: Tensor, heavy: float) -> Tensor:
        """(B, S, M) log density of r at offsets (B, S, M, R) or fewer axes, of which a share has heavy tails."""
        square = torch.where(self.active[:, None, None], noise.square(), 0.0)
        size = self.active.sum(-1).to(square)[:, None, None]
        return _log_offsets(square, size, heavy) + self.factor.half_log_det[..., None]

    def log_prob_apart(self, noise: Tensor, common: float, own: float) -> tuple[Tensor, Tensor]:
        """Log density of the common parameters (B, S, M), and of each entry's own given those (B, S, M, G).

        Args:
            noise: (S, M, R) offsets.
            common, own: share of each that has heavy tails.
        """
        outer, entries = len(self.nesting.common), self.nesting.own.shape
        square = torch.where(self.active[:, None, None], noise.square(), 0.0)
        each, size = (part[..., outer:].unflatten(-1, entries) for part in (square, self.active))
        log_common = _log_offsets(square[..., :outer], self.active[:, None, None, :outer].sum(-1).to(square), common)
        log_each = _log_offsets(each, size.sum(-1).to(square)[:, None, None], own)
        return (log_common + _half_log_det(self.factor.common)[..., None],
                log_each + _half_log_det(self.factor.own)[:, :, None])

    def offsets(self, z: Tensor) -> Tensor:
        """(B, S, R) standardised offsets of the points z (B, S, P), which have this h."""
        return self.factor.whiten((z - self.z)[..., self.nesting.rest])


def _half_log_det(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _log_offsets(square: Tensor, size: Tensor, heavy: float) -> Tensor:
    """(...) log density of standardised offsets with these squares (..., E), of which so many exist."""
    density = log_normal(square.sum(-1), size)
    if not heavy:
        return density
    tails = size * _LOG_T4 - 2.5 * torch.log1p(0.25 * square).sum(-1)
    return torch.logaddexp(density + math.log1p(-heavy), tails + math.log(heavy))


def conditional(problem: Problem, z: Tensor) -> Conditional:
    """The normals of r given the hyperparameters of z (B, S, P), searched from its other entries."""
    nesting = problem.nesting
    assert nesting is not None  # who asks has looked
    active = problem.active[:, nesting.rest]
    if nesting.exact:
        factor, step, _ = _newton(nesting, z, torch.ones_like(z[..., nesting.rest]), active)
        return Conditional(z.index_add(-1, nesting.rest, step), factor, active, nesting, 1)
    search, rows = _Search.at(z[..., nesting.rest]), torch.arange(len(z))[:, None]
    factor = search.look(nesting, z.index_copy(-1, nesting.rest, search.trial), active)
    looked = z.shape[1]
    while not search.done.all() and search.looks <= _STEPS:
        if search.looks == _STEPS:
            search.trial = search.base.clone()  # the factor must belong to the centre, found or not
        left = (rows, search.left())
        part = search[left]
        factor.put(left, part.look(nesting, z[left].index_copy(-1, nesting.rest, part.trial), active))
        search.put(left, part)
        looked += part.done.shape[1]
    return Conditional(z.index_copy(-1, nesting.rest, search.base), factor, active, nesting, -(-looked // z.shape[1]))


def _newton(nesting: Nesting, z: Tensor, spread: Tensor, active: Tensor) -> tuple[ArrowFactor, Tensor, Tensor]:
    """The factor of the precision of r at z (B, S, P), the step to the centre, and the score (B, S, R)."""
    score, curvature = nesting.likelihood(z)
    prior_score, prior_curvature = nesting.prior(z, spread)
    seen = active[:, None]
    factor = curvature.plus_diagonal(torch.where(seen, prior_curvature, 1.0)).factor()
    score = torch.where(seen, score + prior_score, 0.0)
    return factor, factor.solve(score), score


@dataclass
class _Search:
    """Newton's method for many centres at once; one that is found stays put, whatever the others do.

    Attributes:
        base: (B, S, R) the best centre so far.
        direction: (B, S, R) the step from there.
        length: (B, S) the share of it that is tried.
        gain: (B, S) squared length of the step in standard deviations.
        trial: (B, S, R) what is looked at next.
        spread: (B, S, R) standard deviations over which the prior is averaged.
        done: (B, S) bool.
        looks: how often the likelihood was asked for.
    """

    base: Tensor
    direction: Tensor
    length: Tensor
    gain: Tensor
    trial: Tensor
    spread: Tensor
    done: Tensor
    looks: int = 0

    @classmethod
    def at(cls, start: Tensor) -> _Search:
        """From centres (B, S, R)."""
        first = torch.full_like(start[..., 0], torch.inf)
        return cls(start, torch.zeros_like(start), torch.ones_like(first), first, start, torch.ones_like(start),
                   torch.zeros_like(first, dtype=torch.bool))

    def left(self) -> Tensor:
        """(B, m) places of the centres to be found, and of others where another dataset has more of them left."""
        most = int((~self.done).sum(-1).max())
        return self.done.to(torch.uint8).sort(dim=-1, stable=True).indices[:, :most]

    def __getitem__(self, places: tuple[Tensor, Tensor]) -> _Search:
        """That of some centres: numbers of datasets (B, 1), and places (B, m)."""
        return replace(self, **{name: getattr(self, name)[places] for name in _OF_CENTRES})

    def put(self, places: tuple[Tensor, Tensor], part: _Search) -> None:
        """Go on from what :meth:`__getitem__` gave, and has moved on."""
        for name in _OF_CENTRES:
            getattr(self, name)[places] = getattr(part, name)
        self.looks = part.looks

    def look(self, nesting: Nesting, z: Tensor, active: Tensor) -> ArrowFactor:
        """Move on from what is seen at z (B, S, P); returns the precision's factor there."""
        factor, step, score = _newton(nesting, z, self.spread, active)
        spread = factor.variances().sqrt() if nesting.smooth else self.spread
        same = ((spread / self.spread).log().abs().amax(-1) < _SAME_SPREAD)
        self._move(step, (score * step).sum(-1), same)
        self.spread = torch.where(self.done[..., None], self.spread, spread)
        self.looks += 1
        return factor

    def _move(self, step: Tensor, gain: Tensor, same: Tensor) -> None:
        worse = ~(gain <= _WORSE * self.gain) & ~self.done
        better = ~worse & ~self.done
        self.base = torch.where(better[..., None], self.trial, self.base)
        self.direction = torch.where(better[..., None], bounded(step), self.direction)
        self.length = torch.where(better, 1.0, self.length * _SHORTER)
        self.gain = torch.where(better, gain, self.gain)
        self.done = self.done | (better & same & (gain < _CONVERGED))
        away = torch.where(self.done[..., None], 0.0, self.length[..., None] * self.direction)
        self.trial = self.base + away


_OF_CENTRES = tuple(name for name in _Search.__dataclass_fields__ if name != "looks")
