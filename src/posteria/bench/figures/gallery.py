"""Trained estimators on single test datasets: what the figures of posteriors (1 and 3) are drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from posteria.bench import measure
from posteria.bench.cases import Case
from posteria.bench.cells import PaperCell
from posteria.bench.methods import METHODS, Trained
from posteria.bench.runner import Figures
from posteria.bench.scales import Scale
from posteria.bench.setups import SETUPS, Setup
from posteria.bench.store import key_of
from posteria.bench.workspace import Workspace
from posteria.posterior import Posterior
from posteria.training import TrainConfig

BENCH = "figure"
# Of all seeds, the one that is drawn.
SEED = 0


@dataclass(frozen=True)
class EstimatorCell(PaperCell):
    """Trains an estimator and measures nothing. The tables' cells of the same configuration share its training."""

    @property
    def bench(self) -> str:
        return BENCH

    @property
    def config(self) -> TrainConfig:
        """Of the training run."""
        assert isinstance(self.method, Trained)
        return self.scale.config(self.setup, self.method, self.seed)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"bench": BENCH, "config": self.config.model_dump(mode="json")}

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        result = workspace.trained(self.config).info.training["result"]
        return {}, {"steps": int(result["step"]), "training_seconds": round(result["elapsed_seconds"], 1)}


@dataclass(frozen=True)
class Example:
    """One test dataset to draw.

    Attributes:
        setup: key of the setup.
        dataset: its number among the first ten test datasets; chosen for balanced classes and separate components,
            not for what any estimator makes of it.
    """

    setup: str
    dataset: int = 0

    @property
    def described(self) -> Setup:
        """The setup."""
        return SETUPS[self.setup]

    def case(self, scale: Scale) -> Case:
        """The dataset alone, with its generating parameters."""
        first, number = measure.cases_of(self.described, scale)[0], self.number(scale)
        one = slice(number, number + 1)
        theta = None if first.theta is None else first.theta[one]
        return Case(first.dataset[one], first.held_out[one], theta, first.number)

    def number(self, scale: Scale) -> int:
        """The dataset's number, or the last one's at a scale that does not have as many."""
        return min(self.dataset, scale.num_datasets - 1)


def draws_of(posterior: Posterior, case: Case, count: int) -> Tensor:
    """(B, count, P) draws, the same noise for every method."""
    return posterior.sample_theta(count, case.generator(0, posterior.dataset.device))


def estimator_cell(setup: Setup, method: str, scale: Scale) -> EstimatorCell:
    """The cell of a trained method on a setup."""
    return EstimatorCell(setup, METHODS[method], scale, SEED)


def posteriors(cells: Mapping[str, EstimatorCell], case: Case, workspace: Workspace) -> Iterator[tuple[str, Posterior]]:
    """The cells' posteriors of a dataset by name, of those estimators that are trained."""
    trained = {key_of(r.identity["config"]) for r in workspace.store.results() if "config" in r.identity}
    for name, cell in cells.items():
        if cell.group in trained:
            yield name, workspace.trained(cell.config).posterior(case.dataset)
