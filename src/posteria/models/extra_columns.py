"""Leading columns of x that are not features: an exposure, a number of trials, a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from posteria.errors import DataError
from posteria.types import Dataset

Draw = Callable[[tuple[int, int], torch.Generator | None, torch.device | str], Tensor]


@dataclass(frozen=True)
class ExtraColumn:
    """One extra column of a model.

    Attributes:
        name: what users see.
        support: what its values meet at real rows.
        draw: ((datasets, rows), generator, device) -> values (B, N), for simulated inputs.
        filling: a value within the support, which stands at padded rows so that nothing there is infinite.
    """

    name: str
    support: Constraint
    draw: Draw
    filling: float = 1.0

    def values(self, dataset: Dataset, place: int) -> Tensor:
        """(B, 1, N) values, those of padded rows filled; ``place`` is the column's in x."""
        return torch.where(dataset.observed, dataset.x[..., place], self.filling)[:, None]

    def check(self, dataset: Dataset, place: int) -> None:
        """Raise a DataError where a real row has a value outside the support."""
        column = dataset.x[..., place]
        bad = ~self.support.check(column) & dataset.observed
        if bad.any():
            raise DataError.of(f"column {self.name}", f"{float(column[bad][0]):g}", f"values that meet {self.support}")


def whole_column(name: str, low: int, high: int, support: Constraint, filling: float = 1.0) -> ExtraColumn:
    """Whole numbers, drawn evenly between ``low`` and ``high`` (both included)."""

    def draw(shape: tuple[int, int], generator: torch.Generator | None, device: torch.device | str) -> Tensor:
        drawn = torch.randint(low, high + 1, shape, generator=generator, device=device)
        return drawn.to(torch.get_default_dtype())

    return ExtraColumn(name, support, draw, filling)


def positive_column(name: str, low: float, high: float) -> ExtraColumn:
    """Positive numbers, drawn evenly between ``low`` and ``high``."""

    def draw(shape: tuple[int, int], generator: torch.Generator | None, device: torch.device | str) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, device=device)

    return ExtraColumn(name, constraints.positive, draw)


def check_at_most(dataset: Dataset, name: str, most: Tensor) -> None:
    """Raise a DataError where a real y is larger than ``most`` (B, N), the values of the column ``name``."""
    if dataset.y is None:
        return
    bad = dataset.observed & (dataset.y > most)
    if bad.any():
        raise DataError.of("y", f"{float(dataset.y[bad][0]):g} with {float(most[bad][0]):g} in the column {name}",
                           f"values up to those of {name}")
