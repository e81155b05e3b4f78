"""Gaussian with diagonal plus low-rank covariance, for many parameters.

In the context's frame, Cov(u) = I + U Uᵀ with U (P, r), hence Cov(theta) = D^½ (I + U Uᵀ) D^½ where the
frame is diagonal. Everything goes through the r × r capacitance C = I + UᵀU (Woodbury's identity and the
matrix determinant lemma), at a cost of P r² per dataset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posteria.densities.base import Density
from posteria.densities.frame import Frame, FrameHead
from posteria.errors import InputError
from posteria.randomness import randn
from posteria.types import Context, ContextSpec

_LOG_2PI = math.log(2 * math.pi)
# A column of U inflates the spread along its direction at most this many times, so that the capacitance's
# condition number stays below r * 10^4.
_LARGEST_STRETCH = 100.0


@dataclass(frozen=True)
class LowRankTheta:
    """theta = frame(e + U f), e ~ N(0, I_P), f ~ N(0, I_r).

    Attributes:
        frame: affine map of B datasets.
        loadings: U (B, P, r), zero at inactive parameters.
    """

    frame: Frame
    loadings: Tensor

    @property
    def active(self) -> Tensor:
        """(B, P) bool."""
        return self.frame.active

    @property
    def mean(self) -> Tensor:
        """(B, P)."""
        return self.frame.location

    @property
    def variance(self) -> Tensor:
        """(B, P) marginal variances."""
        return (self._root() ** 2).sum(-1)

    @property
    def covariance(self) -> Tensor:
        """(B, P, P) covariance matrices."""
        root = self._root()
        return root @ root.mT

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) reparametrised draws; zero at inactive parameters."""
        return self.rsample_and_log_prob(num_samples, generator)[0]

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S), in one pass."""
        batch, size, rank = self.loadings.shape
        own = randn(batch, num_samples, size, like=self.loadings, generator=generator) * self.active[:, None]
        shared = randn(batch, num_samples, rank, like=self.loadings, generator=generator)
        unit = own + shared @ self.loadings.mT
        return self.frame.to_theta(unit), self._log_prob_of(unit)

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        return self._log_prob_of(self.frame.to_unit(theta))

    def detach(self) -> LowRankTheta:
        """The same with all its parameters cut from the graph."""
        return LowRankTheta(self.frame.detach(), self.loadings.detach())

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> Tensor:
        """(B,) KL to N(location, scale^2) over the active parameters."""
        spread = (self.variance + (self.mean - location) ** 2) / scale**2
        terms = 0.5 * (spread - 1.0) + torch.as_tensor(scale).log()
        entropy_part = self.frame.log_volume + 0.5 * _log_det(self._capacitance()).to(terms.dtype)
        return torch.where(self.active, terms, 0.0).sum(-1) - entropy_part

    def _capacitance(self) -> Tensor:
        """(B, r, r) Cholesky factor of C, precise."""
        loadings = _precise(self.loadings)
        eye = torch.eye(loadings.shape[-1], dtype=loadings.dtype, device=loadings.device)
        return torch.linalg.cholesky(eye + loadings.mT @ loadings)

    def _log_prob_of(self, unit: Tensor) -> Tensor:
        lower, loadings, precise = self._capacitance(), _precise(self.loadings), _precise(unit)
        shared = torch.cholesky_solve(loadings.mT @ precise.mT, lower).mT
        # uᵀ(I + U Uᵀ)^-1 u as the least |u - U f|² + |f|²: a sum of positives, where Woodbury's own
        # difference of large squares would lose its digits.
        square = ((precise - shared @ loadings.mT) ** 2).sum(-1) + (shared**2).sum(-1)
        shape = (-0.5 * square - 0.5 * _log_det(lower)[:, None]).to(unit.dtype)
        return shape - (self.frame.log_volume + 0.5 * _LOG_2PI * self.active.sum(-1))[:, None]

    def _root(self) -> Tensor:
        """(B, P, P + r) matrix whose square is the covariance."""
        size = self.loadings.shape[1]
        eye = torch.eye(size, dtype=self.loadings.dtype, device=self.loadings.device)
        columns = torch.cat([eye.expand(len(self.loadings), -1, -1), self.loadings], -1)
        if self.frame.factor is not None:
            columns = torch.linalg.solve_triangular(self.frame.factor.mT, columns, upper=True)
        return self.frame.scale[..., None] * columns


def _precise(values: Tensor) -> Tensor:
    """In double precision where the device has it: sums of P large products, of which order one must be left."""
    return values if values.device.type == "mps" else values.double()


def _log_det(lower: Tensor) -> Tensor:
    """(B,) log-determinant from a Cholesky factor."""
    return 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class LowRankGaussian(Density):
    """Normal with diagonal plus low-rank covariance; with a curvature factor in the context, low rank on top of it.

    Args:
        spec: widths of the context.
        rank: r, columns of U. They come from each parameter's token, or from a head on the summary.

    Raises:
        InputError: rank below one, or a spec with neither located tokens nor a fixed number of parameters.

    Examples:
        >>> density = LowRankGaussian(ContextSpec(summary_dim=4, token_dim=None, num_parameters=3), rank=2)
        >>> density(Context(torch.zeros(1, 4), torch.ones(1, 3, dtype=torch.bool))).rsample(5).shape
        torch.Size([1, 5, 3])
    """

    def __init__(self, spec: ContextSpec, rank: int = 8):
        super().__init__(spec)
        if rank < 1:
            raise InputError.of("rank", rank, "a whole number of at least 1")
        self.rank = rank
        self.frame = FrameHead(spec)
        if self.frame.heads.from_tokens:
            assert spec.token_dim is not None
            self.loadings = nn.Linear(spec.token_dim, rank)
        else:
            assert spec.num_parameters is not None
            self.loadings = nn.Linear(spec.summary_dim, spec.num_parameters * rank)
        # Near the diagonal Gaussian, but not on it: U = 0 is a saddle with no gradient.
        nn.init.normal_(self.loadings.weight, std=1e-2)
        nn.init.zeros_(self.loadings.bias)

    def forward(self, context: Context) -> LowRankTheta:
        """The distribution over theta, one per dataset of the context."""
        frame = self.frame(context)
        return LowRankTheta(frame, _limited(self._raw(context) * frame.active[..., None]))

    def _raw(self, context: Context) -> Tensor:
        if not self.frame.heads.from_tokens:
            return self.loadings(context.summary).float().unflatten(-1, (-1, self.rank))
        assert context.tokens is not None
        return self.loadings(context.tokens).float()


def _limited(loadings: Tensor) -> Tensor:
    """Columns of U with norms softly limited to the largest stretch."""
    norms = (loadings / _LARGEST_STRETCH).square().sum(-2, keepdim=True)
    return loadings * torch.rsqrt(1 + norms)
