"""The 22 real tables of arXiv 2502.06601, Table 3: from a folder or from OpenML, and their cross-validation.

Nine regression tables of OpenML-CTR23 and thirteen binary classification tables of OpenML-CC18. Columns are taken as
the numbers that they are, codes of categories included: 2 d + 1, the expected squared error of a linear model's prior
draws with d raw columns, averages 23.2 over the nine tables, and the paper prints 23.52 ± 0.42; one-hot columns would
more than double it. Inputs are standardised on the training fold; regression targets too, and then multiplied by
sqrt(d), so that they vary as much as the prior's outputs do.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posteria.errors import DataError, InputError
from posteria.randomness import generator_for
from posteria.types import Dataset

if TYPE_CHECKING:
    import pandas as pd

REGRESSION, CLASSIFICATION = "regression", "classification"
TARGET, INDEX = "target", "index.json"
NUM_FOLDS = 5
WHOLE_FOLD, CONTEXT_100 = "whole_fold", "context_100"
CONTEXTS = (CONTEXT_100, WHOLE_FOLD)
# Rows of a small context, as in training.
_FEW_ROWS = (64, 128)
_FOLD_SEED, _SUBSET_SEED = 0, 2_502_066_013
_VARIABLE, _DEFAULT_FOLDER = "POSTERIA_DATA", Path("..") / "shared" / "data"


@dataclass(frozen=True)
class Source:
    """A table of the paper, and where OpenML has it.

    Attributes:
        name: OpenML's.
        kind: "regression" or "classification" (two classes).
        openml: OpenML's number of the data.
        rows, columns: N and d, without the target.
    """

    name: str
    kind: str
    openml: int
    rows: int
    columns: int


SOURCES: dict[str, Source] = {name: Source(name, kind, *sizes) for name, kind, *sizes in (
    ("airfoil_self_noise", REGRESSION, 44957, 1503, 5),
    ("concrete_compressive_strength", REGRESSION, 44959, 1030, 8),
    ("energy_efficiency", REGRESSION, 44960, 768, 8),
    ("solar_flare", REGRESSION, 44966, 1066, 10),
    ("student_performance_por", REGRESSION, 44967, 649, 30),
    ("QSAR_fish_toxicity", REGRESSION, 44970, 908, 6),
    ("red_wine", REGRESSION, 44972, 1599, 11),
    ("socmob", REGRESSION, 44987, 1156, 5),
    ("cars", REGRESSION, 44994, 804, 17),
    ("credit-g", CLASSIFICATION, 31, 1000, 20),
    ("diabetes", CLASSIFICATION, 37, 768, 8),
    ("tic-tac-toe", CLASSIFICATION, 50, 958, 9),
    ("pc4", CLASSIFICATION, 1049, 1458, 37),
    ("pc3", CLASSIFICATION, 1050, 1563, 37),
    ("kc2", CLASSIFICATION, 1063, 522, 21),
    ("pc1", CLASSIFICATION, 1068, 1109, 21),
    ("banknote-authentication", CLASSIFICATION, 1462, 1372, 4),
    ("blood-transfusion-service-center", CLASSIFICATION, 1464, 748, 4),
    ("ilpd", CLASSIFICATION, 1480, 583, 10),
    ("qsar-biodeg", CLASSIFICATION, 1494, 1055, 41),
    ("wdbc", CLASSIFICATION, 1510, 569, 30),
    ("climate-model-simulation-crashes", CLASSIFICATION, 40994, 540, 18),
)}


def names_of_kind(kind: str) -> tuple[str, ...]:
    """The tables of "regression" or "classification", in the paper's suites' order."""
    return tuple(name for name, source in SOURCES.items() if source.kind == kind)


@dataclass(frozen=True, eq=False)
class RealTable:
    """A table in its own units.

    Attributes:
        name: see :data:`SOURCES`.
        kind: "regression" or "classification".
        x: (N, d) numbers, double precision.
        y: (N,) numbers, or classes 0 and 1.
    """

    name: str
    kind: str
    x: Tensor
    y: Tensor

    @property
    def num_features(self) -> int:
        """d, the number of columns without the target."""
        return self.x.shape[1]


@dataclass(frozen=True, eq=False)
class TableCases:
    """Contexts of one table, each with the fold that was held out, scaled by the training fold.

    Attributes:
        table: its name.
        dataset: B contexts.
        held_out: B test folds, padded to the longest.
        fold: (B,) long, the fold that was held out.
    """

    table: str
    dataset: Dataset
    held_out: Dataset
    fold: Tensor

    def to(self, device: torch.device | str) -> TableCases:
        """The same on another device."""
        return TableCases(self.table, self.dataset.to(device), self.held_out.to(device), self.fold)


# -- reading and downloading ------------------------------------------------------------------


def data_folder(root: Path | None = None) -> Path:
    """The folder that holds ``index.json``.

    Args:
        root: that folder or the one above ``tabular/``; default the environment variable POSTERIA_DATA, or else
            ``../shared/data`` from the working directory.

    Raises:
        DataError: there is no such file.
    """
    start = Path(os.environ.get(_VARIABLE, _DEFAULT_FOLDER)) if root is None else root
    for folder in (start, start / "tabular"):
        if (folder / INDEX).is_file():
            return folder
    raise DataError.of(_VARIABLE, f"{start}, without {INDEX} or tabular/{INDEX}",
                       f"a folder of tables: set {_VARIABLE} to one that posteria.bench.real_tables.download_tables "
                       "has written")


def real_tables(names: Sequence[str], root: Path | None = None) -> Iterator[RealTable]:
    """Read tables, one after the other.

    Args:
        names: of some tables in the folder's index.
        root: see :func:`data_folder`.

    Raises:
        DataError: no such folder, a table that is not in it, or a file that does not hold numbers and a target.
    """
    folder = data_folder(root)
    index = {entry["name"]: entry for entry in json.loads((folder / INDEX).read_text(encoding="utf-8"))}
    missing = sorted(set(names) - set(index))
    if missing:
        raise DataError.of("tables", f"{missing}, not in {folder / INDEX}", f"names among {sorted(index)}")
    yield from (_read(folder / index[name]["file"], name, index[name]["kind"]) for name in names)


def _read(path: Path, name: str, kind: str) -> RealTable:
    from posteria.tables import read_table

    frame = read_table(path)
    if TARGET not in frame.columns:
        raise DataError.of(name, f"columns {list(frame.columns)}", f"a column named {TARGET}")
    try:
        values = torch.tensor(frame.drop(columns=TARGET).to_numpy(dtype="float64"))
        target = torch.tensor(frame[TARGET].to_numpy(dtype="float64"))
    except ValueError as error:
        raise DataError.of(name, f"columns that are no numbers ({error})", "numbers, or codes of categories") from error
    if not (values.isfinite().all() and target.isfinite().all()):
        raise DataError.of(name, "missing or infinite values", "complete rows of finite numbers")
    return RealTable(name, kind, values, target)


def download_tables(folder: Path, names: Sequence[str] = ()) -> Path:
    """Fetch tables from OpenML and write them as :func:`real_tables` reads them; needs the internet.

    Args:
        folder: where ``index.json`` and the gzipped CSV files go; made if missing.
        names: of some tables of :data:`SOURCES`; default all.

    Returns:
        The folder, for the environment variable POSTERIA_DATA.

    Raises:
        InputError: a name that is not in :data:`SOURCES`.
        DataError: OpenML has another table at that number.
    """
    unknown = sorted(set(names) - set(SOURCES))
    if unknown:
        raise InputError.of("names", str(unknown), f"names among {list(SOURCES)}")
    index = [_download(SOURCES[name], folder) for name in names or SOURCES]
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return folder


def _download(source: Source, folder: Path) -> dict[str, Any]:
    """Write one table; its entry in the index."""
    from sklearn.datasets import fetch_openml

    bunch: Any = fetch_openml(data_id=source.openml, as_frame=True, parser="auto")
    frame = _as_numbers(bunch.data)
    shape, name = tuple(frame.shape), bunch.details["name"]
    if (name, shape) != (source.name, (source.rows, source.columns)):
        raise DataError.of(f"OpenML {source.openml}", f"{name!r} of shape {shape}",
                           f"{source.name!r} of shape {(source.rows, source.columns)}")
    target = bunch.target.astype("category") if source.kind == CLASSIFICATION else bunch.target
    frame[TARGET] = _as_numbers(target.to_frame()).iloc[:, 0].to_numpy()
    path = Path(source.kind) / f"{source.name}.csv.gz"
    (folder / source.kind).mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / path, index=False)
    return {"name": source.name, "kind": source.kind, "file": path.as_posix(), "n": shape[0], "d": shape[1]}


def _as_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that are no numbers become the codes of their sorted levels."""
    from pandas.api.types import is_numeric_dtype

    # Sorted by text, because the order in which OpenML declares levels differs between parsers.
    codes = {name: frame[name].astype(str).astype("category").cat.codes for name in frame.columns
             if not is_numeric_dtype(frame[name])}
    return frame.assign(**codes).astype("float64")


# -- cross-validation -------------------------------------------------------------------------


def table_cases(table: RealTable, context: str, subsets: int = 1, folds: int = NUM_FOLDS) -> TableCases:
    """The contexts of a table and the folds held out: 5-fold cross-validation, stratified for classes.

    Args:
        table: in its own units.
        context: "context_100", ``subsets`` random parts of 64 to 128 rows of every training fold, as many as in
            training; or "whole_fold", the training folds as they are.
        subsets: random parts of a training fold; does not apply to "whole_fold".
        folds: the first so many of the five are held out.

    Raises:
        InputError: another context.
    """
    if context not in CONTEXTS:
        raise InputError.of("context", repr(context), f"one of {CONTEXTS}")
    splits = _splits(table)[:folds]
    count = 1 if context == WHOLE_FOLD else subsets
    contexts, tests = [], []
    for number, (train, test) in enumerate(splits):
        scaled = _scaled(table, train)
        tests += [_dataset(scaled, test)] * count
        contexts += [_dataset(scaled, train[_chosen(len(train), context, number, subset)]) for subset in range(count)]
    fold = torch.arange(len(splits)).repeat_interleave(count)
    return TableCases(table.name, _joined(contexts), _joined(tests), fold)


def _splits(table: RealTable) -> list[tuple[Tensor, Tensor]]:
    """(training rows, test rows) of every fold."""
    from sklearn.model_selection import KFold, StratifiedKFold

    splitter = KFold if table.kind == REGRESSION else StratifiedKFold
    parts = splitter(NUM_FOLDS, shuffle=True, random_state=_FOLD_SEED).split(table.x.numpy(), table.y.numpy())
    return [(torch.from_numpy(train), torch.from_numpy(test)) for train, test in parts]


def _scaled(table: RealTable, train: Tensor) -> RealTable:
    """The table as the training rows scale it; columns that do not vary there become zero."""
    y = table.y
    if table.kind == REGRESSION:
        y = math.sqrt(table.num_features) * _standardised(y[:, None], train)[:, 0]
    return RealTable(table.name, table.kind, _standardised(table.x, train), y)


def _standardised(values: Tensor, train: Tensor) -> Tensor:
    known = values[train]
    varies = known.amax(0) > known.amin(0)
    return torch.where(varies, (values - known.mean(0)) / known.std(0, correction=0).where(varies, 1.0), 0.0)


def _chosen(available: int, context: str, fold: int, subset: int) -> Tensor:
    """Which of the training rows are in the context."""
    if context == WHOLE_FOLD:
        return torch.arange(available)
    generator = generator_for(_SUBSET_SEED + fold, subset)
    size = int(torch.randint(_FEW_ROWS[0], _FEW_ROWS[1] + 1, (), generator=generator))
    return torch.randperm(available, generator=generator)[:size]


def _dataset(table: RealTable, rows: Tensor) -> Dataset:
    return Dataset.of(table.x[rows], table.y[rows])


def _joined(datasets: Sequence[Dataset]) -> Dataset:
    """The datasets as one batch, padded to the most rows."""
    rows, columns = max(dataset.x.shape[1] for dataset in datasets), datasets[0].x.shape[2]
    padded = [dataset.padded(rows, columns) for dataset in datasets]
    targets = [dataset.y for dataset in padded if dataset.y is not None]
    return Dataset(torch.cat([d.x for d in padded]), torch.cat(targets), torch.cat([d.observed for d in padded]),
                   torch.cat([d.features for d in padded]))
