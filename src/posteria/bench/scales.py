"""Scales: how much is spent on a cell, and with which networks.

``paper`` has the paper's networks, recipe and steps for its encoders, for a GPU; ``laptop`` smaller networks and our
recipe within minutes a cell; ``smoke`` shows that everything runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posteria.bench.methods import OWN, Trained
from posteria.bench.setups import ROWS, Setup
from posteria.errors import InputError
from posteria.reference import NUTS
from posteria.training import TrainConfig

_Options = Mapping[str, Mapping[str, Any]]

_SMALL: _Options = {"transformer": {"layers": 2, "width": 64}, "deepsets": {"width": 128},
                    "gru": {"layers": 1, "width": 128}}
_MIDDLE: _Options = {"transformer": {"layers": 4, "width": 128}, "deepsets": {"width": 256},
                     "gru": {"layers": 2, "width": 256}}
_TINY: _Options = {"transformer": {"layers": 1, "width": 16, "heads": 2}, "deepsets": {"layers": 2, "width": 32},
                   "gru": {"layers": 1, "width": 16}}
# Steps of the paper, in thousands: fixed and variable sizes.
_PAPER_STEPS = {"gaussian_mean": (20, 50), "gaussian_mixture": (200, 500), "linear_regression": (50, 100),
                "linear_classification": (50, 100), "nonlinear_regression": (100, 250),
                "nonlinear_classification": (100, 250)}
# Steps of the paper's encoders: small sizes, and large ones (more than 5 features, or any number of them). Smaller
# batches than the paper's, more often and with larger steps: at equal time the better recipe by far on small problems.
_LAPTOP_STEPS = {"gaussian_mean": (800, 2000), "gaussian_mixture": (1500, 3000), "linear_regression": (800, 4000),
                 "linear_classification": (1000, 4000), "nonlinear_regression": (1200, 4000),
                 "nonlinear_classification": (1200, 4000)}
# A step of DeepSets costs a third of the others'.
_STEPS_FACTOR = {"deepsets": 3}
_LAPTOP_RECIPE = {"batch_size": 32, "learning_rate": 2e-3}
# Steps of the iterative encoder: each costs more, and it starts where its search ends.
_LAPTOP_ITERATIVE_STEPS = {"gaussian_mean": (200, 200), "gaussian_mixture": (150, 150), "linear_regression": (200, 200),
                           "linear_classification": (150, 150), "nonlinear_regression": (60, 60),
                           "nonlinear_classification": (40, 40)}
# With a longer search, or more classes, a step costs more, and there is less to learn; with none, the other way round.
_LAPTOP_LONG_SEARCH_STEPS, _LAPTOP_COLLAPSED_STEPS = 30, 60
_LAPTOP_MANY_CLASSES_STEPS = 10
_SMOKE_STEPS, _SMOKE_ITERATIVE_STEPS, _SMOKE_BATCH = 10, 2, 8
_SMOKE_SEARCH = {"climbs": 2, "widenings": 1, "candidates": 2}
_FEW_ITERATIONS = {"num_warmup": 50, "iterations": 100, "num_samples": 25, "thin": 2}
_SMOKE_BASELINES: _Options = {"optimization": {"iterations": 100, "num_chains": 5}, "paper_langevin": _FEW_ITERATIONS,
                              "paper_hmc": _FEW_ITERATIONS,
                              "laplace": {"iterations": 20, "num_starts": 1, "dense_up_to": 256},
                              "hmc": {"num_warmup": 30, "num_samples": 20, "rounds": 1, "max_steps": 4},
                              NUTS: {"num_warmup": 30, "num_samples": 20, "attempts": 1, "max_tree_depth": 4}}
# On a context of Table 3, and on one of a network, whose chains do not converge in theta however long they are.
_NUTS = {"num_warmup": 250, "num_samples": 250, "attempts": 1}
_NUTS_OF_NETWORKS = {"num_warmup": 100, "num_samples": 100, "attempts": 1, "max_tree_depth": 8}


@dataclass(frozen=True)
class Scale:
    """A budget, networks, and sizes of the evaluation.

    Attributes:
        name: its key.
        seeds: default number of seeds.
        num_datasets: test datasets.
        num_reference: draws of the posterior and of its reference for Wasserstein distances.
        small, large: encoder -> options, for small and large setups.
    """

    name: str
    seeds: int
    num_datasets: int = 100
    num_reference: int = 250
    small: _Options = field(default_factory=dict)
    large: _Options = field(default_factory=dict)

    def steps(self, setup: Setup, encoder: str, density: str = "gaussian") -> int:
        """Steps of a training run: the same on every machine."""
        iterative = encoder == "iterative"
        if self.name == "smoke":
            return _SMOKE_ITERATIVE_STEPS if iterative else _SMOKE_STEPS
        if self.name == "laptop" and density == OWN and _is_fixed_regression_network(setup):
            return _LAPTOP_LONG_SEARCH_STEPS if setup.large else _LAPTOP_COLLAPSED_STEPS
        if self.name == "laptop" and iterative and setup.task == "nonlinear_classification" and setup.classes > 2:
            return _LAPTOP_MANY_CLASSES_STEPS
        if self.name == "laptop":
            steps = _LAPTOP_ITERATIVE_STEPS if iterative else _LAPTOP_STEPS
            return steps[setup.task][setup.large] * _STEPS_FACTOR.get(encoder, 1)
        return (100 if iterative else 1000) * _PAPER_STEPS[setup.task][setup.variable]

    def fields(self, setup: Setup, method: Trained, seed: int) -> dict[str, Any]:
        """Fields of the training configuration."""
        paper = self.name == "paper" and method.encoder != "iterative"
        task = {"rows": list(ROWS), "columns": list(setup.columns)}
        if setup.variable and method.encoder != "iterative":
            task["vary_features"] = "dataset"
        fields = {
            "preset": "paper" if paper else "default", "model": setup.model, "objective": method.objective,
            "encoder": {"name": method.encoder, "options": self._encoder(setup, method.encoder)},
            "density": method.density, "task": {"name": "simulated", "options": task}, "seed": seed,
            "steps": self.steps(setup, method.encoder, method.density),
        }
        if self.name != "paper":
            fields["validate_every"] = fields["steps"]  # of short runs, validation would take most of the time
        if self.name == "laptop" and method.encoder != "iterative":
            fields |= _LAPTOP_RECIPE
        if method.encoder == "iterative" and setup.task.startswith("nonlinear"):
            fields["batch_size"] = 32  # every dataset costs a search
        if method.density == OWN:
            fields |= _own(setup, method.objective)
        if self.name == "smoke" and method.encoder == "iterative":
            fields |= {"batch_size": _SMOKE_BATCH, "encoder": {"name": "iterative", "options": _SMOKE_SEARCH}}
        return fields

    def looks(self, setup: Setup, method: Trained) -> dict[str, int]:
        """The search on test datasets, where it differs from that in training."""
        if self.name != "laptop" or not setup.variable or method.encoder != "iterative":
            return {}
        if method.density == OWN and setup.task.startswith("nonlinear") and setup.dim <= _FEW_FEATURES:
            return dict(_MANY_LOOKS)
        if setup.dim <= _FEW_FEATURES:
            return {}
        return dict(_LONG_LOOKS.get((setup.task, setup.activation, setup.layers, setup.classes, method.density), {}))

    def config(self, setup: Setup, method: Trained, seed: int) -> TrainConfig:
        """The checked configuration of a training run."""
        return TrainConfig.of(**self.fields(setup, method, seed))

    def baseline(self, name: str, setup: Setup) -> dict[str, Any]:
        """Settings of a baseline: its own, but at scale ``smoke``, and where more rounds would be in vain."""
        if self.name == "smoke":
            return dict(_SMOKE_BASELINES.get(name, {}))
        if name == NUTS:
            return dict(_NUTS_OF_NETWORKS if setup.task.startswith("nonlinear") else _NUTS)
        # Chains that keep to one labelling never converge in theta, however long they are.
        return {"rounds": 1} if name == "hmc" and setup.build_model().exchangeable_axes else {}

    def _encoder(self, setup: Setup, encoder: str) -> dict[str, Any]:
        if encoder == "iterative":
            return _search(setup)
        return dict((self.large if setup.large else self.small).get(encoder, {}))


def _search(setup: Setup) -> dict[str, Any]:
    """Options of the iterative encoder: fewer looks where each of them costs much."""
    if setup.task == "gaussian_mixture":
        return {"widenings": 4, "candidates": 4}
    if setup.task.startswith("nonlinear"):
        return {"candidates": 4} if setup.large else {"widenings": 16}
    return {}


# Given its hidden weights, the output weights of a regression network have a known posterior. With a few features the
# hidden ones then stay close to their prior, where the density starts; there is nothing to search for.
_COLLAPSED: dict[str, Any] = {
    "density": {"name": "gaussian", "options": {"collapse": True}},
    "encoder": {"name": "iterative", "options": {"climbs": 0, "widenings": 0}}}
# With many features they do not, and what is best per draw is a long climb to one mode. Networks of any size meet real
# tables too, where a longer climb only fits the noise closer.
_LONG_CLIMB: dict[str, Any] = {
    "density": {"name": "low_rank"},
    "encoder": {"name": "iterative", "options": {"candidates": 4, "climbs": 60}}, "batch_size": 16}


# Networks of any number of features are trained with a search that 100 of them can afford.
_FEW_FEATURES, _MANY_LOOKS = 5, {"climbs": 40, "widenings": 32, "candidates": 8}
# At many features, those that gained from a longer search on 20 or 40 datasets that are not the test's.
_LONG, _LONG_CLIMBS = {"climbs": 80, "widenings": 64, "candidates": 8}, {"climbs": 200, "widenings": 16}
_LONG_LOOKS: Mapping[tuple[str, str, int, int, str], Mapping[str, int]] = {
    ("nonlinear_regression", "relu", 1, 0, OWN): _LONG,
    ("nonlinear_regression", "relu", 2, 0, OWN): _LONG,
    ("nonlinear_classification", "tanh", 1, 2, OWN): _LONG,
    ("nonlinear_classification", "tanh", 2, 2, OWN): _LONG,
    ("nonlinear_classification", "relu", 2, 2, "gaussian"): _LONG_CLIMBS,
}


def _is_fixed_regression_network(setup: Setup) -> bool:
    return setup.task == "nonlinear_regression" and not setup.variable


def _own(setup: Setup, objective: str) -> dict[str, Any]:
    """What we would choose in place of the paper's densities."""
    if setup.task == "gaussian_mixture":
        flow = {"density": {"name": "spline_flow", "options": {"symmetrise": True}}}
        return flow | _batch_of_labellings(setup)
    if _is_fixed_regression_network(setup):
        return dict(_LONG_CLIMB if setup.large else _COLLAPSED)
    if setup.task.startswith("nonlinear"):
        return {"density": {"name": "low_rank"}}
    if setup.task == "linear_classification" and setup.large:
        return _mean_field_classification(setup)
    return {"density": {"name": "full"}}


def _batch_of_labellings(setup: Setup) -> dict[str, Any]:
    """A symmetrised density holds all labellings at once: 2 of two components, 120 of five, each of every parameter."""
    if setup.classes <= 2:
        return {}
    always_many = setup.dim > 2 and not setup.variable
    return {"batch_size": 4 if always_many else 16}


def _mean_field_classification(setup: Setup) -> dict[str, Any]:
    """Draws that stay near their mean, which is what accuracy per draw rewards in many dimensions.

    With two classes, one row of weights with prior N(0, 2) is the same predictive model as two with prior N(0, 1).
    """
    fields: dict[str, Any] = {"density": {"name": "gaussian"}, "encoder": {"name": "iterative",
                                                                          "options": {"widenings": 0}}}
    if setup.classes > 2:
        return fields
    difference = {"family": "normal", "loc": 0.0, "scale": math.sqrt(2)}
    options = {**setup.model["options"], "reference": True}
    return fields | {"model": {"name": setup.model["name"], "options": options,
                               "priors": {"weights": difference, "intercept": difference}}}


SCALES: dict[str, Scale] = {
    "smoke": Scale("smoke", seeds=1, num_datasets=10, num_reference=50, small=_TINY, large=_TINY),
    "laptop": Scale("laptop", seeds=1, small=_SMALL, large=_MIDDLE),
    "paper": Scale("paper", seeds=3),
}


def scale_named(name: str) -> Scale:
    """A scale by its name."""
    if name not in SCALES:
        raise InputError.of("scale", repr(name), f"one of {sorted(SCALES)}")
    return SCALES[name]
