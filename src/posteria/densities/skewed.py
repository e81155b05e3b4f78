"""A Gaussian copula with skewed, light- or heavy-tailed marginals.

theta_i = m_i + s_i T_i(u_i) with u ~ N(0, C), C a correlation matrix, and the sinh-arcsinh transform of Jones & Pewsey
(2009, equation 1, inverted), T(u) = sinh((arcsinh u + skew) / tail): the identity at skew 0 and tail 1. Every parameter
has its own transform, read off its own token, so that the order of parameters does not matter. Density and draws are
exact and cost what a Gaussian's cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from posteria.densities.base import Density
from posteria.densities.gaussian import FullGaussian, GaussianTheta, soft_limit
from posteria.errors import InputError
from posteria.types import Context, ContextSpec

# Skewness of the transform at its limit is about 1.7; tails run from lighter than uniform to heavier than Laplace.
_SKEW_LIMIT, _LOG_TAIL_LIMIT = 0.8, 0.7


@dataclass(frozen=True)
class SkewedTheta:
    """A Gaussian pushed through one sinh-arcsinh transform per parameter.

    Attributes:
        gaussian: of theta where all transforms are the identity.
        sd: (B, P) its marginal standard deviations.
        skew, tail: (B, P) of the transforms; zero and one are the identity. Positive skew: a long right tail.
            Tails above one are lighter than the normal's.
    """

    gaussian: GaussianTheta
    sd: Tensor
    skew: Tensor
    tail: Tensor

    @property
    def active(self) -> Tensor:
        """(B, P) bool."""
        return self.gaussian.active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) reparametrised draws; zero at inactive parameters."""
        return self._pushed(self.gaussian.rsample(num_samples, generator))[0]

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S), in one pass."""
        return self._skewed(*self.gaussian.rsample_and_log_prob(num_samples, generator))

    def draws_of(
        self, index: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (b, S, P) and their log density (b, S) of some datasets (b,) alone, the same as among all."""
        return self[index]._skewed(*self.gaussian.draws_of(index, num_samples, generator))

    def at_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What standard normal noise (B, S, P) becomes, and its log density (B, S)."""
        return self._skewed(*self.gaussian.at_noise(noise))

    def _skewed(self, plain: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) of the Gaussian and their log density (B, S), pushed through the transforms."""
        theta, angle, moved = self._pushed(plain)
        return theta, log_prob - self._log_slope(angle, moved)

    def _pushed(self, plain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draws (B, S, P) of the Gaussian after the transforms, and arsinh of both in standard units."""
        angle = torch.asinh((plain - self.gaussian.mean[:, None]) / self.sd[:, None])
        moved = (angle + self.skew[:, None]) / self.tail[:, None]
        theta = self.gaussian.mean[:, None] + self.sd[:, None] * torch.sinh(moved)
        return torch.where(self.active[:, None], theta, 0.0), angle, moved

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        moved = torch.asinh((theta - self.gaussian.mean[:, None]) / self.sd[:, None])
        angle = self.tail[:, None] * moved - self.skew[:, None]
        plain = self.gaussian.mean[:, None] + self.sd[:, None] * torch.sinh(angle)
        return self.gaussian.log_prob(plain) - self._log_slope(angle, moved)

    def _log_slope(self, angle: Tensor, moved: Tensor) -> Tensor:
        """(B, S) log |det dT/du|: cosh(moved) / (tail cosh(angle)) per parameter."""
        slope = _log_cosh(moved) - _log_cosh(angle) - self.tail.log()[:, None]
        return torch.where(self.active[:, None], slope, 0.0).sum(-1)

    def __getitem__(self, index: Tensor) -> SkewedTheta:
        """That of the chosen datasets."""
        return SkewedTheta(self.gaussian[index], self.sd[index], self.skew[index], self.tail[index])

    def detach(self) -> SkewedTheta:
        """The same with all its parameters cut from the graph."""
        return replace(self, gaussian=self.gaussian.detach(), sd=self.sd.detach(), skew=self.skew.detach(),
                       tail=self.tail.detach())

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> None:
        """There is no closed form."""
        return None


def _log_cosh(values: Tensor) -> Tensor:
    size = values.abs()
    return size + torch.nn.functional.softplus(-2.0 * size) - 0.6931471805599453


class SkewedGaussian(Density):
    """See the module. Starts as :class:`posteria.densities.gaussian.FullGaussian`.

    Args:
        spec: widths of the context.
        wider: factor on all standard deviations, for a density that is trained already. The best in reverse KL tends to
            have lighter tails than the posterior, and importance weights without bounds; a few hundredths mend most of
            that, for (wider - 1)² nats per parameter.
    """

    def __init__(self, spec: ContextSpec, wider: float = 1.0):
        super().__init__(spec)
        if not wider > 0:
            raise InputError.of("wider", repr(wider), "a positive factor")
        self.wider = wider
        self.gaussian = FullGaussian(spec)
        self.from_tokens = self.gaussian.heads.from_tokens
        width = spec.token_dim if self.from_tokens else spec.summary_dim
        outputs = 2 if self.from_tokens else 2 * (spec.num_parameters or 0)
        assert width is not None  # as the Gaussian has checked
        self.shape = nn.Linear(width, outputs)
        nn.init.zeros_(self.shape.weight)
        nn.init.zeros_(self.shape.bias)

    def forward(self, context: Context) -> SkewedTheta:
        gaussian = self.gaussian(context)
        gaussian = replace(gaussian, scale=gaussian.scale * self.wider)
        if self.from_tokens:
            assert context.tokens is not None
            skew, log_tail = self.shape(context.tokens).float().unbind(-1)
        else:
            skew, log_tail = self.shape(context.summary).float().chunk(2, -1)
        sd = torch.where(gaussian.active, gaussian.variance.sqrt(), 1.0)
        return SkewedTheta(gaussian, sd, soft_limit(skew, _SKEW_LIMIT), soft_limit(log_tail, _LOG_TAIL_LIMIT).exp())
