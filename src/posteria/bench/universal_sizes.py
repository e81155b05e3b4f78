"""Quality of the universal network by rows, features and priors, over the families of its training together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from posteria.bench.runner import CaseCell, Figures
from posteria.bench.store import Result, key_of
from posteria.bench.universal_weights import checked
from posteria.bench.workspace import Workspace
from posteria.every_model import Universal, universal
from posteria.models import LinearRegression, Model
from posteria.randomness import generator_for
from posteria.tasks.many_models import ManyModelsTask

EVERY_FAMILY, BY_SIZE = "every_family", "by_size"
_SEED = 60_871_113
# Of a scale: batches, each with a model of its own, and datasets of each.
_SIZES = {"smoke": (3, 2), "laptop": (200, 5), "paper": (400, 5)}
_PRIORS = ("Normal", "Laplace", "StudentT")
# What datasets are grouped by -> readable name, and least and most, of every group.
_GROUPS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "all": {"all": (-math.inf, math.inf)},
    "rows": {"4 to 15": (4, 15), "16 to 63": (16, 63), "64 to 255": (64, 255), "256 to 2,000": (256, math.inf)},
    "features": {"1 to 3": (0, 3), "4 to 15": (4, 15), "16 to 64": (16, math.inf)},
    "prior sd": {"below 0.3": (0.0, 0.3), "0.3 to 1": (0.3, 1.0), "1 to 3": (1.0, 3.0), "above 3": (3.0, math.inf)},
    "prior": {name: (i, i) for i, name in enumerate(_PRIORS)}}
_FIGURES = {"datasets": "datasets", "passed": "passed", "passed_cheaply": "with refinement", "ess": "ESS"}


@dataclass(frozen=True)
class SizesCell(CaseCell):
    """All families of training, grouped by what their datasets are like; see :class:`posteria.bench.runner.Cell`."""

    BENCH = "universal"
    signature: str
    seed: int = 0

    @property
    def method_key(self) -> str:
        return BY_SIZE

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"bench": self.BENCH, "case": self.case, "condition": BY_SIZE, "sizes": list(_SIZES[self.scale.name]),
                "seed": self.seed, "weights": self.signature, "version": 1}

    @property
    def group(self) -> str:
        return key_of(self.identity)

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        network, done = universal(), workspace.partial(key_of(self.identity))
        batches, size = _SIZES[self.scale.name]
        columns = done.whole(dict.fromkeys(range(batches), size),
                             lambda number: _measured(network, size, self.seed, number))
        done.clear()
        return figures_of(columns), {}


def _measured(network: Universal, size: int, seed: int, number: int) -> dict[str, Tensor]:
    """Figures (b,) of a batch, and what it is like."""
    generator = generator_for(_SEED + seed, number)
    task = ManyModelsTask(LinearRegression()).pick(generator)
    dataset, _ = task.draw(size, generator)
    family, sd = _prior_of(task.model)
    features = dataset.features.sum(-1).double() - len(task.model.extra_columns)
    same = torch.ones(len(dataset), dtype=torch.double)
    return checked(network.posterior(task.model, dataset), seed) | {
        "rows": dataset.num_observations.double(), "features": features, "prior sd": sd * same,
        "prior": _PRIORS.index(family) * same}


def _prior_of(model: Model) -> tuple[str, float]:
    """Family and standard deviation of the prior of a model's first real parameter."""
    first = next(p for p in model.parameters if type(p.support) is type(constraints.real))
    return type(first.prior).__name__, float(first.prior.stddev)


def figures_of(columns: Mapping[str, Tensor]) -> Figures:
    """Number and means over the datasets of every group that has some, named ``figure, axis, group``."""
    figures: dict[str, Mapping[str, float | None]] = {}
    each = torch.ones_like(columns["rows"])
    columns = {**columns, "all": each, "datasets": each}
    for axis, groups in _GROUPS.items():
        for group, (least, most) in groups.items():
            mine = (columns[axis] >= least) & (columns[axis] <= most)
            for name in _FIGURES if mine.any() else ():
                values = columns[name][mine]
                value = float(values.sum() if name == "datasets" else values.mean())
                figures[f"{name}, {axis}, {group}"] = {"mean": value, "standard_error": None}
    return figures


def rows_by_size(result: Result) -> list[dict[str, object]]:
    """A row of the report per group that has datasets."""
    return [{"by": axis, "group": group,
             **{title: result.figures[f"{name}, {axis}, {group}"]["mean"] for name, title in _FIGURES.items()}}
            for axis, groups in _GROUPS.items() for group in groups if f"datasets, {axis}, {group}" in result.figures]
