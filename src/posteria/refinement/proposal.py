"""A proposal for importance sampling: a mixture of normals, each with a heavy-tailed twin.

Half of the draws of a component come from N(c, (R Rᵀ)⁻¹) and half from Student's t with the same centre and shape, so
that weights are bounded wherever the posterior's tails are no heavier than the t's, at the price of at most half of
the draws (defensive importance sampling; Hesterberg 1995).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DEGREES = 5
_LOG_2PI = math.log(2.0 * math.pi)
Coins = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Proposal:
    """K components for each of B datasets.

    Attributes:
        centre: (B, K, P), zero at inactive parameters.
        factor: R (B, K, P, P), lower Cholesky factor of each precision, the identity at inactive parameters.
        share: (B, K) summing to one.
        active: (B, P) bool.
        permutations: (G, P) relabellings that a draw goes through, each equally likely; None for none.
    """

    centre: Tensor
    factor: Tensor
    share: Tensor
    active: Tensor
    permutations: Tensor | None = None

    def draw(self, noise: Tensor, coins: Coins) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P), and the same before they were relabelled.

        Args:
            noise: (S, P) standard normal.
            coins: see :func:`flip`.
        """
        place, stretch, image = coins
        edges = self.share.cumsum(-1)[:, :-1].contiguous()
        which = torch.searchsorted(edges, place.to(edges).expand(len(edges), -1).contiguous())
        unit = torch.where(self.active[:, None], noise * stretch[:, None], 0.0)
        drawn = torch.zeros_like(unit)
        for k in range(self.centre.shape[1]):
            offset = torch.linalg.solve_triangular(self.factor[:, k].mT, unit.mT, upper=True).mT
            drawn = torch.where((which == k)[..., None], self.centre[:, k, None] + offset, drawn)
        if self.permutations is None:
            return drawn, drawn
        index = self.permutations[(image * len(self.permutations)).long()]
        return drawn.gather(-1, index.expand(len(drawn), -1, -1)), drawn

    def log_prob(self, z: Tensor) -> Tensor:
        """(B, S) log density at z (B, S, P), over the active parameters."""
        if self.permutations is None:
            return self.parts(z).logsumexp(-1)
        each = torch.stack([self.parts(z[..., image]).logsumexp(-1) for image in self.permutations])
        return each.logsumexp(0) - math.log(len(self.permutations))

    def parts(self, z: Tensor) -> Tensor:
        """(B, S, K) log of share times density of every component, without relabellings."""
        size = self.active.sum(-1, keepdim=True).to(z)
        parts = []
        for k in range(self.centre.shape[1]):
            square = ((z - self.centre[:, k, None]) @ self.factor[:, k]).square().sum(-1)
            volume = self.factor[:, k].diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
            both = torch.logaddexp(log_normal(square, size), log_student(square, size)) - math.log(2.0)
            parts.append(both + volume + self.share[:, k, None].log())
        return torch.stack(parts, -1)

    def __getitem__(self, index: Tensor) -> Proposal:
        """Those of the chosen datasets."""
        return Proposal(self.centre[index], self.factor[index], self.share[index], self.active[index],
                        self.permutations)


def log_normal(square: Tensor, size: Tensor) -> Tensor:
    """Log density of a standard normal in ``size`` dimensions where the squared length is ``square``."""
    return -0.5 * (square + size * _LOG_2PI)


def log_student(square: Tensor, size: Tensor) -> Tensor:
    """The same for a standard Student's t of :data:`DEGREES` degrees of freedom."""
    constant = (torch.lgamma((DEGREES + size) / 2) - math.lgamma(DEGREES / 2)
                - 0.5 * size * math.log(DEGREES * math.pi))
    return constant - 0.5 * (DEGREES + size) * torch.log1p(square / DEGREES)


def flip(num: int, generator: torch.Generator) -> Coins:
    """For S draws: a place in (0, 1) that says which component, the stretch of the normal draw (1, or the t's), and a
    place that says which relabelling; each (S,), in double precision.
    """
    place, half, image = torch.rand(3, num, generator=generator, dtype=torch.double)
    # A chi-square with an odd number of degrees, as a sum of squares: torch's own would use the global state.
    chi = torch.randn(DEGREES, num, generator=generator, dtype=torch.double).square().sum(0)
    return place, torch.where(half < 0.5, 1.0, (DEGREES / chi).sqrt()), image
