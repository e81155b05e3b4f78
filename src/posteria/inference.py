"""From a user's table to its posterior, with names, units, files and a report: what ``posteria infer`` does."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from torch import Tensor

from posteria.estimator import Estimator
from posteria.models.base import Model
from posteria.posterior import Posterior
from posteria.report import Report, posterior_report
from posteria.tables import TableCodec, in_units
from posteria.trust import FAILED_WORDS, Refined

UNITS, STATUS = "units.", "status"
FILES = ("summary.csv", "draws.parquet", "report.html")


@dataclass(frozen=True)
class TableInference:
    """The posterior of one table.

    Attributes:
        posterior: with the table's names of features and classes.
        codec: how the table became a dataset; applies to new rows of the same kind.
        draws: named constrained draws (1, S, *shape), in the scale of the estimator.
        units: the same in the units of the table, or None where the model has no such parameters.
        notes: sentences a person should read.
        estimator: what was used.
        refined: the answer's label: how far it can be trusted, why, and what it cost; None where nobody asked.
    """

    posterior: Posterior
    codec: TableCodec
    draws: Mapping[str, Tensor]
    units: Mapping[str, Tensor] | None
    notes: tuple[str, ...]
    estimator: Estimator
    refined: Refined | None = None

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Mean, sd and quantiles per parameter, in the scale of the estimator."""
        return self.posterior.summary(draws=self.draws)

    @cached_property
    def units_summary(self) -> pd.DataFrame | None:
        """The same in the units of the table, or None."""
        return None if self.units is None else self.posterior.summary(draws=self.units)

    def to_frame(self) -> pd.DataFrame:
        """A row per draw; a column per parameter, and per parameter in units with the prefix ``units.``."""
        frame = self.posterior.to_frame(draws=self.draws)
        return frame if self.units is None else frame.join(self.posterior.to_frame(draws=self.units).add_prefix(UNITS))

    def report(self, title: str = "Posterior", facts: Sequence[tuple[str, str]] = ()) -> Report:
        """Tables, plots and notes as one page."""
        return posterior_report(self.posterior, self.summary, self.units_summary, self.codec, title,
                                [*facts, *self._facts()], self.notes)

    def save(self, folder: str | Path, title: str = "Posterior", facts: Sequence[tuple[str, str]] = ()) -> list[Path]:
        """Write summary.csv, draws.parquet and report.html into a folder that exists; returns their paths."""
        summary, draws, report = (Path(folder) / name for name in FILES)
        units = self.units_summary
        both = self.summary if units is None else self.summary.join(units.drop(columns=STATUS, errors="ignore")
                                                                    .add_prefix(UNITS))
        both.to_csv(summary)
        self.to_frame().to_parquet(draws)
        self.report(title, facts).save(report)
        return [summary, draws, report]

    def _facts(self) -> list[tuple[str, str]]:
        names = self.codec.features
        rows = int(self.posterior.dataset.observed.sum())
        facts = [("model", self.estimator.model.name), ("encoder", self.estimator.encoder_part.name),
                 ("density", self.estimator.density_part.name), ("rows", f"{rows:,}"), ("features", str(len(names)))]
        if self.codec.target is not None:
            facts.append(("target", self.codec.target.name))
        if self.codec.label_names:
            facts.append(("classes", ", ".join(self.codec.label_names)))
        if self.refined is not None:
            facts.append(("trust", f"{self.refined.status[0]}: {self.refined.reason[0]}"))
        return [*facts, ("posterior draws", f"{next(iter(self.draws.values())).shape[1]:,}")]


def infer_table(estimator: Estimator, table: pd.DataFrame, target: str | None = None,
                columns: Sequence[str] | None = None, num_samples: int = 1000, seed: int = 0,
                trust: bool = True) -> TableInference:
    """The posterior of a table's parameters.

    Args:
        estimator: trained for the model of interest.
        table: a row per observation.
        target: the column to predict; None for a model of x alone.
        columns: the columns to use as features; default all but the target.
        num_samples: posterior draws.
        seed: of the draws.
        trust: check the answer against the model's own likelihood, and mend it where that is needed
            (:meth:`posteria.Posterior.refine`); False gives the estimator's posterior as it is.

    Raises:
        DataError: a table that cannot be used; more features or classes than the estimator knows.

    Examples:
        >>> import posteria
        >>> result = infer_table(posteria.load("linear_regression"), table, "price")     # doctest: +SKIP
        >>> result.units_summary                                                         # doctest: +SKIP
    """
    model = estimator.model
    most = estimator.info.columns[1] - len(model.extra_columns)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        codec = TableCodec.for_model(model, table, target, columns, most)
    posterior = codec.name(estimator.posterior(codec.dataset(table)))
    refined = posterior.refine(seed=seed) if trust else None
    posterior = posterior if refined is None else refined.posterior
    draws = posterior.in_order().sample(num_samples, seed)
    notes = (*(str(warning.message) for warning in caught), *posterior.notes, *_on_order(model),
             *(() if refined is None else _warnings(refined)))
    return TableInference(posterior, codec, draws, in_units(model, draws, codec.scaling), notes, estimator, refined)


def _on_order(model: Model) -> tuple[str, ...]:
    if not model.exchangeable_axes:
        return ()
    return (f"{' and '.join(model.exchangeable_axes)} are in order along the data's widest direction: the likelihood "
            "does not tell their orders apart",)


def _warnings(refined: Refined) -> tuple[str, ...]:
    """What is out of the ordinary; what was merely not looked at stands in the report's facts."""
    failed = (f"trust: {FAILED_WORDS}",) if refined.failed.any() else ()
    return failed + refined.diagnosis.surprises
