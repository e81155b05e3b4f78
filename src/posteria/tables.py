"""Tables: from a user's data frame, CSV or Parquet to a Dataset, and posteriors back to the user's units.

Estimators are trained on inputs and targets of about zero mean and unit variance. A :class:`TableCodec` learns
from one table how to bring its columns there, does the same to later tables, and keeps the names and scales
that lead back.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from posteria.columns import TARGETS, ClassTarget, Column, Target, fit_column, listed, numbers_of
from posteria.errors import DataError
from posteria.models.base import Model
from posteria.posterior import Posterior
from posteria.types import Dataset


@dataclass(frozen=True)
class Scaling:
    """Locations and scales of the encoded features (F,) and of the target: own units = location + scale * value."""

    x_location: Tensor
    x_scale: Tensor
    y_location: float = 0.0
    y_scale: float = 1.0


@dataclass(frozen=True)
class TableCodec:
    """How one table becomes a Dataset; fit on the training table, applied to new ones.

    Attributes:
        columns: the columns in use, in the order of the features.
        extra: columns passed through unscaled, ahead of the features (an exposure, say).
        target: the target, or None for a model of x alone.
        unused: columns of the fitted table that are not used: constant ones and those not asked for.

    Examples:
        >>> table = pd.DataFrame({"size": [1.0, 2.0, 3.0], "colour": ["red", "blue", "red"], "price": [9.0, 5.0, 1.0]})
        >>> codec = TableCodec.fit(table, target="price")
        >>> codec.features
        ('size', 'colour=red')
        >>> codec.dataset(table).x.shape
        torch.Size([1, 3, 2])
    """

    columns: tuple[Column, ...]
    extra: tuple[str, ...]
    target: Target | None
    unused: tuple[str, ...] = ()

    @classmethod
    def fit(cls, table: pd.DataFrame, target: str | None = None, kind: str = "real",
            columns: Sequence[str] | None = None, extra: Sequence[str] = (), max_features: int | None = None,
            num_classes: int | None = None) -> TableCodec:
        """Learn names, levels and scales from a table.

        Numbers are standardised, labels and booleans one-hot encoded (0/1 for two levels), constant columns
        dropped with a warning.

        Args:
            table: one row per observation.
            target: name of the column to predict; None for ``kind="none"``.
            kind: "real", "class", "count", "positive" or "none", as :attr:`Model.target`.
            columns: the columns to use; default all but the target.
            extra: columns passed through by name, unscaled.
            max_features: the most features, after one-hot encoding.
            num_classes: the most classes.

        Raises:
            DataError: missing or infinite values, unknown names, columns of unusable types, too many features
                or classes.
        """
        table = _checked(table)
        _check_target_name(table, target, kind)
        names = _chosen(table, target, columns, extra)
        used = [*extra, *names, *([target] if target is not None else [])]
        _check_complete(table, used)
        constant = [name for name in names if _column(table, name).nunique() == 1]
        if constant:
            warnings.warn(f"columns: dropped {listed(constant)}, constant in this table", stacklevel=2)
        names = [name for name in names if name not in constant]
        fitted = tuple(fit_column(_column(table, name)) for name in names)
        _check_features(fitted, max_features)
        fitted_target = None if target is None else TARGETS[kind](_column(table, target), num_classes)
        unused = tuple(name for name in table.columns if name not in {*names, *extra, target})
        return cls(fitted, tuple(extra), fitted_target, unused)

    @classmethod
    def for_model(cls, model: Model, table: pd.DataFrame, target: str | None = None,
                  columns: Sequence[str] | None = None, max_features: int | None = None) -> TableCodec:
        """:meth:`fit` with the kind of target, classes and extra columns that the model has."""
        num_classes = getattr(model, "num_classes", 0) or None
        return cls.fit(table, target, model.target, columns, model.extra_columns, max_features, num_classes)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the encoded features, in order, extra columns apart."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; empty for other targets."""
        return self.target.label_names if isinstance(self.target, ClassTarget) else ()

    @property
    def scaling(self) -> Scaling:
        """Locations and scales of the features and of the target, in double precision."""
        locations = torch.tensor([v for column in self.columns for v in column.locations], dtype=torch.float64)
        scales = torch.tensor([v for column in self.columns for v in column.scales], dtype=torch.float64)
        if self.target is None:
            return Scaling(locations, scales)
        return Scaling(locations, scales, self.target.location, self.target.scale)

    def encode(self, table: pd.DataFrame) -> np.ndarray:
        """(N, extra + features) numbers of a table with the fitted columns, in any order.

        Raises:
            DataError: columns missing or unknown, missing or infinite values, unknown levels.
        """
        table = _checked(table)
        self._check_columns(table)
        _check_complete(table, [*self.extra, *(column.name for column in self.columns)])
        extra = [numbers_of(_column(table, name))[:, None] for name in self.extra]
        encoded = [column.encode(_column(table, column.name)) for column in self.columns]
        return np.concatenate([*extra, *encoded], axis=1)

    def dataset(self, table: pd.DataFrame) -> Dataset:
        """One dataset (1, N, extra + features), with y where the table has the target."""
        x, table = torch.tensor(self.encode(table)), _checked(table)
        if self.target is None or self.target.name not in table.columns:
            return Dataset.of(x)
        _check_complete(table, [self.target.name])
        return Dataset.of(x, torch.tensor(self.target.encode(_column(table, self.target.name))))

    def target_in_units(self, values: Tensor) -> Tensor:
        """Target values (predictions, say) in the table's own units."""
        return values if self.target is None else self.target.location + self.target.scale * values

    def name(self, posterior: Posterior) -> Posterior:
        """The posterior with the table's names of features and classes."""
        coords: dict[str, Sequence[str]] = {"features": self.features, "classes": self.label_names}
        axes = posterior.layout.groups
        # A model with a reference class has no parameters for the first label.
        return posterior.with_coords(**{axis: labels[-posterior.model.axes.get(axis, len(labels)):]
                                        for axis, labels in coords.items() if axis in axes and labels})

    def _check_columns(self, table: pd.DataFrame) -> None:
        needed = [*self.extra, *(column.name for column in self.columns)]
        missing = [name for name in needed if name not in table.columns]
        known = {*needed, *self.unused, *([self.target.name] if self.target else [])}
        unknown = [name for name in table.columns if name not in known]
        if missing:
            raise DataError.of("table", f"a table without {len(missing)} columns ({listed(missing)})",
                               f"the {len(needed)} columns of the table it was fitted to")
        if unknown:
            raise DataError.of("table", f"{len(unknown)} unknown columns ({listed(unknown)})",
                               f"the {len(needed)} columns of the table it was fitted to")


def in_units(model: Model, draws: Mapping[str, Tensor], scaling: Scaling) -> dict[str, Tensor] | None:
    """Named draws in the user's own units, or None for a model that has no such parameters (a neural network).

    Args:
        model: its ``in_units`` knows the formula.
        draws: named constrained values, as :meth:`Posterior.sample` gives them.
        scaling: of the table, see :attr:`TableCodec.scaling`.
    """
    # Locations may be large beside scales (a year, say): single precision would lose the intercept.
    double = {name: value.detach().cpu().double() for name, value in draws.items()}
    return model.in_units(double, scaling.x_location, scaling.x_scale, scaling.y_location, scaling.y_scale)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV (also gzipped) or Parquet file.

    Raises:
        DataError: no such file, another kind of file, or one that cannot be read.
    """
    path = Path(path)
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix not in _READERS:
        raise DataError.of("data", f"{path.name!r}", f"a file ending in {', '.join(sorted(_READERS))} (.csv.gz too)")
    if not path.is_file():
        raise DataError.of("data", f"{path}, which does not exist", "a CSV or Parquet file")
    try:
        return _READERS[suffix](path)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError.of("data", f"{path.name}, which cannot be read ({reason})", "a CSV or Parquet file") from error


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": pd.read_csv, ".parquet": pd.read_parquet, ".pq": pd.read_parquet,
}


# -- checks -----------------------------------------------------------------------------------
def _checked(table: pd.DataFrame) -> pd.DataFrame:
    """The table with text as column names."""
    table = table.rename(columns=str)
    if table.empty:
        raise DataError.of("table", f"{len(table)} rows and {table.shape[1]} columns", "at least one of each")
    twice = table.columns[table.columns.duplicated()].tolist()
    if twice:
        raise DataError.of("table", f"columns named twice ({listed(twice)})", "different names")
    return table


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    column = table[name]
    assert isinstance(column, pd.Series)  # names are unique
    return column


def _check_target_name(table: pd.DataFrame, target: str | None, kind: str) -> None:
    if kind == "none":
        if target is not None:
            raise DataError.of("target", repr(target), "None: this model describes all columns and predicts none")
        return
    if target is None:
        raise DataError.of("target", "None", f"the column to predict, one of {listed(table.columns)}")
    if target not in table.columns:
        raise DataError.of("target", repr(target), f"one of the columns {listed(table.columns)}")


def _chosen(table: pd.DataFrame, target: str | None, columns: Sequence[str] | None,
            extra: Sequence[str]) -> list[str]:
    absent = [name for name in extra if name not in table.columns]
    if absent:
        raise DataError.of("table", f"a table without {listed(absent)}", f"a table with the columns {listed(extra)}")
    if columns is None:
        return [name for name in table.columns if name not in {target, *extra}]
    unknown = [name for name in columns if name not in table.columns]
    if unknown:
        raise DataError.of("columns", f"{listed(unknown)}, not in the table",
                           f"some of {listed(table.columns)}")
    if target in columns:
        raise DataError.of("columns", f"the target {target!r}", "columns other than the target")
    return [name for name in dict.fromkeys(columns) if name not in extra]


def _check_complete(table: pd.DataFrame, names: Sequence[str]) -> None:
    used = table[list(names)]
    _refuse("missing", used.isna().sum().to_dict(), "complete rows: drop or fill the missing values first")
    numeric = used.select_dtypes("number")
    infinite = dict(zip(numeric.columns, np.isinf(numeric.to_numpy(np.float64)).sum(0), strict=True))
    _refuse("infinite", infinite, "finite numbers")


def _refuse(what: str, counts: Mapping[str, int], takes: str) -> None:
    bad = [f"{name} ({count})" for name, count in counts.items() if count]
    if bad:
        raise DataError.of("table", f"{what} values in {listed(bad)}", takes)


def _check_features(columns: tuple[Column, ...], max_features: int | None) -> None:
    got = sum(len(column.features) for column in columns)
    if not got:
        raise DataError.of("table", "no feature that varies", "at least one column that is not constant")
    if max_features is None or got <= max_features:
        return
    wide = sorted((c for c in columns if len(c.features) > 1), key=lambda c: -len(c.features))
    detail = f" (of which {listed(f'{c.name} {len(c.features)}' for c in wide)} after one-hot encoding)"
    raise DataError(f"features: this estimator takes at most {max_features} features, got {got}{detail if wide else ''}"
                    "; choose some with columns")
