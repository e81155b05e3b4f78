"""A mixture of densities of one posterior, each from a search of its own: what is found of several modes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.densities.noise import coins, from_noise
from posteria.types import ThetaDistribution


@dataclass(frozen=True)
class MixedTheta:
    """q(theta | D) = sum_k share_k q_k(theta | D).

    Attributes:
        parts: K distributions of the same parameters.
        log_share: (B, K) logarithms of shares that sum to one.
    """

    parts: tuple[ThetaDistribution, ...]
    log_share: Tensor

    @property
    def active(self) -> Tensor:
        """(B, P) bool."""
        return self.parts[0].active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) draws, reparametrised within their part; zero at inactive parameters."""
        drawn = torch.stack([part.rsample(num_samples, generator) for part in self.parts])
        return self._picked(drawn, torch.rand(drawn.shape[1:3], generator=generator, device=drawn.device))

    def at_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What standard normal noise (B, S, P) becomes, and its log density (B, S)."""
        theta = self._picked(torch.stack([from_noise(part, noise)[0] for part in self.parts]), coins(noise))
        return theta, self.log_prob(theta)

    def _picked(self, drawn: Tensor, coins: Tensor) -> Tensor:
        """(B, S, P) out of draws (K, B, S, P) of all parts, by uniform coins (B, S)."""
        edges = self.log_share.detach().exp().cumsum(-1)
        edges = edges / edges[:, -1:]
        chosen = torch.searchsorted(edges, coins).clamp(max=len(self.parts) - 1)
        return drawn.gather(0, chosen[None, ..., None].expand(1, -1, -1, drawn.shape[-1]))[0]

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        each = torch.stack([part.log_prob(theta) for part in self.parts], -1)
        return (each + self.log_share[:, None]).logsumexp(-1)

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S)."""
        theta = self.rsample(num_samples, generator)
        return theta, self.log_prob(theta)

    def detach(self) -> MixedTheta:
        """The same with all its parameters cut from the graph."""
        return replace(self, parts=tuple(part.detach() for part in self.parts), log_share=self.log_share.detach())

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> None:
        """None: there is no closed form."""
        return None
