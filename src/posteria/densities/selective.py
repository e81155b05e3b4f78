"""Draws for some of the datasets alone."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from posteria.types import ThetaDistribution


@runtime_checkable
class Selective(ThetaDistribution, Protocol):
    """A distribution that draws for some of its datasets alone, where doing so for all would be dear."""

    def draws_of(
        self, index: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (b, S, P) and their log density (b, S) of some datasets (b,) alone, the same as among all."""
        ...


def draws_of(distribution: ThetaDistribution, index: Tensor, num_samples: int,
             generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draws (b, S, P) and their log density (b, S) of some datasets (b,), by those of all where there is no other way.
    """
    if isinstance(distribution, Selective):
        return distribution.draws_of(index, num_samples, generator)
    theta, log_prob = distribution.rsample_and_log_prob(num_samples, generator)
    return theta[index], log_prob[index]
