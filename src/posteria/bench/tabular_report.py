"""The report of Table 3: averages beside the paper's, goals, and every real table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posteria.bench import tabular
from posteria.bench.methods import Trained
from posteria.bench.real_tables import CLASSIFICATION, CONTEXTS, REGRESSION
from posteria.bench.report import HIGHER_IS_BETTER, Entry, over_seeds
from posteria.bench.scales import Scale
from posteria.bench.store import Result, ResultStore
from posteria.bench.tabular_rows import Shipped
from posteria.bench.tabular_scores import AT

if TYPE_CHECKING:
    import pandas as pd

_TITLES = {"lr": "Linear regression", "nlr_relu1": "Neural regression, ReLU", "lc_2c": "Linear classification",
           "nlc_relu1_2c": "Neural classification, ReLU"}
_CONTEXT_TITLES = {"context_100": "64 to 128 rows in the context", "whole_fold": "the whole training fold"}
_HEADS = {"l2_per_draw": "squared error per draw", "l2_ensembled": "ensembled", "accuracy_per_draw":
          "accuracy per draw, %", "accuracy_ensembled": "ensembled, %", "log_predictive": "log predictive density",
          "calibration_error": "calibration error", "crps": "CRPS", "coverage_90": "90% interval covers, %"}
_FIGURES = {REGRESSION: ("l2_per_draw", "l2_ensembled", "log_predictive", "crps", "coverage_90"),
            CLASSIFICATION: ("accuracy_per_draw", "accuracy_ensembled", "log_predictive", "calibration_error")}
_ENOUGH_CONVERGED = 0.99


@dataclass(frozen=True)
class Goal:
    """Something to reach in one context by the best trained row.

    Attributes:
        families: the models that count.
        figure: what is compared.
        limit: a number; or, with ``rival``, what the rival's number may be worse by: a factor of it for errors,
            an amount for figures where more is better.
        rival: the row compared with, or "".
        text: for the report.
    """

    families: tuple[str, ...]
    figure: str
    limit: float
    rival: str
    text: str


_REGRESSIONS, _CLASSIFICATIONS = ("lr", "nlr_relu1"), ("lc_2c", "nlc_relu1_2c")
GOALS = (
    Goal(("lr",), "l2_per_draw", 7.30, "", "squared error per draw, linear: at most the paper's best, 7.30"),
    Goal(("nlr_relu1",), "l2_per_draw", 8.03, "", "squared error per draw, neural: at most the paper's best, 8.03"),
    Goal(("lc_2c",), "accuracy_per_draw", 79.7, "", "accuracy per draw, linear: at least the paper's best, 79.7"),
    Goal(("nlc_relu1_2c",), "accuracy_per_draw", 78.6, "",
         "accuracy per draw, neural: at least the paper's best, 78.6"),
    Goal(_CLASSIFICATIONS, "accuracy_ensembled", 2.0, "logistic_regression",
         "accuracy, ensembled: within 2 points of LogisticRegression on the same rows"),
    Goal(_CLASSIFICATIONS, "log_predictive", 0.03, "logistic_regression",
         "log predictive density: within 0.03 nats of LogisticRegression on the same rows"),
    Goal(_REGRESSIONS, "l2_ensembled", 1.05, "bayesian_ridge",
         "squared error, ensembled: within 5% of BayesianRidge on the same rows"),
)


def tabular_frame(scale: Scale, setups: Sequence[str], store: ResultStore) -> pd.DataFrame:
    """A row per model, context, row, figure and table (empty: the average).

    Columns: setup, family, context, method, figure, table, ours, standard_error, seeds, paper, paper_std,
    difference_in_se, minutes, converged.
    """
    import pandas as pd

    wanted = {(f"{family}_{context}"): (family, context) for family in tabular.FAMILIES for context in CONTEXTS}
    found = [r for r in store.results() if r.bench == tabular.BENCH and r.scale == scale.name
             and r.setup in (setups or wanted)]
    rows = [row for setup, place in wanted.items() for method in tabular.ROWS
            for row in _rows(*place, method, [r for r in found if (r.setup, r.method) == (setup, method)])]
    return pd.DataFrame(rows, columns=list(_Row.__annotations__))


@dataclass(frozen=True)
class _Row:
    setup: str
    family: str
    context: str
    method: str
    figure: str
    table: str
    ours: float
    standard_error: float
    seeds: int
    paper: float
    paper_std: float
    difference_in_se: float
    minutes: float
    converged: float


def _rows(family: str, context: str, method: str, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    if not results:
        return
    main = tabular.main_figure(tabular.FAMILIES[family])
    seconds = [r.record.get("training_seconds", r.record["seconds"]) for r in results]
    for name in dict.fromkeys(name for r in results for name in r.figures):
        figure, _, table = name.partition(AT)
        ours = over_seeds(results, name)
        printed = tabular.paper_entry(family, method) if name == main else None
        paper = printed or Entry(math.nan, math.nan)
        apart = (ours.mean - paper.mean) / math.hypot(ours.error, paper.error) if printed else math.nan
        converged = results[0].record.get("converged_by_table" if table else "converged", math.nan)
        yield vars(_Row(f"{family}_{context}", family, context, method, figure, table, ours.mean, ours.error,
                        len(results), paper.mean, paper.error, apart, sum(seconds) / len(seconds) / 60,
                        converged.get(table, math.nan) if isinstance(converged, dict) else converged))


@dataclass(frozen=True)
class Verdict:
    """How our best row stands to a goal.

    Attributes:
        ours, method: the best number, and the row that has it.
        rival: the rival's number, NaN where the goal is a number.
        met: the goal is reached.
    """

    ours: float
    method: str
    rival: float
    met: bool


def verdict(goal: Goal, context: str, frame: pd.DataFrame, kind: type = Trained) -> Verdict | None:
    """The verdict on a goal in a context by rows of a kind, or None where numbers are missing."""
    rows = frame.loc[(frame.table == "") & (frame.context == context) & (frame.figure == goal.figure)]
    counted = [key for key, row in tabular.ROWS.items() if isinstance(row, kind)]
    ours = rows.loc[rows.family.isin(goal.families) & rows.method.isin(counted) & rows.ours.notna()]
    rival = rows.loc[rows.method == goal.rival, "ours"]
    if ours.empty or (goal.rival and rival.empty):
        return None
    more = goal.figure in HIGHER_IS_BETTER
    best = ours.loc[ours.ours.idxmax() if more else ours.ours.idxmin()]
    theirs = float(rival.iloc[0]) if goal.rival else math.nan
    limit = _limit(goal, theirs, more)
    return Verdict(best.ours, best.method, theirs, bool(best.ours >= limit if more else best.ours <= limit))


def _limit(goal: Goal, rival: float, more: bool) -> float:
    if not goal.rival:
        return goal.limit
    return rival - goal.limit if more else rival * goal.limit


def write_tabular_report(scale: Scale, setups: Sequence[str], store: ResultStore, folder: Path) -> list[Path]:
    """Write ``table_03_<scale>.md`` and ``.csv``; returns their paths."""
    frame = tabular_frame(scale, setups, store)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"table_03_{scale.name}.{ending}" for ending in ("md", "csv")]
    paths[0].write_text("\n".join(_markdown(scale, frame)) + "\n", encoding="utf-8")
    frame.to_csv(paths[1], index=False, float_format="%.6g")
    return paths


def _markdown(scale: Scale, frame: pd.DataFrame) -> list[str]:
    lines = [f"# Table 3 at scale `{scale.name}`: real tables", "", *_introduction(scale), "", *_goals(frame)]
    for _, rows in frame.groupby("setup", sort=False):
        lines += ["", f"## {_title(rows)}", "", *_averages(rows.loc[rows.table == ""])]
    lines += ["", "# Every table"]
    for _, rows in frame.groupby("setup", sort=False):
        lines += ["", f"## {_title(rows)}: {_HEADS[_main(rows)]}", "", *_per_table(rows)]
    return lines


def _introduction(scale: Scale) -> list[str]:
    sizes = tabular.SIZES[scale.name]
    return [f"    posteria bench table 3 --scale {scale.name}", "", tabular.__doc__ or "", "",
            f"Evaluated here: {sizes.folds} of 5 folds, at most {sizes.tables} tables of each kind, {sizes.subsets} "
            "contexts of 64 to 128 rows per training fold. *Paper* is arXiv 2502.06601 ± what it prints, shown beside "
            "both contexts: which of them its number is for is not known to us. *Difference* is in combined standard "
            "errors. *Minutes* are of training, or of running the row on all tables. † marks chains that did not "
            "converge on all contexts. Rows *shipped* are the estimators that come with the package: their models have "
            "the noise inferred, temperature 1 and other priors, so that they have a line of their own among the "
            "goals. The best row of a goal is picked by the figure shown, on the held-out folds themselves; two goals "
            "of a column may be met by different rows."]


def _goals(frame: pd.DataFrame) -> list[str]:
    heads = "".join(f" {_CONTEXT_TITLES[context]} |" for context in CONTEXTS)
    lines = [f"| goal, by the best row of a kind | kind |{heads}", "|---|---|" + "---|" * len(CONTEXTS)]
    for goal in GOALS:
        for kind, title in ((Trained, "the paper's model, trained here"), (Shipped, "shipped")):
            said = [_said(verdict(goal, context, frame, kind)) for context in CONTEXTS]
            lines.append(f"| {goal.text} | {title} | " + " | ".join(said) + " |")
    return lines


def _said(found: Verdict | None) -> str:
    if found is None:
        return ""
    beside = "" if math.isnan(found.rival) else f" against {found.rival:.4g}"
    return f"{'yes' if found.met else '**no**'}: {found.ours:.4g}{beside} ({found.method})"


def _title(rows: pd.DataFrame) -> str:
    return f"{_TITLES[rows.family.iloc[0]]}, {_CONTEXT_TITLES[rows.context.iloc[0]]}"


def _main(rows: pd.DataFrame) -> str:
    return tabular.main_figure(tabular.FAMILIES[rows.family.iloc[0]])


def _averages(rows: pd.DataFrame) -> list[str]:
    figures = _FIGURES[tabular.kind_of(tabular.FAMILIES[rows.family.iloc[0]])]
    heads = ["method", "paper", _HEADS[figures[0]], "difference", *(_HEADS[name] for name in figures[1:]), "minutes",
             "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for method, mine in rows.groupby("method", sort=False):
        by_figure = mine.set_index("figure")
        main = by_figure.loc[figures[0]]
        mark = f" † ({main.converged:.0%})" if main.converged < _ENOUGH_CONVERGED else ""  # False for NaN
        shown = [_with_error(*by_figure.loc[name, ["ours", "standard_error"]]) for name in figures]
        cells = [f"{method}{mark}", _with_error(main.paper, main.paper_std), f"**{shown[0]}**",
                 "" if math.isnan(main.difference_in_se) else f"{main.difference_in_se:.2g}", *shown[1:],
                 f"{main.minutes:.2g}", str(main.seeds)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _per_table(rows: pd.DataFrame) -> list[str]:
    """A line per row of Table 3, a column per real table, of the figure that the paper prints."""
    parts = rows.loc[(rows.figure == _main(rows)) & (rows.table != "")]
    tables = list(dict.fromkeys(parts.table))
    lines = ["| method | " + " | ".join(tables) + " |", "|" + "---|" * (len(tables) + 1)]
    for method, mine in parts.groupby("method", sort=False):
        by_table = mine.set_index("table")
        lines.append(f"| {method} | " + " | ".join(_entry(by_table, table) for table in tables) + " |")
    return lines


def _entry(by_table: pd.DataFrame, table: str) -> str:
    if table not in by_table.index:
        return ""
    mark = " †" if by_table.at[table, "converged"] < _ENOUGH_CONVERGED else ""
    return _with_error(by_table.at[table, "ours"], by_table.at[table, "standard_error"]) + mark


def _with_error(mean: Any, error: Any) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.4g}" if math.isnan(error) else f"{mean:.4g} ± {error:.1g}"
