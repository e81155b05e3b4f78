"""A density over changed parameters: q(theta | D) = q(u | D) / |dtheta/du|, entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.densities.noise import from_noise
from posteria.densities.selective import draws_of
from posteria.types import ThetaDistribution

_Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChangedTheta:
    """The distribution of theta(u), for u from a distribution.

    Attributes:
        base: of u, (B, S, P).
        theta, units: u -> theta and back, (..., P) each, increasing in every entry.
        log_slopes: u -> (..., P) log dtheta/du.
    """

    base: ThetaDistribution
    theta: _Change
    units: _Change
    log_slopes: _Change

    @property
    def active(self) -> Tensor:
        """(B, P) bool."""
        return self.base.active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) reparametrised draws; zero at inactive parameters."""
        return _masked(self.active, self.theta(self.base.rsample(num_samples, generator)))

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S)."""
        return self._changed(self.active, *self.base.rsample_and_log_prob(num_samples, generator))

    def draws_of(
        self, index: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (b, S, P) and their log density (b, S) of some datasets (b,) alone, the same as among all."""
        return self._changed(self.active[index], *draws_of(self.base, index, num_samples, generator))

    def at_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What standard normal noise (B, S, P) becomes, and its log density (B, S)."""
        return self._changed(self.active, *from_noise(self.base, noise))

    def _changed(self, active: Tensor, u: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Draws u (B, S, P) of the base and their log densities (B, S), as those of theta."""
        return _masked(active, self.theta(u)), log_prob - self._volume(active, u)

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        u = _masked(self.active, self.units(theta))
        return self.base.log_prob(u) - self._volume(self.active, u)

    def detach(self) -> ChangedTheta:
        """The same with all its parameters cut from the graph."""
        return replace(self, base=self.base.detach())

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> None:
        """None: there is no closed form."""
        return None

    def _volume(self, active: Tensor, u: Tensor) -> Tensor:
        return _masked(active, self.log_slopes(u)).sum(-1)


def _masked(active: Tensor, values: Tensor) -> Tensor:
    return torch.where(active[:, None], values, 0.0)
