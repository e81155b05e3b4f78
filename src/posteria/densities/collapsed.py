"""Collapsed density: some parameters from a density, the others from their exact posterior given those.

q(theta | D) = q(rest | D) p(w | rest, D) has the divergence KL(q(rest) || p(rest | D)) from the posterior, never more
than that of any density whose marginal is q(rest) (Rao-Blackwellisation; chain rule of the divergence).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.randomness import randn
from posteria.types import ThetaDistribution

_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class CollapsedTheta:
    """A distribution of theta out of one of the rest.

    Attributes:
        base: of the rest, (B, S, Q).
        conditional: theta (b, S, P) of the datasets (b,), read at the rest alone -> mean (b, S, R) and lower Cholesky
            factor of the precision (b, S, R, R) of the others.
        places: (P,) bool, True = one of the R others.
        active: (B, P) bool.
    """

    base: ThetaDistribution
    conditional: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    places: Tensor
    active: Tensor

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) reparametrised draws; zero at inactive parameters."""
        return self.rsample_and_log_prob(num_samples, generator)[0]

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S); of some datasets (b,) only, the same as among all."""
        rest, log_prob = self.base.rsample_and_log_prob(num_samples, generator)
        size = int(self.places.sum())
        noise = randn(*rest.shape[:2], size, like=rest, generator=generator) * self._others[:, None]
        index = self._everyone if index is None else index
        rest, log_prob, noise = rest[index], log_prob[index], noise[index]
        mean, factor = self.conditional(self._embedded(rest), index)
        others = mean + torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
        return self._embedded(rest, others), log_prob + self._log_normal(noise, factor, index)

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        theta = torch.where(self.active[:, None], theta, 0.0)
        mean, factor = self.conditional(theta, self._everyone)
        noise = (factor.mT @ (theta[..., self.places] - mean)[..., None])[..., 0]
        return self.base.log_prob(theta[..., ~self.places]) + self._log_normal(noise, factor, self._everyone)

    def detach(self) -> CollapsedTheta:
        """The same with all its parameters cut from the graph."""
        return replace(self, base=self.base.detach())

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> None:
        """None: there is no closed form."""
        return None

    @property
    def _everyone(self) -> Tensor:
        return torch.arange(len(self.active), device=self.active.device)

    @property
    def _others(self) -> Tensor:
        return self.active[:, self.places]

    def _embedded(self, rest: Tensor, others: Tensor | None = None) -> Tensor:
        """(B, S, P) out of its two parts, zero where there is no second."""
        theta = rest.new_zeros(*rest.shape[:-1], self.places.numel())
        theta = theta.index_copy(-1, (~self.places).nonzero()[:, 0], rest)
        return theta if others is None else theta.index_copy(-1, self.places.nonzero()[:, 0], others)

    def _log_normal(self, noise: Tensor, factor: Tensor, index: Tensor) -> Tensor:
        size = self._others[index].sum(-1).to(noise)[:, None]
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det - 0.5 * (noise.square().sum(-1) + size * _LOG_2PI)
