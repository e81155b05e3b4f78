"""Datasets simulated from a model: theta from the prior, then data from the likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.models.base import Model
from posteria.types import Dataset

RowsScale = Literal["uniform", "log"]
VaryFeatures = Literal["batch", "dataset"]
_LARGEST_SEED = 2**62
_T = TypeVar("_T")


class SimulatedTask:
    """Draws theta from the model's prior and a dataset from the model at theta.

    Args:
        model: what simulates; its ``draw_inputs`` gives x.
        rows: (least, most) observations; one number is drawn per batch, so rows need no padding.
        columns: (least, most) columns of x, the model's extra columns included.
        rows_scale: "uniform" over the numbers of rows, or "log": uniform over their logarithms, so that small
            datasets are seen as often as large ones.
        vary_features: "batch": one number of columns per batch and no padding (encoders that take any number);
            "dataset": each dataset its own, masked at the most columns (the paper's encoders).

    Raises:
        InputError: a range that is not (least, most) of whole numbers, columns without a feature, unknown names.

    Examples:
        >>> from posteria.models.linear import LinearRegression
        >>> from posteria.randomness import generator_for
        >>> task = SimulatedTask(LinearRegression(), rows=(8, 8), columns=(2, 2))
        >>> dataset, theta = task.draw(4, generator_for(0))
        >>> dataset.x.shape, theta.shape
        (torch.Size([4, 8, 2]), torch.Size([4, 3]))
    """

    gives_theta: bool = True

    def __init__(self, model: Model, rows: Sequence[int] = (64, 128), columns: Sequence[int] = (2, 2),
                 rows_scale: RowsScale = "uniform", vary_features: VaryFeatures = "batch"):
        self.model = model
        self.rows = _range("rows", rows, least=1)
        self.columns = _range("columns", columns, least=len(model.extra_columns) + 1)
        self.rows_scale: RowsScale = rows_scale
        self.vary_features: VaryFeatures = vary_features
        self._draw_rows = choose("rows_scale", rows_scale, _ROW_SCALES)
        self._draw_columns = choose("vary_features", vary_features, _VARY_FEATURES)

    def pick(self, generator: torch.Generator) -> SimulatedTask:
        """The task that the next batch comes from: itself, since there is one model."""
        return self

    def draw(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu",
             rows: int | None = None) -> tuple[Dataset, Tensor]:
        """B datasets of one size and the theta (B, P) that generated them.

        Entries of theta that belong to masked features are prior draws, and nothing reads them.

        Args:
            num_datasets: B.
            generator: all the randomness; it lives on ``device``.
            device: where the simulation runs.
            rows: number of observations N, in place of drawing it.
        """
        rows, features = self.draw_sizes(num_datasets, generator, device, rows)
        theta = self.model.layout(features.shape[-1]).sample_prior((num_datasets,), generator, device)
        x = self.draw_inputs(num_datasets, rows, features.shape[-1], generator, device)
        observed = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        inputs = Dataset(x * features[:, None], None, observed, features)
        dataset = self.model.simulate(theta, inputs, generator)
        # A model of x alone draws every column: those that are not there are padding.
        return replace(dataset, x=dataset.x * features[:, None]), theta

    def draw_inputs(self, num_datasets: int, rows: int, columns: int, generator: torch.Generator,
                    device: torch.device | str = "cpu") -> Tensor:
        """(B, N, D) inputs: the model's."""
        return self.model.draw_inputs(num_datasets, rows, columns, generator, device)

    def draw_sizes(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu",
                   rows: int | None = None) -> tuple[int, Tensor]:
        """The number of rows and the mask of features (B, D) of a batch."""
        sizes = host_generator(generator)
        drawn = self._draw_rows(self.rows, sizes)
        features = self._draw_columns(self.columns, num_datasets, sizes).to(device)
        return drawn if rows is None else rows, features

    def masked(self) -> SimulatedTask:
        """The same task at the most columns, with masks: for estimators of one size."""
        return SimulatedTask(self.model, self.rows, self.columns, self.rows_scale, "dataset")

    def options(self) -> dict[str, Any]:
        """Keyword arguments (JSON values) that build this task again, the model apart."""
        return {"rows": list(self.rows), "columns": list(self.columns), "rows_scale": self.rows_scale,
                "vary_features": self.vary_features}


def host_generator(generator: torch.Generator) -> torch.Generator:
    """A CPU generator for the sizes, which the host must know: reading them back from a GPU would wait for it.

    It depends on where the device's generator stands (seed and offset, which the host keeps).
    """
    if generator.device.type == "cpu":
        return generator
    state = int.from_bytes(generator.get_state().numpy().tobytes(), "little")
    return torch.Generator().manual_seed(state % (_LARGEST_SEED - 57))  # not a power of two: all bytes count


def _uniform(low: int, high: int, generator: torch.Generator, shape: tuple[int, ...] = ()) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=generator)


def _uniform_rows(rows: tuple[int, int], generator: torch.Generator) -> int:
    return int(_uniform(*rows, generator))


def _log_uniform_rows(rows: tuple[int, int], generator: torch.Generator) -> int:
    low, high = math.log(rows[0]), math.log(rows[1] + 1)
    place = float(torch.rand((), generator=generator))
    return min(rows[1], max(rows[0], int(math.exp(low + place * (high - low)))))


def _per_batch(columns: tuple[int, int], num_datasets: int, generator: torch.Generator) -> Tensor:
    return torch.ones(num_datasets, int(_uniform(*columns, generator)), dtype=torch.bool)


def _per_dataset(columns: tuple[int, int], num_datasets: int, generator: torch.Generator) -> Tensor:
    return torch.arange(columns[1]) < _uniform(*columns, generator, (num_datasets, 1))


_ROW_SCALES = {"uniform": _uniform_rows, "log": _log_uniform_rows}
_VARY_FEATURES = {"batch": _per_batch, "dataset": _per_dataset}


def choose(argument: str, name: str, choices: dict[str, _T]) -> _T:
    """The choice of that name, or an error that lists the names."""
    if name not in choices:
        raise InputError.of(argument, repr(name), f"one of {sorted(choices)}")
    return choices[name]


def _range(argument: str, values: Sequence[int], least: int) -> tuple[int, int]:
    takes = f"(least, most), whole numbers with {least} <= least <= most"
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 2:
        raise InputError.of(argument, repr(values), takes)
    low, high = values
    if int(low) != low or int(high) != high or not least <= low <= high:
        raise InputError.of(argument, repr(values), takes)
    return int(low), int(high)
