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
# Entries of the factors that are there at a time: what fits a processor's cache.
_MOST_ENTRIES = 2**19


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
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S)."""
        return self.draws_of(self._everyone, num_samples, generator)

    def draws_of(
        self, index: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (b, S, P) and their log density (b, S) of some datasets (b,) alone, the same as among all."""
        rest, log_prob = self.base.rsample_and_log_prob(num_samples, generator)
        size = int(self.places.sum())
        noise = randn(*rest.shape[:2], size, like=rest, generator=generator) * self._others[:, None]
        parts = [self._completed(rest[part], noise[part], part) for part in self._blocks(index, num_samples)]
        theta, log_conditional = (torch.cat(part) for part in zip(*parts, strict=True))
        return theta, log_prob[index] + log_conditional

    def _completed(self, rest: Tensor, noise: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Draws (b, S, P) of some datasets from those of the rest, and the others' log density given these (b, S)."""
        mean, factor = self.conditional(self._embedded(rest), index)
        others = mean + torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
        return self._embedded(rest, others), self._log_normal(noise, factor, index)

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        theta = torch.where(self.active[:, None], theta, 0.0)
        log_conditional = torch.cat([self._log_conditional(theta[part], part)
                                     for part in self._blocks(self._everyone, theta.shape[1])])
        return self.base.log_prob(theta[..., ~self.places]) + log_conditional

    def _log_conditional(self, theta: Tensor, index: Tensor) -> Tensor:
        mean, factor = self.conditional(theta, index)
        noise = (factor.mT @ (theta[..., self.places] - mean)[..., None])[..., 0]
        return self._log_normal(noise, factor, index)

    def _blocks(self, index: Tensor, num_samples: int) -> tuple[Tensor, ...]:
        return index.split(max(1, _MOST_ENTRIES // (num_samples * int(self.places.sum()) ** 2)))

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
