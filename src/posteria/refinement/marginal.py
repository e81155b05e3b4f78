"""Proposals for a few hyperparameters: mixtures that follow weighted points, and how they are fitted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.curvature import cholesky
from posteria.refinement.proposal import DEGREES, Coins, log_normal, log_student

# Shares of draws that go to one component with all points' moments, to others that are so much longer along one
# hyperparameter, and to one as wide as the prior: tails that no point has reached still get some. The rest goes to
# components at the points. While the marginal is still being studied, half of the draws explore.
_WHOLE, _LONG, _PRIOR, _EXPLORING = 0.2, 0.15, 0.02, 0.5
_LONGER, _MOST_COMPONENTS = 3.0, 1000
_WIDEST = 0.95
# A fit takes so many effective points per hyperparameter; where there are fewer, weights are flattened until there are.
_POINTS_PER_PARAMETER = 6.0
_TINY = 1e-6
# Points farther out are as good as there, and their squares are finite.
_FARTHEST = 1e100
# Entries of the tensors that go through a processor together: what fits its cache.
_MOST_ENTRIES = 2**17


@dataclass(frozen=True)
class Cloud:
    """Components of one shape for B datasets, each half normal and half Student's t.

    Attributes:
        centre: (B, K, H), zero at inactive hyperparameters.
        factor: (B, H, H) lower Cholesky factor of the precision, the identity at inactive hyperparameters.
        share: (B, K) of all draws.
    """

    centre: Tensor
    factor: Tensor
    share: Tensor

    def draw(self, unit: Tensor, place: Tensor) -> Tensor:
        """(B, S, H) from standardised offsets (B, S, H), for the component at a place (B, S) in the shares' sum."""
        which = torch.searchsorted(self.share.cumsum(-1)[:, :-1].contiguous(), place.contiguous())
        offset = torch.linalg.solve_triangular(self.factor.mT, unit.mT, upper=True).mT
        return self.centre.gather(1, which[..., None].expand(-1, -1, unit.shape[-1])) + offset

    def log_prob(self, u: Tensor, size: Tensor) -> Tensor:
        """(B, S) log of share times density at u (B, S, H), which has so many active entries (B, 1)."""
        unit, centre = u.clamp(-_FARTHEST, _FARTHEST) @ self.factor, self.centre @ self.factor
        lengths = centre.square().sum(-1)[:, None], unit.square().sum(-1, keepdim=True)
        block = max(1, _MOST_ENTRIES // max(1, self.share.numel()))
        parts = zip(unit.split(block, 1), lengths[1].split(block, 1), strict=True)
        density = torch.cat([self._density(torch.baddbmm(lengths[0] + length, part, centre.mT, alpha=-2.0), size)
                             for part, length in parts], 1)
        return density.log() + self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True) - math.log(2.0)

    def _density(self, square: Tensor, size: Tensor) -> Tensor:
        """(B, S) sum over components of share times the normal's plus the t's density, at squared distances (B, S, K).

        All standardised. Not of logarithms, which would take twice as long: the t's do not underflow. The distances are
        overwritten.
        """
        square = square.clamp_(min=0.0)
        nothing, share = torch.zeros_like(size), self.share[:, None]
        tails = (square / DEGREES).log1p_().mul_(-0.5 * (DEGREES + size)[..., None]).exp_()
        middle = square.mul_(-0.5).exp_()
        each = tails.mul_(share * log_student(nothing, size)[..., None].exp())
        return each.addcmul_(middle, share * log_normal(nothing, size)[..., None].exp()).sum(-1)

    def __getitem__(self, index: Tensor) -> Cloud:
        """Those of the chosen datasets."""
        return Cloud(self.centre[index], self.factor[index], self.share[index])


@dataclass(frozen=True)
class Marginal:
    """A mixture of clouds over H hyperparameters, for B datasets.

    Attributes:
        clouds: their shares sum to one.
        active: (B, H) bool.
    """

    clouds: tuple[Cloud, ...]
    active: Tensor

    def draw(self, noise: Tensor, coins: Coins) -> Tensor:
        """(B, S, H) draws of standard normal noise (S, H) and coins, see :func:`posteria.refinement.proposal.flip`."""
        place, stretch, _ = coins
        unit = torch.where(self.active[:, None], noise * stretch[:, None], 0.0)
        drawn = torch.zeros_like(unit)
        edge = torch.zeros(len(unit), 1).to(unit)
        for cloud in self.clouds:
            here = cloud.draw(unit, place - edge)
            drawn = torch.where((place >= edge)[..., None], here, drawn)
            edge = edge + cloud.share.sum(-1, keepdim=True)
        return drawn

    def log_prob(self, u: Tensor) -> Tensor:
        """(B, S) log density at u (B, S, H), over the active hyperparameters."""
        size = self.active.sum(-1, keepdim=True).to(u)
        return torch.stack([cloud.log_prob(u, size) for cloud in self.clouds]).logsumexp(0)

    def __getitem__(self, index: Tensor) -> Marginal:
        """Those of the chosen datasets."""
        return Marginal(tuple(cloud[index] for cloud in self.clouds), self.active[index])


def first_guess(centre: Tensor, spread: Tensor, active: Tensor) -> Marginal:
    """Half of the draws around means with standard deviations (B, H), half as wide as a standard normal prior."""
    factor = torch.diag_embed(torch.where(active, 1.0 / spread, 1.0))
    half = torch.full_like(centre[:, :1], 0.5)
    return Marginal((Cloud(torch.where(active, centre, 0.0)[:, None], factor, half), _like_prior(centre, half)), active)


@dataclass(frozen=True)
class Study:
    """The log density of an unknown marginal at points, and the proposals that the points were drawn from.

    All points are weighted by the mixture of all proposals (adaptive multiple importance sampling; Cornuet et al.
    2012), so that none has to be good.

    Attributes:
        points: (B, S, H).
        values: (B, S) log density there, up to a constant.
        past: the proposals and how many points each gave.
        active: (B, H) bool.
    """

    points: Tensor
    values: Tensor
    past: tuple[tuple[Marginal, int], ...]
    active: Tensor

    @classmethod
    def empty(cls, active: Tensor) -> Study:
        """No points yet."""
        points = torch.zeros(len(active), 0, active.shape[1], dtype=torch.double)
        return cls(points, points[..., 0] if active.shape[1] else points.sum(-1), (), active)

    def more(self, proposal: Marginal, points: Tensor, values: Tensor) -> Study:
        """With points (B, S, H) of a proposal, and the log density there (B, S)."""
        return Study(torch.cat([self.points, points], 1), torch.cat([self.values, values], 1),
                     (*self.past, (proposal, points.shape[1])), self.active)

    def __getitem__(self, index: Tensor) -> Study:
        """Those of the chosen datasets."""
        past = tuple((proposal[index], count) for proposal, count in self.past)
        return Study(self.points[index], self.values[index], past, self.active[index])

    def weights(self) -> Tensor:
        """(B, S) of the points, their logs shrunk by the largest power that leaves enough effective ones for a fit."""
        ratio = self._ratio()
        powers = torch.logspace(0, -3, 31, dtype=ratio.dtype)[:, None, None]
        weights = (powers * ratio).softmax(-1).nan_to_num(1.0 / ratio.shape[1])
        enough = 1.0 / weights.square().sum(-1) >= self._enough
        enough[-1] = True
        first = enough.to(torch.uint8).argmax(0)
        return weights[first, torch.arange(len(first))]

    @property
    def settled(self) -> Tensor:
        """(B,) bool: there are enough effective points as they are."""
        weights = self._ratio().softmax(-1).nan_to_num(1.0)
        return 1.0 / weights.square().sum(-1) >= self._enough

    @property
    def _enough(self) -> Tensor:
        return _POINTS_PER_PARAMETER * self.active.sum(-1)

    def _ratio(self) -> Tensor:
        """(B, S) log weights, up to a constant."""
        parts = [proposal.log_prob(self.points) + math.log(count) for proposal, count in self.past]
        ratio = self.values - torch.stack(parts).logsumexp(0)
        return ratio - ratio.amax(-1, keepdim=True).nan_to_num(neginf=0.0)

    def exploring(self) -> Marginal:
        """With the moments of the points, and longer."""
        centre, covariance = _moments(self.points, self.weights(), self.active)
        whole = torch.full_like(centre[:, :1], 1.0 - _EXPLORING)
        return Marginal((Cloud(centre[:, None], _precision_factor(covariance), whole),
                         *_longer(centre, covariance, self.active, _EXPLORING)), self.active)

    def following(self) -> Marginal:
        """A mixture that follows the points where their density is no normal's.

        Most components sit at the points with the largest weights, drawn towards the mean, so that together they keep
        the points' moments (West 1993, JRSS B 55, section 3.2).
        """
        weights = self.weights()
        centre, covariance = _moments(self.points, weights, self.active)
        factor = _precision_factor(covariance)
        weights, chosen = weights.topk(min(_MOST_COMPONENTS, weights.shape[1]), -1)
        weights = weights / weights.sum(-1, keepdim=True)
        points = self.points.gather(1, chosen[..., None].expand(-1, -1, centre.shape[-1]))
        size = self.active.sum(-1, keepdim=True).to(weights)
        width = (4.0 * weights.square().sum(-1, keepdim=True) / (size + 2.0)).pow(1.0 / (size + 4.0))
        width = width.clamp(max=_WIDEST)
        narrow = factor * torch.where(self.active, 1.0 / width, 1.0)[:, None]
        points = torch.lerp(centre[:, None], points, (1.0 - width.square()).sqrt()[..., None])
        points = torch.where(self.active[:, None], points, 0.0)
        whole = torch.full_like(centre[:, :1], _WHOLE)
        return Marginal((Cloud(points, narrow, (1.0 - _WHOLE - _LONG - _PRIOR) * weights),
                         Cloud(centre[:, None], factor, whole), _like_prior(centre, torch.full_like(whole, _PRIOR)),
                         *_longer(centre, covariance, self.active, _LONG)), self.active)


def _moments(points: Tensor, weights: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, H) and covariance (B, H, H)."""
    centre = torch.where(active, (weights[..., None] * points).sum(1), 0.0)
    away = torch.where(active[:, None], points - centre[:, None], 0.0)
    return centre, (weights[..., None] * away).mT @ away + torch.diag_embed(torch.where(active, _TINY, 1.0))


def _precision_factor(covariance: Tensor) -> Tensor:
    return cholesky(torch.cholesky_inverse(cholesky(covariance)))


def _longer(centre: Tensor, covariance: Tensor, active: Tensor, share: float) -> Iterator[Cloud]:
    """Normals longer along one hyperparameter each; given that one, the others vary as before."""
    each = share * active / active.sum(-1, keepdim=True)
    for place in range(centre.shape[1]):
        along = covariance[:, :, place] / covariance[:, place, place, None].sqrt()
        along = torch.where(active[:, place, None], along, 0.0)
        longer = covariance + (_LONGER**2 - 1.0) * along[:, :, None] * along[:, None]
        yield Cloud(centre[:, None], _precision_factor(longer), each[:, place, None])


def _like_prior(like: Tensor, share: Tensor) -> Cloud:
    eye = torch.eye(like.shape[-1]).to(like).expand(len(like), -1, -1)
    return Cloud(torch.zeros_like(like)[:, None], eye, share)
