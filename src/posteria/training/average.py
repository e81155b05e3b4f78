"""Exponential moving average of the weights (EMA): what is validated and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps ``decay * average + (1 - decay) * weights``; young averages forget faster, so the start fades.

    Args:
        module: whose parameters are averaged (buffers are taken as they are).
        decay: in [0, 1), or None: the average is the weights themselves.
    """

    def __init__(self, module: nn.Module, decay: float | None):
        self.decay = decay
        self._weights = dict(module.named_parameters())
        copies = {} if decay is None else self._weights
        self._average = {name: p.detach().clone() for name, p in copies.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this step."""
        if self.decay is None:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        blend = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
        blend(list(self._average.values()), list(self._weights.values()), 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the module, for good."""
        for name, value in self._average.items():
            self._weights[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the average inside the block, and its own weights again after it."""
        own = {name: self._weights[name].detach().clone() for name in self._average}
        self.apply()
        try:
            yield
        finally:
            self.load(own, self._weights)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the parameters' names; none without a decay."""
        return dict(self._average)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], into: Mapping[str, Tensor] | None = None) -> None:
        """Copy saved values into the average (or into the given tensors)."""
        for name, target in (self._average if into is None else into).items():
            if name in tensors:
                target.copy_(tensors[name])
