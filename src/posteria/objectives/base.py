"""Objective: (distribution, dataset, theta or None, model, step) -> scalar loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posteria.models.base import Model
from posteria.types import Dataset, ThetaDistribution


@dataclass(frozen=True)
class Step:
    """Where training stands: ``progress`` in [0, 1] of the budget, and the step's randomness."""

    progress: float = 1.0
    generator: torch.Generator | None = None


class Objective(ABC):
    """A small callable; its options are JSON values.

    ``needs_theta``: it reads the generating parameters, so it trains on simulated data only.
    """

    needs_theta: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, distribution: ThetaDistribution, dataset: Dataset, theta: Tensor | None, model: Model,
                 step: Step) -> Tensor:
        """Scalar loss, a mean over datasets. theta (B, P) generated the datasets, or None."""
