"""Task: a distribution over datasets."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from posteria.models.base import Model
from posteria.types import Dataset


class Task(Protocol):
    """Draws training and test datasets.

    Attributes:
        columns: (least, most) columns of x.
        rows: (least, most) observations.
        gives_theta: ``draw`` returns the parameters that generated the datasets; False where the datasets do not
            come from the assumed model, or not from its prior.
        model: the assumed model.
    """

    columns: tuple[int, int]
    rows: tuple[int, int]
    gives_theta: bool
    model: Model

    def pick(self, generator: torch.Generator) -> Task:
        """The task that the next batch comes from: itself, unless it is a distribution over models."""
        ...

    def draw(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu",
             rows: int | None = None) -> tuple[Dataset, Tensor | None]:
        """A batch of datasets and the theta (B, P) that generated them, or None where there is none.

        ``rows`` fixes the number of observations; by default it is drawn once for the batch.
        """
        ...
