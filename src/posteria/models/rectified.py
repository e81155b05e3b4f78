"""Regressions on rectified lines: what a network of one feature is, given its hidden weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rectified:
    """A design whose columns are the positive parts of lines: max(0, slope x + offset).

    Attributes:
        x: (N,) of one dataset.
        target: (N,).
        slope, offset: (1, C, R).
        strength: (1, C or 1) precision of the noise.
    """

    x: Tensor
    target: Tensor
    slope: Tensor
    offset: Tensor
    strength: Tensor
