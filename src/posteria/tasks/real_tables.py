"""Datasets resampled from real tables: some rows and some features of a table of the user's own.

Each dataset of a batch comes from one table of a folder, drawn at random among those that are large enough: rows
without replacement, features without replacement and in any order, then standardised again over what was drawn. No
model made these data, so there is no theta, and forward KL refuses the task; reverse KL, which fits q to the posterior
of the assumed model and its prior whatever the data (arXiv 2502.06601), trains on it. A mixture with simulated datasets
(``mixture_of_tasks``) keeps an estimator from practising on these tables only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posteria.errors import DataError, InputError
from posteria.models.base import Model
from posteria.tasks.simulated import RowsScale, SimulatedTask, VaryFeatures, host_generator
from posteria.types import Dataset

if TYPE_CHECKING:
    from posteria.tables import TableCodec

_ENDINGS = (".csv", ".csv.gz", ".parquet", ".pq")
_TARGET = "target"
# Random keys held at once when rows of large tables are chosen: 64 MB.
_MOST_KEYS = 2**24


class RealTablesTask(SimulatedTask):
    """Datasets of n rows and D features, each resampled from one of the tables in a folder.

    n and D are drawn as for :class:`SimulatedTask`, n up to the rows of the longest table and D up to the features of
    the widest one that has n rows. Tables with at least n rows and D features are equally likely.

    Args:
        model: the assumed model; of a real or class y, and without extra columns.
        folder: with the tables, a file each: CSV (also gzipped) or Parquet. Text, categories and booleans are one-hot
            encoded. All are read at once, and kept in single precision.
        target: the column to predict: one name for all files, or file name -> column.
        rows, columns, rows_scale, vary_features: as for :class:`SimulatedTask`; columns are counted after encoding.
        most_cells: batches hold fewer datasets than asked for where datasets × rows × columns would exceed this; at
            least one.

    Attributes:
        names: of the files, in order.
        rows: (least, most) rows that are drawn.

    Raises:
        InputError: as for :class:`SimulatedTask`; a model of x alone or with extra columns, or one of counts.
        DataError: no folder or no table in it; a table that cannot be read or encoded, has no such target, too few
            rows or features for the ranges, or a number of classes that the model does not have. The message names
            the file.

    Examples:
        >>> task = RealTablesTask(LinearRegression(), "tables", "price", rows=(20, 40))  # doctest: +SKIP
        >>> dataset, theta = task.draw(32, generator_for(0))  # theta is None  # doctest: +SKIP
    """

    gives_theta = False

    def __init__(self, model: Model, folder: str, target: str | Mapping[str, str] = _TARGET,
                 rows: Sequence[int] = (64, 128), columns: Sequence[int] = (1, 100), rows_scale: RowsScale = "uniform",
                 vary_features: VaryFeatures = "batch", most_cells: int = 200_000):
        if model.target not in ("real", "class") or model.extra_columns:
            raise InputError.of("model", repr(model.name), "a model of a real or class y, without extra columns")
        if most_cells < 1:
            raise InputError.of("most_cells", repr(most_cells), "1 or more")
        super().__init__(model, rows, columns, rows_scale, vary_features)
        self.folder, self.target, self.most_cells = str(folder), target, most_cells
        paths = _files(Path(folder))
        self.names = tuple(path.name for path in paths)
        tables = [self._read(path) for path in paths]
        self._tables = _Tables.of(tables)
        self._widths = [table.x.shape[1] for table in tables]
        self._lengths = [len(table.x) for table in tables]
        self.rows = self.rows[0], min(self.rows[1], max(self._lengths))

    def draw(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu",
             rows: int | None = None) -> tuple[Dataset, None]:
        """Up to B datasets of one size, and None: nothing that the model knows generated them.

        Args:
            num_datasets: B, the most datasets; see ``most_cells``.
            generator, device: as for :meth:`SimulatedTask.draw`.
            rows: number of rows N, in place of drawing it. Where no table has as many, as many as there are, and
                padding evenly between them, so that any part of the rows has its share.
        """
        size, features = self.draw_sizes(num_datasets, generator, device, rows)
        features = features[:max(1, self.most_cells // (size * features.shape[-1]))]
        tables = self._tables.to(device)
        table = tables.choose(size, features.sum(-1), generator)
        row = _subsets(tables.lengths[table], size, generator)
        column = _subsets(tables.widths[table], int(features.sum(-1).max()), generator)
        x, y = tables.cells(table, row, column), tables.targets(table, row)
        x = torch.nn.functional.pad(x, (0, features.shape[-1] - x.shape[-1])) * features[:, None]
        y = y if self.model.target == "class" else _standardised(y)
        dataset = Dataset(x, y, torch.ones_like(y, dtype=torch.bool), features)
        return dataset if rows is None or rows == size else _spread(dataset, rows), None

    def draw_sizes(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu",
                   rows: int | None = None) -> tuple[int, Tensor]:
        """The number of rows and the mask of features (B, D) of a batch, such that some table has them."""
        sizes = host_generator(generator)
        drawn = self._draw_rows(self.rows, sizes)
        rows = drawn if rows is None else min(rows, max(self._lengths))
        widest = max(width for width, length in zip(self._widths, self._lengths, strict=True) if length >= rows)
        features = self._draw_columns((self.columns[0], min(self.columns[1], widest)), num_datasets, sizes)
        if self.vary_features == "dataset":
            features = torch.nn.functional.pad(features, (0, self.columns[1] - features.shape[-1]))
        return rows, features.to(device)

    def masked(self) -> RealTablesTask:
        """The same task at the most columns, with masks: for estimators of one size."""
        return RealTablesTask(self.model, **{**self.options(), "vary_features": "dataset"})

    def options(self) -> dict[str, Any]:
        """Keyword arguments (JSON values) that build this task again from the same files, the model apart."""
        target = self.target if isinstance(self.target, str) else dict(self.target)
        return {**super().options(), "folder": self.folder, "target": target, "most_cells": self.most_cells}

    def _read(self, path: Path) -> _Table:
        """A table as numbers, or an error that names its file."""
        from posteria.tables import TableCodec, read_table

        frame = read_table(path)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="columns: dropped")
                codec = TableCodec.for_model(self.model, frame, self._target_of(path))
            dataset = codec.dataset(frame)
        except DataError as error:
            raise DataError(f"{path.name}: {error}") from error
        assert dataset.y is not None
        self._check_size(path, "rows", dataset.x.shape[1])
        self._check_size(path, "columns", dataset.x.shape[2])
        return _Table(dataset.x[0], dataset.y[0], _is_number(codec))

    def _target_of(self, path: Path) -> str:
        if isinstance(self.target, str):
            return self.target
        if path.name not in self.target:
            raise DataError.of("target", f"a mapping of {sorted(self.target)}", f"one that names {path.name} too")
        return self.target[path.name]

    def _check_size(self, path: Path, argument: str, got: int) -> None:
        least, kind = getattr(self, argument)[0], "features" if argument == "columns" else argument
        if got < least:
            raise DataError.of(path.name, f"{got} {kind}", f"a table with at least {least} {kind}, as {argument} says")


@dataclass(frozen=True)
class _Table:
    """One encoded table: x (N, F), y (N,), and which columns are numbers (F,) rather than labels."""

    x: Tensor
    y: Tensor
    is_number: Tensor


@dataclass(frozen=True)
class _Tables:
    """Tables of different sizes end to end, so that one lookup serves a batch of datasets.

    Attributes:
        x: (all cells,) of all tables, row by row; y: (all rows,).
        is_number: (all columns,) bool.
        lengths, widths: (T,) rows and features.
        first_cell, first_row, first_column: (T,) where a table begins.
    """

    x: Tensor
    y: Tensor
    is_number: Tensor
    lengths: Tensor
    widths: Tensor
    first_cell: Tensor
    first_row: Tensor
    first_column: Tensor

    @classmethod
    def of(cls, tables: Sequence[_Table]) -> _Tables:
        lengths, widths = (torch.tensor([table.x.shape[axis] for table in tables]) for axis in (0, 1))
        first = [size.cumsum(0) - size for size in (lengths * widths, lengths, widths)]
        return cls(torch.cat([table.x.flatten() for table in tables]), torch.cat([table.y for table in tables]),
                   torch.cat([table.is_number for table in tables]), lengths, widths, *first)

    def to(self, device: torch.device | str) -> _Tables:
        return _Tables(*(getattr(self, field.name).to(device) for field in fields(self)))

    def choose(self, rows: int, columns: Tensor, generator: torch.Generator) -> Tensor:
        """(B,) a table for each dataset with columns (B,) features, among those with as many rows and features."""
        large = (self.lengths >= rows) & (self.widths >= columns[:, None])
        return torch.multinomial(large.double(), 1, generator=generator)[:, 0]

    def cells(self, table: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """(B, N, D) cells in rows (B, N) and columns (B, D) of tables (B,), numbers standardised over the rows.

        Columns that their table does not have give values of no meaning.
        """
        column = torch.minimum(column, self.widths[table, None] - 1)
        start = self.first_cell[table, None] + row * self.widths[table, None]
        values = self.x[start[:, :, None] + column[:, None]]
        is_number = self.is_number[self.first_column[table, None] + column]
        return torch.where(is_number[:, None], _standardised(values), values)

    def targets(self, table: Tensor, row: Tensor) -> Tensor:
        """(B, N) y in rows (B, N) of tables (B,)."""
        return self.y[self.first_row[table, None] + row]


def _files(folder: Path) -> list[Path]:
    """The tables of a folder, by name."""
    if not folder.is_dir():
        raise DataError.of("folder", repr(str(folder)), f"a folder with tables ({', '.join(_ENDINGS)})")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(_ENDINGS))
    if not paths:
        raise DataError.of("folder", f"{str(folder)!r} without a table", f"a folder with files {', '.join(_ENDINGS)}")
    return paths


def _is_number(codec: TableCodec) -> Tensor:
    """(F,) bool, which encoded features are numbers; labels stay 0 and 1."""
    from posteria.columns import NumberColumn

    return torch.tensor([isinstance(column, NumberColumn) for column in codec.columns for _ in column.features])


def _standardised(values: Tensor) -> Tensor:
    """Zero mean and unit variance over the rows (B, N, ...); zero where constant."""
    centred = values - values.mean(1, keepdim=True)
    sd = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(sd > 1e-6, centred / sd.clamp(min=1e-6), 0.0)


def _spread(dataset: Dataset, rows: int) -> Dataset:
    """The rows of datasets in order, with padding evenly between them."""
    have, padded = dataset.x.shape[1], dataset.padded(rows, dataset.x.shape[2])
    place = torch.arange(rows, device=dataset.device)
    observed = ((place + 1) * have) // rows > (place * have) // rows
    order = torch.where(observed, observed.cumsum(0) - 1, have)  # the first row behind the data is padding
    assert padded.y is not None
    return Dataset(padded.x[:, order], padded.y[:, order], padded.observed[:, order], dataset.features)


def _subsets(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(B, count) different whole numbers in random order, those below sizes (B,) ahead of any others."""
    at_once = max(1, _MOST_KEYS // int(sizes.max()))
    return torch.cat([_ordered(part, count, generator) for part in sizes.split(at_once)])


def _ordered(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    most = max(int(sizes.max()), count)
    keys = torch.rand(len(sizes), most, generator=generator, device=sizes.device)
    missing = torch.arange(most, device=sizes.device) >= sizes[:, None]
    return keys.masked_fill(missing, 2.0).topk(count, largest=False).indices
