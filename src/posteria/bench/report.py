"""Reports of the paper's tables, from the result store: Markdown, CSV and PNG, ours beside the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posteria.bench.cells import BENCH
from posteria.bench.methods import METHODS, Trained
from posteria.bench.paper import paper_numbers
from posteria.bench.setups import Setup
from posteria.bench.store import Result, ResultStore

if TYPE_CHECKING:
    import pandas as pd

# The figure that a paper's table is about, and those shown beside it.
HIGHER_IS_BETTER = frozenset({"accuracy_per_draw", "accuracy_ensembled", "log_predictive"})


@dataclass(frozen=True)
class Entry:
    """A number, and its standard error (NaN where unknown)."""

    mean: float
    error: float


def table_frame(number: int, setups: Sequence[Setup], scale: str, store: ResultStore) -> pd.DataFrame:
    """A row per setup, method and figure: ours, the paper's, the difference in combined standard errors, the exact.

    Columns: setup, method, figure, ours, standard_error, seeds, paper, paper_std, difference_in_se, exact, minutes,
    steps, converged.
    """
    import pandas as pd

    results = [r for r in store.results() if r.bench == BENCH and r.scale == scale]
    rows = [row for setup in setups for row in _rows_of(number, setup, [r for r in results if r.setup == setup.key])]
    return pd.DataFrame(rows, columns=list(_Row.__annotations__))


@dataclass(frozen=True)
class _Row:
    setup: str
    method: str
    figure: str
    ours: float
    standard_error: float
    seeds: int
    paper: float
    paper_std: float
    difference_in_se: float
    exact: float
    minutes: float
    steps: float
    converged: float


def _rows_of(number: int, setup: Setup, results: Sequence[Result]) -> list[dict[str, Any]]:
    paper = _paper_of(number, setup)
    main = main_figure(number, setup)
    rows = []
    for method in METHODS.values():
        mine = [r for r in results if r.method == method.key]
        printed = paper.get(method.key)
        names = list(dict.fromkeys(name for r in mine for name in r.figures)) or [main] * (printed is not None)
        exact = {r.seed: r for r in results if r.method == "exact"}.get(0)
        for name in names:
            rows.append(_row(setup, method.key, name, mine, printed if name == main else None, exact))
    return [vars(row) for row in rows]


def _row(setup: Setup, method: str, figure: str, results: Sequence[Result], printed: Entry | None,
         exact: Result | None) -> _Row:
    ours, paper = over_seeds(results, figure), printed or Entry(math.nan, math.nan)
    combined = math.hypot(ours.error, paper.error if math.isfinite(paper.error) else 0.0)
    best = over_seeds([exact], figure) if exact is not None else Entry(math.nan, math.nan)
    seconds = [r.record.get("training_seconds", r.record["seconds"]) for r in results]
    return _Row(setup.key, method, figure, ours.mean, ours.error, len(results), paper.mean, paper.error,
                (ours.mean - paper.mean) / combined if combined > 0 else math.nan, best.mean,
                _mean(seconds) / 60, _mean([r.record.get("steps", math.nan) for r in results]),
                _mean([r.record.get("converged", math.nan) for r in results]))


def over_seeds(results: Sequence[Result], figure: str) -> Entry:
    """Mean over seeds. All seeds see the same test datasets, so that part of the error does not shrink with them.

    The squared standard error is the mean of those over datasets, plus the variance between seeds over their number.
    """
    found = [r.figures[figure] for r in results if figure in r.figures]
    means = [_number(f["mean"]) for f in found]
    if not means:
        return Entry(math.nan, math.nan)
    over_datasets = _mean([_number(f["standard_error"]) ** 2 for f in found])
    centre = _mean(means)
    between = sum((m - centre) ** 2 for m in means) / max(len(means) - 1, 1) / len(means)
    return Entry(centre, math.sqrt(over_datasets + between))


def main_figure(number: int, setup: Setup) -> str:
    """The figure of ours that a table of the paper is about."""
    fixed = {5: "symmetric_kl", 6: "w2"}
    return fixed.get(number) or ("accuracy_per_draw" if "classification" in setup.task else "l2_per_draw")


def _paper_of(number: int, setup: Setup) -> dict[str, Entry]:
    """Method -> what the paper prints."""
    table = paper_numbers()
    same = ((table.table == number) & (table.task == setup.task) & (table.dim == setup.dim)
            & (table.activation == setup.activation) & (table.layers == setup.layers)
            & ((table.classes == setup.classes) | (table.classes == 0)) & (table.setup != "tabular"))
    rows = table.loc[same, ["objective", "density", "encoder", "mean", "std"]].to_dict("records")
    return {_method_key(row): Entry(row["mean"], row["std"]) for row in rows}


def _method_key(row: Mapping[Hashable, Any]) -> str:
    if row["encoder"]:
        return Trained(row["objective"], row["density"], row["encoder"]).key
    return str(row["objective"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def write_report(number: int, setups: Sequence[Setup], scale: str, store: ResultStore, folder: Path) -> list[Path]:
    """Write ``table_N.md``, ``.csv`` and ``.png``; returns their paths."""
    from posteria.bench.report_plot import plot_table
    from posteria.bench.report_text import table_markdown

    frame = table_frame(number, setups, scale, store)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"table_{number:02}_{scale}.{ending}" for ending in ("md", "csv", "png")]
    paths[0].write_text(table_markdown(number, setups, scale, frame), encoding="utf-8")
    frame.to_csv(paths[1], index=False, float_format="%.6g")
    plot_table(number, setups, scale, frame, paths[2])
    return paths
