"""Setups: the models and sizes of the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posteria.bench.paper import paper_numbers
from posteria.models import Model, build_model

ROWS = (64, 128)
_SHORT = {"gaussian_mean": "gm", "gaussian_mixture": "gmm", "linear_regression": "lr", "linear_classification": "lc",
          "nonlinear_regression": "nlr", "nonlinear_classification": "nlc"}
_TITLES = {"gaussian_mean": "Gaussian mean", "gaussian_mixture": "Gaussian mixture",
           "linear_regression": "Linear regression", "linear_classification": "Linear classification",
           "nonlinear_regression": "Neural regression", "nonlinear_classification": "Neural classification"}
_MODELS = {"nonlinear_regression": "neural_regression", "nonlinear_classification": "neural_classification"}
_MOST_FEATURES = {"gaussian_mixture": 5}


@dataclass(frozen=True)
class Setup:
    """A model at one size: a column of a table.

    Attributes:
        task: the paper's name of the model.
        dim: features of the test datasets.
        classes: classes or mixture components, 0 where there are none.
        activation, layers: of neural models, else "" and 0.
        variable: trained on 1 to the most features (100; mixtures 5), not on ``dim`` alone.
    """

    task: str
    dim: int
    classes: int = 0
    activation: str = ""
    layers: int = 0
    variable: bool = False

    @property
    def key(self) -> str:
        """Short name, for files and the command line."""
        parts = [_SHORT[self.task], f"{self.activation}{self.layers or ''}", f"{self.dim}d",
                 f"{self.classes}c" if self.classes else "", "var" if self.variable else ""]
        return "_".join(part for part in parts if part)

    @property
    def title(self) -> str:
        """Readable name."""
        kind = "clusters" if self.task == "gaussian_mixture" else "classes"
        shown = [f"{_TITLES[self.task]} {self.dim}D"]
        shown += [f"{self.activation} {self.layers}"] if self.activation else []
        shown += [f"{self.classes} {kind}"] if self.classes else []
        return ", ".join(shown)

    @property
    def model(self) -> Mapping[str, Any]:
        """The model's registered name and options."""
        return {"name": _MODELS.get(self.task, self.task), "options": self._options()}

    @property
    def columns(self) -> tuple[int, int]:
        """(least, most) features in training."""
        return (1, _MOST_FEATURES.get(self.task, 100)) if self.variable else (self.dim, self.dim)

    @property
    def large(self) -> bool:
        """Training needs more than the smallest networks and budgets."""
        return self.dim > 5 or self.variable

    def build_model(self) -> Model:
        """The model."""
        return build_model(self.model["name"], **self.model["options"])

    def _options(self) -> dict[str, Any]:
        network = {"hidden": 32, "layers": self.layers, "activation": self.activation}
        options: dict[str, dict[str, Any]] = {
            "gaussian_mean": {},
            "gaussian_mixture": {"components": self.classes},
            "linear_regression": {"noise": 0.25},
            "linear_classification": {"classes": self.classes, "temperature": 0.1},
            "nonlinear_regression": {**network, "noise": 0.25},
            "nonlinear_classification": {**network, "classes": self.classes, "temperature": 0.1},
        }
        return options[self.task]


# In no table of the paper, but in its range: shown beside the tables' own columns.
_ADDED = {5: ("lr_2d",), 8: ("lr_2d",), 6: ("gm_2d", "gmm_2d_2c", "lr_1d", "lr_2d", "lc_2d_2c")}


def setups_of_table(number: int) -> tuple[Setup, ...]:
    """The columns of one of Tables 1, 2 and 5 to 22, and those that we add to it."""
    table = paper_numbers()
    rows = table[table.table == number]
    found = [_setup_of(row) for row in rows.itertuples()]
    return tuple(dict.fromkeys([*found, *(SETUPS[key] for key in _ADDED.get(number, ()))]))


def _setup_of(row: Any) -> Setup:
    return Setup(row.task, int(row.dim), int(row.classes), row.activation, int(row.layers), row.setup == "variable")


def _all_setups() -> dict[str, Setup]:
    table = paper_numbers()
    rows = table[table.setup.isin(["fixed", "variable"])]
    found = [*(_setup_of(row) for row in rows.itertuples()), Setup("linear_regression", 2)]
    return {setup.key: setup for setup in dict.fromkeys(found)}


SETUPS: dict[str, Setup] = _all_setups()
