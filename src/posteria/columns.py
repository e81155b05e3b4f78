"""Columns of a table: how each kind is learnt from its values, and becomes numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types as kinds

from posteria.errors import DataError

_SHOWN_NAMES = 8


@dataclass(frozen=True)
class NumberColumn:
    """A numeric column, standardised to zero mean and unit variance over the table it was fitted to."""

    name: str
    location: float
    scale: float

    @property
    def features(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def scales(self) -> tuple[float, ...]:
        return (self.scale,)

    @property
    def locations(self) -> tuple[float, ...]:
        return (self.location,)

    def encode(self, values: pd.Series) -> np.ndarray:
        """(N, 1) standardised numbers."""
        return ((numbers_of(values) - self.location) / self.scale)[:, None]


@dataclass(frozen=True)
class CategoryColumn:
    """A column of labels: 0 or 1 for two levels, one 0/1 feature per level for more. Not scaled."""

    name: str
    levels: tuple[Any, ...]

    @property
    def _coded(self) -> tuple[Any, ...]:
        return self.levels[1:] if len(self.levels) == 2 else self.levels

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(f"{self.name}={label_name(level)}" for level in self._coded)

    @property
    def scales(self) -> tuple[float, ...]:
        return (1.0,) * len(self._coded)

    @property
    def locations(self) -> tuple[float, ...]:
        return (0.0,) * len(self._coded)

    def encode(self, values: pd.Series) -> np.ndarray:
        """(N, features) of 0 and 1.

        Raises:
            DataError: a level that the fitted table did not have.
        """
        index = _index_of(values, self.levels, f"column {self.name!r}", "levels")
        skipped = len(self.levels) - len(self._coded)
        return np.eye(len(self.levels))[index][:, skipped:]


@dataclass(frozen=True)
class RealTarget:
    """A numeric target, standardised."""

    name: str
    location: float
    scale: float

    def encode(self, values: pd.Series) -> np.ndarray:
        """(N,) standardised numbers."""
        return (numbers_of(values, "target") - self.location) / self.scale


@dataclass(frozen=True)
class CountTarget:
    """A target of counts, as it is."""

    name: str
    location: float = 0.0
    scale: float = 1.0

    def encode(self, values: pd.Series) -> np.ndarray:
        """(N,) whole numbers."""
        counts = numbers_of(values, "target")
        if ((counts < 0) | (counts != counts.round())).any():
            raise DataError.of(f"target {self.name!r}", "negative or fractional values", "counts 0, 1, 2, ...")
        return counts


@dataclass(frozen=True)
class PositiveTarget:
    """A target of positive numbers (durations, amounts), taken as they are."""

    name: str
    location: float = 0.0
    scale: float = 1.0

    def encode(self, values: pd.Series) -> np.ndarray:
        """(N,) positive numbers."""
        numbers = numbers_of(values, "target")
        if (numbers <= 0).any():
            raise DataError.of(f"target {self.name!r}", "values that are zero or negative", "positive values")
        return numbers


@dataclass(frozen=True)
class ClassTarget:
    """A target of labels, as indices into ``labels``."""

    name: str
    labels: tuple[Any, ...]
    location: float = 0.0
    scale: float = 1.0

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label_name(label) for label in self.labels)

    def encode(self, values: pd.Series) -> np.ndarray:
        """(N,) class indices."""
        return _index_of(values, self.labels, f"target {self.name!r}", "classes").astype(np.float64)


Column = NumberColumn | CategoryColumn
Target = RealTarget | CountTarget | PositiveTarget | ClassTarget


def label_name(label: object) -> str:
    """A label as text: whole floats without their point, so that 1.0 and 1 read alike."""
    return f"{label:g}" if isinstance(label, float) else str(label)


def fit_column(values: pd.Series) -> Column:
    """Numbers are standardised; text, categories and booleans are levels."""
    name = str(values.name)
    if kinds.is_bool_dtype(values) or isinstance(values.dtype, pd.CategoricalDtype) or kinds.is_string_dtype(values):
        return CategoryColumn(name, _levels(values))
    numbers = numbers_of(values)
    return NumberColumn(name, float(numbers.mean()), float(numbers.std()))


def _fit_real(values: pd.Series, num_classes: int | None) -> RealTarget:
    numbers = numbers_of(values, "target")
    if np.ptp(numbers) == 0:
        raise DataError.of(f"target {values.name!r}", "one value in all rows", "a target that varies")
    return RealTarget(str(values.name), float(numbers.mean()), float(numbers.std()))


def _fit_count(values: pd.Series, num_classes: int | None) -> CountTarget:
    target = CountTarget(str(values.name))
    target.encode(values)
    return target


def _fit_positive(values: pd.Series, num_classes: int | None) -> PositiveTarget:
    target = PositiveTarget(str(values.name))
    target.encode(values)
    return target


def _fit_class(values: pd.Series, num_classes: int | None) -> ClassTarget:
    labels = _levels(values)
    most = len(labels) if num_classes is None else num_classes
    if not 2 <= len(labels) <= most:
        takes = "2 classes" if most == 2 else f"2 to {most} classes" if num_classes else "2 or more classes"
        raise DataError.of(f"target {values.name!r}", f"{len(labels)} classes ({listed(map(label_name, labels))})",
                           takes)
    return ClassTarget(str(values.name), labels)


TARGETS: dict[str, Callable[[pd.Series, int | None], Target]] = {
    "real": _fit_real, "count": _fit_count, "positive": _fit_positive, "class": _fit_class,
}


def _levels(values: pd.Series) -> tuple[Any, ...]:
    """Distinct values in order; of Python types, so that they print plainly."""
    levels = [level.item() if isinstance(level, np.generic) else level for level in values.unique()]
    try:
        return tuple(sorted(levels))
    except TypeError:  # labels of mixed types
        return tuple(sorted(levels, key=str))


def _index_of(values: pd.Series, levels: tuple[Any, ...], where: str, what: str) -> np.ndarray:
    place = {level: i for i, level in enumerate(levels)}
    unknown = [level for level in _levels(values) if level not in place]
    if unknown:
        raise DataError.of(where, f"{len(unknown)} unknown {what} ({listed(map(label_name, unknown))})",
                           f"the {len(levels)} {what} {listed(map(label_name, levels))}")
    return np.array([place[value] for value in values])


def numbers_of(values: pd.Series, what: str = "column") -> np.ndarray:
    """(N,) double-precision values.

    Raises:
        DataError: a column that is not numeric.
    """
    if kinds.is_numeric_dtype(values) and not kinds.is_complex_dtype(values):
        return values.to_numpy(dtype=np.float64)
    takes = "numbers" if what == "target" else "numbers, labels or booleans"
    raise DataError.of(f"{what} {values.name!r}", f"values of type {values.dtype}", takes)


def listed(names: Any) -> str:
    """The first few names, and how many more there are."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"
