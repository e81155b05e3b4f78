"""Some of the datasets of a distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.types import ThetaDistribution


class Picked:
    """Some of the datasets of a distribution; implements :class:`posteria.types.ThetaDistribution`.

    Draws for the whole batch and keeps its own, so that a draw does not depend on how datasets are picked.
    """

    def __init__(self, distribution: ThetaDistribution, index: Tensor):
        self._whole, self._index = distribution, index
        self.active = distribution.active[index]

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        return self._whole.rsample(num_samples, generator)[self._index]

    def log_prob(self, theta: Tensor) -> Tensor:
        whole = theta.new_zeros(self._whole.active.shape[0], *theta.shape[1:])
        return self._whole.log_prob(whole.index_copy(0, self._index, theta))[self._index]

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        draws, log_prob = self._whole.rsample_and_log_prob(num_samples, generator)
        return draws[self._index], log_prob[self._index]

    def detach(self) -> Picked:
        return Picked(self._whole.detach(), self._index)

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> Tensor | None:
        divergence = self._whole.kl_to_normal(location, scale)
        return None if divergence is None else divergence[self._index]
