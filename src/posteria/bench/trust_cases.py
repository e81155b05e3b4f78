"""The models of `posteria bench trust`, their estimators, and what is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posteria.bench.methods import OWN, Trained
from posteria.bench.samplers import Quantities, parameters, predictions
from posteria.bench.scales import Scale
from posteria.bench.setups import ROWS, SETUPS, Setup
from posteria.bench.trust_shifts import IN_DISTRIBUTION, SHIFTS
from posteria.models.ordering import in_order
from posteria.training import TrainConfig

_METHOD = Trained("reverse_kl", OWN, "iterative")


@dataclass(frozen=True)
class TrustCase:
    """A model at one size, with the estimator that is put to the test.

    Attributes:
        setup: whose budget the estimator gets, and whose configuration but for ``fields``.
        columns: of x, extra columns included.
        fields: of the training configuration, in place of the setup's.
        quantities: what is compared: the parameters, or functions of them that no relabelling changes.
        exact: there is an exact posterior.
        laptop_steps: of training at that scale, in place of the setup's.
        laptop_datasets: at that scale, under the shifts where the ladder or the reference takes long.
        weighted: the shifts under which the reference is not Hamiltonian chains alone, and what it is: see
            :data:`posteria.bench.trust_accuracy.WEIGHTED`. As many datasets as in distribution, then.
    """

    setup: Setup
    columns: int
    fields: Mapping[str, Any]
    quantities: Quantities = parameters
    exact: bool = False
    laptop_steps: int | None = None
    laptop_datasets: Mapping[str, int] = field(default_factory=dict)
    weighted: Mapping[str, str] = field(default_factory=dict)

    def config(self, scale: Scale, seed: int = 0) -> TrainConfig:
        """Of the training run; shared with the other benches where it is theirs."""
        fields = scale.fields(self.setup, _METHOD, seed)
        if scale.name == "laptop" and self.laptop_steps is not None:
            fields |= {"steps": self.laptop_steps, "validate_every": self.laptop_steps}
        return TrainConfig.of(**{**fields, **self.fields})


# Chains are the reference in distribution, where NUTS is timed too; under shifts weighted draws, which take less time.
_AWAY = [shift for shift in SHIFTS if shift != IN_DISTRIBUTION]
_MIXTURES = dict.fromkeys(_AWAY, "mixtures")
# Shifts under which the posterior of a network takes chains of its own moves.
_RIDGES = ("scale_x5", "heavy_tails", "outliers", "n_1000")
_NETWORK = {shift: "units" if shift in _RIDGES else "importance" for shift in SHIFTS}


def _regression(dim: int) -> TrustCase:
    return TrustCase(SETUPS.get(f"lr_{dim}d", Setup("linear_regression", dim)), dim, {}, exact=True)


def _counts(dim: int) -> TrustCase:
    """Poisson regression is in none of the paper's tables; its first column is the exposure."""
    columns = dim + 1
    fields = {"model": {"name": "poisson_regression", "options": {}}, "density": {"name": "full"},
              "task": {"name": "simulated", "options": {"rows": list(ROWS), "columns": [columns, columns]}}}
    return TrustCase(Setup("linear_regression", dim), columns, fields, weighted=_MIXTURES)


# At temperature 0.1 posteriors are skewed. Forward KL covers their tails, so that importance weights are bounded; the
# tables' reverse KL leaves a third of the datasets to the third rung.
_COVERING = {"objective": "forward_kl", "density": {"name": "spline_flow"}}
# The same for mixtures, and a smaller flow: a symmetrised density is evaluated once for every labelling.
_COVERING_LABELLINGS = {
    "objective": "forward_kl", "encoder": {"name": "iterative", "options": {"widenings": 8, "candidates": 4}},
    "density": {"name": "flow", "options": {"symmetrise": True, "transforms": 6, "hidden": [32]}}}
# The paper's tables reward draws near their mean in many dimensions, and get a mean-field density there; posteriors
# that are to be trusted want the full one, and at temperature 0.1 observations that are nearly steps as they are.
_FULL = {"density": {"name": "full", "options": {"exact_terms": True}},
         "encoder": {"name": "iterative", "options": {}}}
CASES: Mapping[str, TrustCase] = {
    "gm_2d": TrustCase(SETUPS["gm_2d"], 2, {}, exact=True),
    "gm_100d": TrustCase(SETUPS["gm_100d"], 100, {}, exact=True),
    "lr_2d": _regression(2),
    "lr_25d": _regression(25),
    "lc_2d_2c": TrustCase(SETUPS["lc_2d_2c"], 2, _COVERING, laptop_steps=300, weighted=_MIXTURES),
    "lc_25d_2c": TrustCase(Setup("linear_classification", 25, 2), 25, _FULL,
                           laptop_datasets=dict.fromkeys(_AWAY, 1000)),
    "poisson_5d": _counts(5),
    "gmm_2d_2c": TrustCase(SETUPS["gmm_2d_2c"], 2, _COVERING_LABELLINGS, in_order, laptop_steps=600,
                           weighted=dict.fromkeys(SHIFTS, "mixtures")),
    "nlr_relu1_1d": TrustCase(SETUPS["nlr_relu1_1d"], 1, {}, predictions, weighted=_NETWORK,
                              laptop_datasets=dict.fromkeys(_RIDGES, 1000)),
}
