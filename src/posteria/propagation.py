"""Expectation propagation (Minka 2001): a Gaussian that has, term by term, the moments of the posterior.

Every term f(a.z + c) of a log joint is stood in for by -1/2 precision v² + shift v, v = a.z + c. A round takes each
stand-in out of the Gaussian, puts the term itself back, and gives the stand-in the moments that result; all terms at
once. For terms that are log-concave precisions stay positive. The Gaussian covers the posterior, where the best in
reverse KL is too narrow: importance weights are bounded better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from posteria.curvature import cholesky
from posteria.types import Terms

# Nodes of the averages over one number, out to so many standard deviations.
_NODES, _REACH = 129, 8.0
# The same of a first guess.
_FEW_NODES, _NEAR = 33, 4.5
_LEAST_PRECISION = 1e-10
# Grids on which a term's sharpest bend is looked for.
_ZOOMS = 6
# Moments of draws, for the first guess of the stand-ins: no less than this.
_LEAST_VARIANCE = 1e-12
# Of a relative variance.
_LARGEST_LOG = 50.0


@dataclass(frozen=True)
class Sites:
    """A Gaussian over z: the normal share of the priors, and a stand-in for every term.

    Attributes:
        precision, shift: (B, M) of the stand-ins; zero where there is no term.
        centre: (B, P) mean of z.
        factor: (B, P, P) lower Cholesky factor of the precision.
    """

    precision: Tensor
    shift: Tensor
    centre: Tensor
    factor: Tensor

    @classmethod
    def of(cls, terms: Terms, precision: Tensor, shift: Tensor) -> Sites:
        """The Gaussian with these stand-ins."""
        weighted = terms.directions * precision[..., None]
        matrix = weighted.mT @ terms.directions + torch.diag_embed(terms.pull.expand(len(shift), -1))
        factor = cholesky(matrix)
        pulled = (terms.directions * (shift - precision * terms.offsets)[..., None]).sum(1)
        return cls(precision, shift, torch.cholesky_solve(pulled[..., None], factor)[..., 0], factor)

    @classmethod
    def joined(cls, parts: Sequence[Sites]) -> Sites:
        """Those of several batches as one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __getitem__(self, index: Tensor) -> Sites:
        """Those of the chosen datasets."""
        return Sites(*(getattr(self, field.name)[index] for field in fields(self)))

    def numbers(self, terms: Terms) -> tuple[Tensor, Tensor]:
        """Mean and variance (B, M) of the numbers that terms see."""
        mean = (terms.directions @ self.centre[..., None])[..., 0] + terms.offsets
        return mean, self.spread(terms).square().sum(-1)

    def loosened(self, terms: Terms, share: float) -> Sites:
        """With a share of every stand-in's precision, its slope at the centre as before."""
        precision = share * self.precision
        shift = self.shift - (self.precision - precision) * self.numbers(terms)[0]
        return Sites.of(terms, precision, shift)

    def spread(self, terms: Terms) -> Tensor:
        """(B, M, P) directions in units in which the Gaussian is standard."""
        return torch.linalg.solve_triangular(self.factor, terms.directions.mT, upper=False).mT


def linearized(terms: Terms, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The stand-ins that are best where numbers are normal with these moments (B, M), and how far terms are from them.

    Precision and shift are -E f'' and E f' + precision * mean, by Stein's lemma from values alone; the last is the
    variance of the term minus its stand-in: zero where a term is quadratic.
    """
    nodes, weights = _normal_nodes(mean, _FEW_NODES, _NEAR)
    nodes = nodes / (weights * nodes.square()).sum().sqrt()  # so that quadratic terms are met exactly
    square = nodes.square() - 1.0
    sd = variance.clamp(min=_LEAST_VARIANCE).sqrt()
    values = _values(terms, mean[..., None] + sd[..., None] * nodes)
    average = (values * weights).sum(-1)
    slope = (values * (weights * nodes)).sum(-1)
    bend = 2.0 * (values * (weights * square)).sum(-1) / (weights * square.square()).sum()
    left = values - average[..., None] - slope[..., None] * nodes - 0.5 * bend[..., None] * square
    precision = torch.where(terms.real, (-bend / sd.square()).clamp(min=0.0), 0.0)
    shift = torch.where(terms.real, slope / sd, 0.0) + precision * mean
    return precision, shift, torch.where(terms.real, (left.square() * weights).sum(-1), 0.0)


def disagreement(terms: Terms, sites: Sites) -> Tensor:
    """(B, M) relative variance of a term over its stand-in, as weights of draws of the number alone."""
    mean, variance = sites.numbers(terms)
    nodes, weights = _normal_nodes(mean)
    at = mean[..., None] + variance.clamp(min=_LEAST_VARIANCE).sqrt()[..., None] * nodes
    ratio = _values(terms, at) - (sites.shift[..., None] - 0.5 * sites.precision[..., None] * at) * at
    first, second = ((weights.log() + power * ratio).logsumexp(-1) for power in (1.0, 2.0))
    return torch.where(terms.real, torch.expm1((second - 2.0 * first).clamp(max=_LARGEST_LOG)), 0.0)


def propagated(terms: Terms, precision: Tensor, shift: Tensor, rounds: int, damping: float = 0.3) -> Sites:
    """Stand-ins (B, M) after so many rounds.

    Args:
        terms: of B log joints.
        precision, shift: (B, M) where to start.
        rounds: of all terms at once.
        damping: how much of the old stand-ins is kept.
    """
    sites = Sites.of(terms, torch.where(terms.real, precision, 0.0), torch.where(terms.real, shift, 0.0))
    for _ in range(rounds):
        mean, variance = sites.numbers(terms)
        new_precision, new_shift = _matched(terms, sites, mean, variance)
        sites = Sites.of(terms, torch.lerp(new_precision, sites.precision, damping),
                         torch.lerp(new_shift, sites.shift, damping))
    return sites


def _matched(terms: Terms, sites: Sites, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Stand-ins (B, M) with the moments of the terms, every one among the stand-ins of the others."""
    variance = variance.clamp(min=_LEAST_VARIANCE)
    others = (1.0 / variance - sites.precision).clamp(min=_LEAST_PRECISION)
    pull = mean / variance - sites.shift
    nodes, weights = _normal_nodes(mean)
    at = (pull / others)[..., None] + others.rsqrt()[..., None] * nodes
    share = (_values(terms, at) + weights.log()).softmax(-1)
    average = (share * at).sum(-1)
    # No less than what nodes can tell apart: else a term that has its mass between two of them becomes a point.
    least = (_REACH / _NODES) ** 2 / others
    own_variance = torch.maximum((share * (at - average[..., None]).square()).sum(-1), least)
    precision = (1.0 / own_variance - others).clamp(min=0.0)
    shift = average * (precision + others) - pull
    usable = terms.real & precision.isfinite() & shift.isfinite()
    return torch.where(usable, precision, sites.precision), torch.where(usable, shift, sites.shift)


def kinks(terms: Terms, places: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Where terms (B, K) bend the most, within reach of normals with these moments, and over what width (B, K).

    From second differences, where a term lets mass be, on grids that are finer and finer.
    """
    sd = variance.clamp(min=_LEAST_VARIANCE).sqrt()
    centre, width, spread = mean, _REACH * sd, sd
    for _ in range(_ZOOMS):
        at = centre[..., None] + width[..., None] * torch.linspace(-1.0, 1.0, _NODES).to(mean)
        values = _values(terms, at, places)
        bend, at, values = values.diff(n=2, dim=-1).abs(), at[..., 1:-1], values[..., 1:-1]
        log_mass = values - 0.125 * ((at - mean[..., None]) / sd[..., None]).square()
        share = bend * (log_mass - log_mass.amax(-1, keepdim=True)).exp()
        share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        centre = at.gather(-1, share.argmax(-1, keepdim=True))[..., 0]
        spread = (share * (at - centre[..., None]).square()).sum(-1).sqrt()
        width = torch.minimum(4.0 * (spread + width / _NODES), width)  # no less than the bend itself
    return centre, spread


def _values(terms: Terms, at: Tensor, places: Tensor | None = None) -> Tensor:
    return terms.values(at, places).nan_to_num(-1e30, 1e30, -1e30).clamp(-1e30, 1e30)


def _normal_nodes(like: Tensor, num: int = _NODES, reach: float = _REACH) -> tuple[Tensor, Tensor]:
    """Evenly spaced nodes and weights of a standard normal: terms that are nearly steps have no smooth quadrature."""
    nodes = torch.linspace(-reach, reach, num).to(like)
    weights = (-0.5 * nodes.square()).exp()
    return nodes, weights / weights.sum()
