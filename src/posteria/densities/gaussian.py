"""Gaussian densities: diagonal, and full covariance through a Cholesky factor of the precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from posteria.densities.base import Density
from posteria.errors import InputError
from posteria.randomness import randn
from posteria.types import Context, ContextSpec

_LOG_2PI = math.log(2 * math.pi)
# Located contexts are corrected by at most this many (log) units; free heads get a wider range.
_LOCATED_LIMIT, _FREE_LIMIT = 3.0, 12.0
# Off-diagonal entries of a free factor shrink with its size, so that solves with it stay finite.
_TRIANGLE_NORM = 8.0


def soft_limit(values: Tensor, limit: float) -> Tensor:
    """Identity near zero, bounded by ±limit: keeps scales finite for any network output."""
    return limit * torch.tanh(values / limit)


@dataclass(frozen=True)
class GaussianTheta:
    """theta = mean + scale * R^-T eps, eps ~ N(0, I): covariance scale (R Rᵀ)^-1 scale.

    Attributes:
        mean, scale: (B, P), scale positive.
        active: (B, P) bool.
        factor: R (B, P, P), lower triangular, the identity at inactive parameters; None means R = I.
    """

    mean: Tensor
    scale: Tensor
    active: Tensor
    factor: Tensor | None = None

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        return self.rsample_and_log_prob(num_samples, generator)[0]

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.at_noise(self._noise(num_samples, generator))

    def draws_of(
        self, index: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (b, S, P) and their log density (b, S) of some datasets (b,) alone, the same as among all."""
        return self[index].at_noise(self._noise(num_samples, generator)[index])

    def _noise(self, num_samples: int, generator: torch.Generator | None) -> Tensor:
        batch, size = self.mean.shape
        return randn(batch, num_samples, size, like=self.mean, generator=generator)

    def at_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What standard normal noise (B, S, P) becomes, and its log density (B, S)."""
        eps = noise * self.active[:, None]
        unit = eps if self.factor is None else torch.linalg.solve_triangular(
            self.factor.mT, eps.mT, upper=True).mT
        theta = self.mean[:, None] + self.scale[:, None] * unit
        return torch.where(self.active[:, None], theta, 0.0), self._log_prob_of(eps)

    def log_prob(self, theta: Tensor) -> Tensor:
        unit = torch.where(self.active[:, None], (theta - self.mean[:, None]) / self.scale[:, None], 0.0)
        return self._log_prob_of(unit if self.factor is None else unit @ self.factor)

    def _log_prob_of(self, eps: Tensor) -> Tensor:
        normaliser = -self.scale.log() - 0.5 * _LOG_2PI
        if self.factor is not None:
            normaliser = normaliser + self.factor.diagonal(dim1=-2, dim2=-1).log()
        return torch.where(self.active, normaliser, 0.0).sum(-1)[:, None] - 0.5 * (eps**2).sum(-1)

    def __getitem__(self, index: Tensor) -> GaussianTheta:
        """That of the chosen datasets."""
        factor = None if self.factor is None else self.factor[index]
        return GaussianTheta(self.mean[index], self.scale[index], self.active[index], factor)

    def detach(self) -> GaussianTheta:
        factor = None if self.factor is None else self.factor.detach()
        return replace(self, mean=self.mean.detach(), scale=self.scale.detach(), factor=factor)

    @property
    def variance(self) -> Tensor:
        """(B, P) marginal variances."""
        if self.factor is None:
            return self.scale**2
        eye = torch.eye(self.mean.shape[-1], dtype=self.mean.dtype, device=self.mean.device)
        inverse = torch.linalg.solve_triangular(self.factor, eye.expand_as(self.factor), upper=False)
        return self.scale**2 * (inverse**2).sum(-2)

    @property
    def covariance(self) -> Tensor:
        """(B, P, P) covariance matrices."""
        if self.factor is None:
            return torch.diag_embed(self.scale**2)
        return self.scale[:, :, None] * torch.cholesky_inverse(self.factor) * self.scale[:, None]

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> Tensor:
        spread = (self.variance + (self.mean - location) ** 2) / scale**2
        terms = 0.5 * (spread - 1.0) + scale.log() - self.scale.log()
        if self.factor is not None:
            terms = terms + self.factor.diagonal(dim1=-2, dim2=-1).log()
        return torch.where(self.active, terms, 0.0).sum(-1)


class MeanAndScale(nn.Module):
    """Reads a mean and a scale per parameter off a context: from tokens around its location, or from its summary."""

    def __init__(self, spec: ContextSpec):
        super().__init__()
        self.from_tokens = spec.token_dim is not None and spec.located
        if self.from_tokens:
            assert spec.token_dim is not None
            self.head = nn.Linear(spec.token_dim, 2)
            nn.init.zeros_(self.head.weight)  # start at the context's own location and scale
            nn.init.zeros_(self.head.bias)
        else:
            if spec.num_parameters is None:
                raise InputError.of("density", "an encoder without tokens and no fixed number of parameters",
                                    "a fixed number of features, or an encoder with tokens")
            self.head = nn.Linear(spec.summary_dim, 2 * spec.num_parameters)

    def forward(self, context: Context, unit: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean (B, P) and log scale correction (B, P); ``unit`` (B, P) is the step that a mean shift of one makes."""
        if not self.from_tokens:
            mean, log_scale = self.head(context.summary).float().chunk(2, -1)
            return mean, soft_limit(log_scale, _FREE_LIMIT)
        assert context.tokens is not None
        assert context.location is not None
        assert unit is not None
        shift, log_scale = self.head(context.tokens).float().unbind(-1)
        mean = context.location + unit * soft_limit(shift, _LOCATED_LIMIT)
        return mean, soft_limit(log_scale, _LOCATED_LIMIT)


class DiagonalGaussian(Density):
    """Independent normals per parameter: the paper's Gaussian density."""

    correlated: ClassVar[bool] = False

    def __init__(self, spec: ContextSpec):
        super().__init__(spec)
        self.heads = MeanAndScale(spec)

    def forward(self, context: Context) -> GaussianTheta:
        unit = conditional_scale(context)
        mean, log_scale = self.heads(context, unit)
        scale = log_scale.exp() if unit is None else unit * log_scale.exp()
        return GaussianTheta(mean, scale, context.active)


class FullGaussian(Density):
    """Normal with full covariance.

    With a located context that carries a curvature factor, the precision is that curvature, rescaled per
    parameter by the network (so it starts as Laplace's approximation). Otherwise the factor comes from
    pairs of tokens (precision I + V Vᵀ) or from a head on the summary.

    Args:
        rank: width of V where tokens make the factor.
    """

    def __init__(self, spec: ContextSpec, rank: int = 16):
        super().__init__(spec)
        self.heads = MeanAndScale(spec)
        self.pairs: nn.Linear | None = None
        self.triangle: nn.Linear | None = None
        if self.heads.from_tokens:
            assert spec.token_dim is not None
            self.pairs = nn.Linear(spec.token_dim, rank)
            nn.init.normal_(self.pairs.weight, std=1e-3)
        else:
            assert spec.num_parameters is not None
            below = spec.num_parameters * (spec.num_parameters - 1) // 2
            if below:
                self.triangle = nn.Linear(spec.summary_dim, below)
                nn.init.zeros_(self.triangle.weight)
                nn.init.zeros_(self.triangle.bias)

    def forward(self, context: Context) -> GaussianTheta:
        unit = conditional_scale(context)
        mean, log_scale = self.heads(context, unit)
        base = context.scale if context.scale is not None else 1.0
        return GaussianTheta(mean, base * log_scale.exp(), context.active, self._factor(context))

    def _factor(self, context: Context) -> Tensor:
        if context.factor is not None:
            return context.factor
        both = context.active[:, :, None] & context.active[:, None, :]
        eye = torch.eye(both.shape[-1], device=both.device)
        if self.pairs is not None:
            assert context.tokens is not None
            pairs = self.pairs(context.tokens).float() * context.active[..., None]
            return torch.linalg.cholesky(eye + pairs @ pairs.mT)
        size = both.shape[-1]
        if self.triangle is None:  # one parameter
            return eye.expand(both.shape)
        row, column = torch.tril_indices(size, size, -1, device=both.device)
        lower = context.summary.new_zeros(both.shape, dtype=torch.float32)
        lower[:, row, column] = soft_limit(self.triangle(context.summary).float(), _TRIANGLE_NORM / size**0.5)
        return torch.where(both, lower, 0.0) + eye


def conditional_scale(context: Context) -> Tensor | None:
    """(B, P) scale of each parameter given the others, by the context; None where it has no scale."""
    if context.scale is None or context.factor is None:
        return context.scale
    return context.scale / context.factor.square().sum(-1).sqrt()
