"""Draws out of given noise, so that what is judged by them hangs on no generator."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from posteria.randomness import generator_for
from posteria.types import ThetaDistribution

_SEED = 8_117


@runtime_checkable
class TakesNoise(Protocol):
    """A distribution of theta whose draws can be made of noise."""

    def at_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What standard normal noise (B, S, P) becomes, and its log density (B, S)."""
        ...


def from_noise(distribution: ThetaDistribution, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draws of a distribution and their log densities, out of noise (B, S, P) where it takes some.

    Elsewhere as many draws of a fixed seed.
    """
    if isinstance(distribution, TakesNoise):
        return distribution.at_noise(noise)
    return distribution.rsample_and_log_prob(noise.shape[1], generator_for(_SEED, device=noise.device))


def coins(noise: Tensor) -> Tensor:
    """(B, S) uniform numbers beside noise (B, S, P), the same for all datasets."""
    return torch.rand(noise.shape[1], generator=generator_for(_SEED)).to(noise).repeat(len(noise), 1)
