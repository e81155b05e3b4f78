"""The models of `posteria bench alternatives`, and how much each scale spends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from posteria.models import Model, build_model
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.types import Dataset

_FEWEST_ROWS, _MOST_ROWS = 64, 128
_SEED = 61_003_597


@dataclass(frozen=True)
class AlternativesCase:
    """A model at one size.

    Attributes:
        name: of the registered model.
        columns: of x, extra columns included.
        options: of the model.
        chains: settings of the reference's chains, where they need others than most.
    """

    name: str
    columns: int
    options: Mapping[str, Any] = field(default_factory=dict)
    chains: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> Model:
        """Built anew."""
        return build_model(self.name, **self.options)

    def draw(self, num_datasets: int, number: int = 0) -> Dataset:
        """B datasets from the model's own prior, 64 to 128 rows each, all padded to 128.

        One shape for all, so that what a method has compiled for one dataset serves the others.

        Args:
            num_datasets: B.
            number: of the batch; another one gives other datasets.
        """
        generator = generator_for(_SEED, number)
        task = SimulatedTask(self.model(), columns=(self.columns, self.columns))
        full, _ = task.draw(num_datasets, generator, rows=_MOST_ROWS)
        rows = torch.randint(_FEWEST_ROWS, _MOST_ROWS + 1, (num_datasets, 1), generator=generator)
        return Dataset.of(full.x, full.y, torch.arange(_MOST_ROWS) < rows, full.features)


def _regression(family: str, columns: int = 5) -> AlternativesCase:
    return AlternativesCase("generalized_linear", columns, {"family": family})


CASES: Mapping[str, AlternativesCase] = {
    "logistic_5d": _regression("bernoulli"),
    "poisson_5d": _regression("poisson"),
    "linear_25d": AlternativesCase("linear_regression", 25, {"noise": "inferred"}),
    "gamma_5d": _regression("gamma"),
    "beta_binomial_5d": _regression("beta_binomial", columns=6),
    "hierarchical_8": AlternativesCase("hierarchical", 3, {"family": "gaussian", "groups": 8},
                                       {"num_chains": 16, "target_accept": 0.95}),
}


@dataclass(frozen=True)
class Sizes:
    """How much a scale spends.

    Attributes:
        accuracy: datasets on which answers are compared, and methods of one dataset at a time are timed.
        many: datasets on which batched methods are timed.
        most_seconds: where that would take longer, it is extrapolated from the datasets of the comparison.
        chains: of the reference, see :func:`posteria.reference.run_baseline`.
        min_ess: effective draws below which chains are no reference.
        cases: names of those that are run unless others are asked for.
        budgets: at most so many of a method's budgets, the smallest first.
        cold: time a fresh process for every method.
    """

    accuracy: int
    many: int
    most_seconds: float
    chains: Mapping[str, int]
    min_ess: float
    cases: tuple[str, ...] = tuple(CASES)
    budgets: int | None = None
    cold: bool = True


_LONG = {"num_chains": 8, "num_samples": 1000, "rounds": 3}
SIZES: Mapping[str, Sizes] = {
    "smoke": Sizes(3, 6, 10.0, {"num_chains": 4, "num_samples": 400, "rounds": 1}, 100.0,
                   ("logistic_5d",), budgets=1, cold=False),
    "laptop": Sizes(20, 1000, 60.0, _LONG, 2000.0),
    "paper": Sizes(200, 1000, 3600.0, _LONG, 2000.0),
}
