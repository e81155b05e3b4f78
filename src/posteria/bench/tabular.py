"""Table 3 of arXiv 2502.06601: estimators for any number of features, trained on simulations, on 22 real tables.

A column is a model and a context: 64 to 128 rows of the training fold, as in training, or all of it. An estimator
sees the context alone and predicts the fold that was held out; nothing is fitted to a table. Beside them are baselines
on the same model and scikit-learn on the same rows. A figure's mean is over tables of the mean over folds, and its
standard error is that of the folds; ``figure@table`` is the figure of one table.

Figures per draw and ensembled are over 25 draws, as the paper's; squared errors are in its units (targets standardised,
times sqrt(d)). Log predictive density, calibration and CRPS are over 250 draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from posteria.bench.methods import METHODS, TRAINED, Method, PerDataset, Trained
from posteria.bench.paper import paper_numbers
from posteria.bench.real_tables import (
    CLASSIFICATION,
    CONTEXTS,
    REGRESSION,
    TableCases,
    names_of_kind,
    real_tables,
    table_cases,
)
from posteria.bench.report import Entry
from posteria.bench.runner import Figures
from posteria.bench.scales import Scale
from posteria.bench.setups import Setup
from posteria.bench.store import key_of
from posteria.bench.tabular_rows import SHIPPED, SKLEARN, Shipped, Sklearn, baseline_scores
from posteria.bench.tabular_scores import scores_of_posterior, summarise_tables
from posteria.bench.workspace import Workspace, training_record
from posteria.errors import InputError
from posteria.reference import NUTS
from posteria.training import TrainConfig

BENCH = "tabular"
# Part of every cell's identity: count it up when figures change their meaning.
VERSION = 1
# Any size will do: training of variable sizes does not depend on it.
FAMILIES: dict[str, Setup] = {
    "lr": Setup("linear_regression", 100, variable=True),
    "nlr_relu1": Setup("nonlinear_regression", 50, activation="relu", layers=1, variable=True),
    "lc_2c": Setup("linear_classification", 100, 2, variable=True),
    "nlc_relu1_2c": Setup("nonlinear_classification", 50, 2, "relu", 1, variable=True),
}
Row = Method | Sklearn | Shipped
# Real tables reward honest probabilities: a covariance, where our own choice for many features has none.
_FULL = Trained("reverse_kl", "full", "iterative")
# NumPyro's, one context after the other.
_NUTS = PerDataset(NUTS, NUTS, ours=True)
ROWS: dict[str, Row] = {**{key: METHODS[key] for key in ("random", "exact", "laplace", "converged_hmc")}, **SKLEARN,
                        **SHIPPED, **{row.key: row for row in (*TRAINED, _FULL, _NUTS)}}
# Beside the trained rows of every model; and those that a model has where they are named, because of their cost.
_BESIDE: dict[str, tuple[str, ...]] = {
    "lr": ("random", "exact", "laplace", "converged_hmc", "bayesian_ridge", "shipped_regression"),
    "nlr_relu1": ("random", "mlp_regressor", "shipped_neural_regression"),
    "lc_2c": (_FULL.key, "random", "laplace", "converged_hmc", "logistic_regression", "shipped_classification"),
    "nlc_relu1_2c": ("random", "mlp_classifier", "shipped_neural_classification"),
}
_SLOW: dict[str, tuple[str, ...]] = {"lr": (NUTS,), "lc_2c": (NUTS,), "nlr_relu1": ("laplace", "converged_hmc", NUTS),
                                     "nlc_relu1_2c": ("laplace", "converged_hmc", NUTS)}


@dataclass(frozen=True)
class Sizes:
    """How much is evaluated at a scale.

    Attributes:
        folds: of the five, how many are held out.
        subsets: contexts of 64 to 128 rows per training fold.
        tables: at most so many of each kind.
    """

    folds: int = 5
    subsets: int = 2
    tables: int = 13


SIZES: dict[str, Sizes] = {"smoke": Sizes(folds=2, subsets=1, tables=2), "laptop": Sizes(), "paper": Sizes(subsets=4)}


@dataclass(frozen=True)
class TabularCell:
    """A row of Table 3 for one model and context; see :class:`posteria.bench.runner.Cell`.

    Attributes:
        family: a key of :data:`FAMILIES`.
        context: "context_100" or "whole_fold".
        row: what estimates or predicts.
        scale, seed: as in the other tables.
    """

    family: str
    context: str
    row: Row
    scale: Scale
    seed: int

    @property
    def bench(self) -> str:
        return BENCH

    @property
    def setup(self) -> Setup:
        """The model."""
        return FAMILIES[self.family]

    @property
    def setup_key(self) -> str:
        return f"{self.family}_{self.context}"

    @property
    def method_key(self) -> str:
        return self.row.key

    @property
    def scale_name(self) -> str:
        return self.scale.name

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return names_of_kind(kind_of(self.setup))[:SIZES[self.scale.name].tables]

    @property
    def config(self) -> TrainConfig:
        """Of the training run, for rows that are trained: the one of Tables 2 and 15 to 22."""
        assert isinstance(self.row, Trained)
        return self.scale.config(self.setup, self.row, self.seed)

    @property
    def identity(self) -> Mapping[str, Any]:
        sizes = asdict(SIZES[self.scale.name]) | {"tables": list(self.tables), "context": self.context}
        how = ({"config": self.config.model_dump(mode="json")} if isinstance(self.row, Trained) else
               {"row": self.row.key, "scale": self.scale.name, "seed": self.seed})
        return {"bench": BENCH, "family": self.family, "evaluation": {**sizes, "version": VERSION}, **how}

    @property
    def group(self) -> str:
        identity = self.identity
        return key_of(identity.get("config", identity))

    def cases(self) -> Iterator[TableCases]:
        """Contexts and held-out folds, a batch per table."""
        sizes = SIZES[self.scale.name]
        return (table_cases(table, self.context, sizes.subsets, sizes.folds) for table in real_tables(self.tables))

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        if isinstance(self.row, Trained):
            return self._measure_trained(workspace)
        if isinstance(self.row, PerDataset):
            return self._measure_baseline(self.row, workspace)
        row = self.row
        return summarise_tables((cases, row.scores(cases)) for cases in self.cases()), {}

    def _measure_trained(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        estimator = workspace.trained(self.config)
        scores = ((cases, scores_of_posterior(estimator.posterior(cases.dataset), cases.held_out))
                  for cases in self.cases())
        return summarise_tables(scores), training_record(estimator)

    def _measure_baseline(self, row: PerDataset, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        runs = []
        for cases in self.cases():
            placed = cases.to(workspace.device)
            runs.append((cases, *baseline_scores(self.setup, self.scale, row.baseline, self.seed, placed)))
        figures = summarise_tables((cases, scores) for cases, scores, _ in runs)
        converged = {cases.table: float(mark.double().mean()) for cases, _, mark in runs if mark is not None}
        if not converged:
            return figures, {}
        return figures, {"converged": sum(converged.values()) / len(converged), "converged_by_table": converged}


def tabular_cells(scale: Scale, seeds: int | None = None, setups: Sequence[str] = (),
                  methods: Sequence[str] = ()) -> list[TabularCell]:
    """The cells of Table 3.

    Args:
        scale: budget and sizes.
        seeds: how many training seeds; default the scale's.
        setups: some columns, such as "lr_whole_fold"; default all.
        methods: keys of some rows; default all but NUTS and the baselines that are too slow for networks, which are
            run where they are named.

    Raises:
        InputError: a setup or method that does not exist.
    """
    count = scale.seeds if seeds is None else seeds
    if count < 1:
        raise InputError.of("seeds", count, "1 or more")
    wanted = _chosen("setups", setups, [f"{family}_{context}" for family in FAMILIES for context in CONTEXTS])
    keys = _chosen("methods", methods, list(ROWS))
    cells = [cell for seed in range(count) for family in FAMILIES for key in keys if key in _rows_of(family, methods)
             for cell in _of_contexts(family, ROWS[key], scale, seed)]
    return [cell for cell in cells if cell.setup_key in wanted]


def _of_contexts(family: str, row: Row, scale: Scale, seed: int) -> Iterator[TabularCell]:
    if isinstance(row, Trained) or seed == 0:  # nothing else has a training whose luck a seed would show
        yield from (TabularCell(family, context, row, scale, seed) for context in CONTEXTS)


def _rows_of(family: str, named: Sequence[str]) -> tuple[str, ...]:
    """Keys of the rows that a model has, those too slow for it where they are named."""
    return (*(row.key for row in TRAINED), *_BESIDE[family], *(key for key in _SLOW[family] if key in named))


def _chosen(argument: str, names: Sequence[str], known: list[str]) -> list[str]:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError.of(argument, str(unknown), f"names among {known}")
    return list(names) or known


def kind_of(setup: Setup) -> str:
    """The kind of tables that a model is for."""
    return CLASSIFICATION if "classification" in setup.task else REGRESSION


def main_figure(setup: Setup) -> str:
    """The figure that Table 3 prints."""
    return "accuracy_per_draw" if kind_of(setup) == CLASSIFICATION else "l2_per_draw"


def paper_entry(family: str, method: str) -> Entry | None:
    """Mean and spread that Table 3 prints for a model and a row, or None."""
    return _printed().get((FAMILIES[family].task, method))


@cache
def _printed() -> dict[tuple[str, str], Entry]:
    return {(row["task"], _method_key(row)): Entry(row["mean"], row["std"])
            for row in paper_numbers().to_dict("records") if row["table"] == 3}


def _method_key(row: Mapping[Any, Any]) -> str:
    return Trained(row["objective"], row["density"], row["encoder"]).key if row["encoder"] else row["objective"]
