"""What is measured: one row per training run, with its configuration, its goals and the paper's numbers.

Edit configurations here. Anything a row does not set comes from the preset ``default``.

Goals are those set for the core of posteria; "paper" is arXiv 2502.06601, with the table that a number is from
(the best of its encoders, on its own test sets, after 20,000 to 100,000 steps on a GPU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posteria.training import TrainConfig


def _encoder(**options: Any) -> dict[str, Any]:
    return {"name": "iterative", "options": options}


ITERATIVE = _encoder(widenings=8)
# Models without exact averages look at draws, each of which costs a Hessian by automatic differentiation.
FEW_LOOKS = _encoder(widenings=4, candidates=4)


@dataclass(frozen=True)
class Goal:
    """A bound on one figure, and the minutes of training within which it must be met.

    Attributes:
        figure: name of a measured figure.
        minutes: wall-clock minutes of training, or None where none are set.
        at_most, at_least: the bound; exactly one of the two.
    """

    figure: str
    minutes: float | None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def text(self) -> str:
        """The bound in words."""
        bound = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        return bound if self.minutes is None else f"{bound} in {self.minutes:g} min"

    def met(self, value: float, seconds: float) -> bool:
        """The figure is within the bound and training within its minutes. A NaN meets nothing."""
        good = value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0.0)
        return good and (self.minutes is None or seconds <= 60 * self.minutes)


@dataclass(frozen=True)
class Row:
    """One training run and what is measured on it.

    Attributes:
        name: of its result file.
        title: for the report.
        config: fields of TrainConfig.
        measure: key of ``measures.MEASURES``.
        goals: what must be reached.
        paper: figure -> the paper's number.
        exact: figure -> the best possible number, or the name of the measured figure that holds it.
        draws: posterior draws per test dataset.
        datasets: test datasets.
        note: anything a reader must know to compare.
    """

    name: str
    title: str
    config: Mapping[str, Any]
    measure: str
    goals: tuple[Goal, ...]
    paper: Mapping[str, float] = field(default_factory=dict)
    exact: Mapping[str, str | float] = field(default_factory=dict)
    draws: int = 25
    datasets: int = 100
    note: str = ""

    def train_config(self, minutes_scale: float = 1.0) -> TrainConfig:
        """The checked configuration, its budget scaled."""
        config = dict(self.config)
        if config.get("minutes") is not None:
            config["minutes"] = config["minutes"] * minutes_scale
        if config.get("steps") is not None:
            config["steps"] = max(1, round(config["steps"] * minutes_scale))
        return TrainConfig.of(**config)


def _columns(columns: int) -> dict[str, Any]:
    return {"name": "simulated", "options": {"rows": [64, 128], "columns": [columns, columns]}}


def _iterative(model: Any, columns: int, minutes: float, **fields: Any) -> dict[str, Any]:
    return {"model": model, "encoder": ITERATIVE, "density": "full", "objective": "reverse_kl", "minutes": minutes,
            "seed": 0, "task": _columns(columns), **fields}


_EXACT = {"posterior_mean_error": "exact_posterior_mean_error", "symmetric_kl": 0.0}

# Both objectives; symmetric KL ≤ 0.01 within 2 minutes. Paper: Table 5 (the best of three encoders; diagonal Gaussian).
_SMALL = [
    Row(f"{name}_{objective}", f"{title}, {objective.replace('_kl', ' KL')}",
        _iterative(model, columns, 0.3, objective=objective), "conjugate",
        (Goal("symmetric_kl", 2, at_most=0.01),), paper, _EXACT)
    for name, title, model, columns, papers in (
        ("gm_2d", "Gaussian mean 2D", "gaussian_mean", 2, {"forward_kl": 0.018, "reverse_kl": 0.017}),
        ("lr_1d", "Linear regression 1D", "linear_regression", 1, {"forward_kl": 0.04, "reverse_kl": 0.03}),
        ("lr_2d", "Linear regression 2D", "linear_regression", 2, {}),  # not in Table 5
    )
    for objective in ("reverse_kl", "forward_kl")
    for paper in [{"symmetric_kl": papers[objective]} if objective in papers else {}]
]

_LARGE_REGRESSION = [
    Row("lr_25d", "Linear regression 25D", _iterative("linear_regression", 25, 0.5), "conjugate",
        (Goal("posterior_mean_error", 3, at_most=0.37), Goal("symmetric_kl", 10, at_most=0.05)),
        exact=_EXACT, note="the best diagonal Gaussian has a symmetric KL of 0.11"),
    Row("lr_100d", "Linear regression 100D", _iterative("linear_regression", 100, 1), "conjugate",
        (Goal("posterior_mean_error", 15, at_most=15), Goal("symmetric_kl", 15, at_most=5)),
        # Table 5, forward KL, Transformer. Table 1 has 28.7 per draw (reverse KL, Transformer), not that of the mean.
        {"symmetric_kl": 20.6, "l2_per_draw": 28.7}, _EXACT),
]

# softmax of two rows of weights depends on their difference, which is N(0, 2): one row with that prior is the same
# predictive model, with half the parameters and without the direction that the data say nothing about.
_DIFFERENCE = {"family": "normal", "loc": 0.0, "scale": math.sqrt(2)}
_ONE_ROW = {"name": "linear_classification", "options": {"reference": True},
            "priors": {"weights": _DIFFERENCE, "intercept": _DIFFERENCE}}

_CLASSIFICATION = [
    Row("lc_2d", "Linear classification 2D", _iterative("linear_classification", 2, 0.7), "classification",
        (Goal("accuracy_per_draw", 2, at_least=96.0),),
        {"accuracy_per_draw": 96.344}),  # Table 8, forward KL, flow, Transformer; its diagonal Gaussian 94.302
    Row("lc_25d", "Linear classification 25D", _iterative("linear_classification", 25, 2), "classification",
        (Goal("map_gap", 5, at_most=0.5),), note="points of accuracy by which the ensemble is below MAP"),
    Row("lc_100d", "Linear classification 100D", _iterative(_ONE_ROW, 100, 5, density="gaussian",
                                                                encoder=_encoder(widenings=0)), "classification",
        (Goal("accuracy_per_draw", 10, at_least=71.0),),
        {"accuracy_per_draw": 68.721},  # Table 8, reverse KL, flow, Transformer; its diagonal Gaussian 68.185
        note="one row of weights with prior N(0, 2), the same predictive model as two rows with prior N(0, 1); "
             "mean-field, so that draws stay near their mean, which is what accuracy per draw rewards"),
]

_NEURAL_REGRESSION = {"name": "neural_regression",
                      "options": {"hidden": 32, "layers": 1, "activation": "relu", "noise": 0.25}}

_NEURAL = [
    Row("nlr_1d", "Neural regression ReLU 1D",
        _iterative(_NEURAL_REGRESSION, 1, 4, encoder=_encoder(widenings=16), batch_size=32), "regression",
        (Goal("l2_per_draw", 10, at_most=0.42),),
        {"l2_per_draw": 0.387}),  # Table 9, reverse KL, flow, Transformer; its diagonal Gaussian 0.417
    Row("nlr_1d_collapsed", "Neural regression ReLU 1D, output weights integrated out", _iterative(
        _NEURAL_REGRESSION, 1, 0.5, density={"name": "gaussian", "options": {"collapse": True}},
        encoder=_encoder(climbs=0, widenings=0), batch_size=32), "regression",
        (Goal("l2_per_draw", 10, at_most=0.387),),
        {"l2_per_draw": 0.387}),
    Row("nlr_25d", "Neural regression ReLU 25D", _iterative(
        _NEURAL_REGRESSION, 25, 5, density="gaussian", encoder=_encoder(candidates=4), batch_size=32), "regression",
        (Goal("l2_per_draw", 30, at_most=102),),
        {"l2_per_draw": 102.295}),  # Table 9, reverse KL, diagonal Gaussian, Transformer
]

# No budget is set for the mixture. Draws from the prior have both labellings too, so the second goal, which is ours,
# asks that the draws predict: the exact posterior loses about parameters / (2 rows) = 0.02 nats per row to the truth.
# The paper's squared distances to the nearest mean (Table 7: 0.185 with a flow, 0.169 for optimisation) do not fit
# the unit covariance that it states, under which the truth itself has 1.5 or more; so they are not put beside ours.
_SMALL_TRANSFORMER = {"name": "transformer", "options": {"layers": 2, "width": 64}}

_MIXTURE = [
    Row(f"gmm_2d_{name}", f"Gaussian mixture 2D, 2 clusters, {title}",
        _iterative("gaussian_mixture", 2, minutes, encoder=encoder, density=density, objective="forward_kl"), "mixture",
        (Goal("both_labellings", None, at_least=95.0), Goal("predictive_loss", None, at_most=0.05)),
        exact={"l2_per_draw": "true_l2"}, draws=1000,
        note="1,000 draws; the loss is that of the predictive density to the density with the true means, nats per row")
    for name, title, minutes, encoder, density in (
        ("flow_transformer", "spline flow, Transformer", 4, _SMALL_TRANSFORMER, "spline_flow"),
        ("flow_iterative", "spline flow, iterative", 1, FEW_LOOKS, "spline_flow"),
        ("symmetric_flow_iterative", "symmetrised spline flow, iterative", 1.5, FEW_LOOKS,
         {"name": "spline_flow", "options": {"symmetrise": True}}),
    )
]

# Six columns: the exposure and five features.
_POISSON = [
    Row(f"poisson_5d_{objective}", f"Poisson regression 5D, {objective.replace('_kl', ' KL')}",
        _iterative("poisson_regression", 6, 8.5, encoder=FEW_LOOKS, density="spline_flow", objective=objective,
                   learning_rate=1.5e-3), "nuts",
        (Goal("agreeing", 10, at_least=90.0),), draws=20_000, datasets=50,
        note="datasets on which every parameter's mean is within 0.1 sd and every sd within 10% of NUTS")
    for objective in ("reverse_kl", "forward_kl")
]

# Paper: Table 5, reverse KL, diagonal Gaussian.
_PAPER_ENCODERS = [
    Row(f"gm_2d_{name}", f"Gaussian mean 2D, {title}",
        _iterative("gaussian_mean", 2, 3, encoder=encoder, density="gaussian"), "conjugate",
        (Goal("symmetric_kl", 5, at_most=0.05),), {"symmetric_kl": paper}, _EXACT)
    for name, title, paper, encoder in (
        ("transformer", "Transformer", 0.035, _SMALL_TRANSFORMER),
        ("deepsets", "DeepSets", 0.029, {"name": "deepsets", "options": {"width": 128}}),
        ("gru", "GRU", 0.017, {"name": "gru", "options": {"layers": 1, "width": 128}}))
]

# The paper's recipe at the same time as the rows above: no goal, but what the default recipe is measured against.
_PAPER_RECIPE = [
    Row("gm_2d_paper_recipe", "Gaussian mean 2D, the paper's recipe",
        {"model": "gaussian_mean", "preset": "paper", "minutes": 3, "seed": 0, "task": _columns(2)}, "conjugate", (),
        {"symmetric_kl": 0.035}, _EXACT, note="preset paper: Transformer 4 × 256, Adam at 1e-4, dropout 0.1"),
]

# The weights do not matter to the time, so a few steps do.
_LATENCY = [
    Row("latency", "1,000 draws for 100 rows × 10 features, estimator loaded from disk",
        {**_iterative({"name": "linear_regression", "options": {"noise": "inferred"}}, 10, 1), "minutes": None,
         "steps": 20}, "latency", (Goal("milliseconds", None, at_most=20.0),), draws=1000, datasets=1),
]

ROWS: dict[str, Row] = {
    row.name: row for row in (*_SMALL, *_LARGE_REGRESSION, *_CLASSIFICATION, *_NEURAL, *_MIXTURE, *_POISSON,
                              *_PAPER_ENCODERS, *_PAPER_RECIPE, *_LATENCY)
}
