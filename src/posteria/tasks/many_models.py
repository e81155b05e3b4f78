"""Datasets of many models: every batch has its own model, prior, sizes and kind of features.

What an estimator with shared tokens (:meth:`posteria.estimator.Estimator.for_model`) trains on, so that it serves
models that it never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution, constraints

from posteria.errors import InputError
from posteria.models import Model, Parameter, build_model
from posteria.tasks.inputs import INPUTS
from posteria.tasks.simulated import SimulatedTask, choose, host_generator

_Range = tuple[float, float]


@dataclass(frozen=True)
class Family:
    """Models of one kind, with what may vary.

    Attributes:
        name: of the registered model.
        choices: per option the values that it may take.
        scales: (least, most) prior standard deviation of a real parameter.
        columns: (least, most) features, within those of the task.
        fixed: the parameters that keep their own priors.
        xavier: share of models whose prior scale falls with the root of the number of features.
        weight: how often it is drawn, in proportion.
    """

    name: str
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    scales: _Range = (0.1, 10.0)
    columns: tuple[int, int] = (1, 64)
    fixed: tuple[str, ...] = ()
    xavier: float = 0.5
    weight: float = 1.0


# Where the mean is an exponential of the outputs, wide priors make data that nobody has.
LOG_LINK, LOGIT = (0.05, 0.7), (0.1, 5.0)


def generalized_linear(family: str, scales: _Range) -> Family:
    """Generalized linear models of one family of observations."""
    xavier = 1.0 if scales == LOG_LINK else 0.5
    return Family("generalized_linear", {"family": [family]}, scales, xavier=xavier)


FAMILIES: Mapping[str, Family] = {
    "gaussian_mean": Family("gaussian_mean", weight=0.5),
    "gaussian_mixture": Family("gaussian_mixture", {"components": [2, 3]}, (0.5, 5.0), (1, 5), weight=0.5),
    "linear": Family("linear_regression", {"noise": [0.01, 0.25, 4.0]}, weight=0.5),
    "linear_noise": Family("linear_regression", {"noise": ["inferred"]}),
    "student_t": generalized_linear("student_t", (0.1, 10.0)),
    "logistic": generalized_linear("bernoulli", LOGIT),
    "categorical": Family("linear_classification", {"classes": [3, 4, 5], "temperature": [1.0, 0.3]}, LOGIT, (1, 16)),
    "poisson": generalized_linear("poisson", LOG_LINK),
    "negative_binomial": generalized_linear("negative_binomial", LOG_LINK),
    "gamma": generalized_linear("gamma", LOG_LINK),
    "hierarchical": Family("hierarchical", {"groups": [4, 8, 16], "varying_slopes": [False, True],
                                            "family": ["gaussian", "bernoulli"]}, (0.3, 3.0), (1, 4)),
    "neural": Family("neural_regression", {"hidden": [8], "activation": ["relu", "tanh"], "noise": [0.25, "inferred"]},
                     (0.3, 2.0), (1, 4), weight=0.5),
    "neural_classes": Family("neural_classification", {"hidden": [8], "classes": [2], "temperature": [1.0]}, (0.3, 2.0),
                             (1, 4), weight=0.25),
}


class ManyModelsTask(SimulatedTask):
    """Draws a model, its priors and a kind of features for every batch; the model it is made with is only a name.

    Args:
        model: nominal; batches have models of their own.
        families: keys of ``FAMILIES``; default all.
        rows, columns, rows_scale: as for :class:`SimulatedTask`; models of few features take fewer.
        most_cells: rows times columns of a dataset; longer tables get fewer rows.

    Raises:
        InputError: unknown families; see :class:`SimulatedTask` too.

    Examples:
        >>> from posteria.models.linear import LinearRegression
        >>> from posteria.randomness import generator_for
        >>> generator = generator_for(0)
        >>> task = ManyModelsTask(LinearRegression(), families=["logistic"]).pick(generator)
        >>> task.model.name
        'linear_classification'
    """

    def __init__(self, model: Model, families: Sequence[str] | None = None, rows: Sequence[int] = (4, 2000),
                 columns: Sequence[int] = (1, 64), most_cells: int = 20_000):
        super().__init__(model, rows, columns, "log")
        self.families = tuple(FAMILIES if families is None else families)
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown or not self.families:
            raise InputError.of("families", str(unknown or "none"), f"names among {sorted(FAMILIES)}")
        self.most_cells = most_cells

    def pick(self, generator: torch.Generator) -> SimulatedTask:
        """The task of one model, drawn anew."""
        host = host_generator(generator)
        weights = torch.tensor([FAMILIES[name].weight for name in self.families], dtype=torch.float64)
        family = FAMILIES[self.families[int(torch.multinomial(weights, 1, generator=host))]]
        return pose(family, self.rows, self.columns, self.most_cells, host)

    def masked(self) -> ManyModelsTask:
        raise InputError.of("encoder", "one that takes datasets of one size", "the iterative encoder, with shared=True")

    def options(self) -> dict[str, Any]:
        return {"families": list(self.families), "rows": list(self.rows), "columns": list(self.columns),
                "most_cells": self.most_cells}


class VariedInputsTask(SimulatedTask):
    """Datasets simulated from a model on features of a given kind.

    Args:
        model, rows, columns: as for :class:`SimulatedTask`; small numbers of rows are as likely as large ones.
        kind: a key of :data:`posteria.tasks.inputs.INPUTS`.
    """

    def __init__(self, model: Model, rows: Sequence[int], columns: Sequence[int], kind: str = "normal"):
        super().__init__(model, rows, columns, "log")
        self._change = choose("kind", kind, INPUTS)
        self.kind = kind

    def draw_inputs(self, num_datasets: int, rows: int, columns: int, generator: torch.Generator,
                    device: torch.device | str = "cpu") -> Tensor:
        """(B, N, D): the model's own extra columns, then features of the kind."""
        x = super().draw_inputs(num_datasets, rows, columns, generator, device)
        extra = len(self.model.extra_columns)
        return torch.cat([x[..., :extra], self._change(x[..., extra:], generator)], -1)


def pose(family: Family, rows: tuple[int, int], columns: tuple[int, int], most_cells: int,
         generator: torch.Generator) -> VariedInputsTask:
    """The task of one model of a family, with priors, a number of features and a kind of features drawn at random."""
    least, most = max(columns[0], family.columns[0]), min(columns[1], family.columns[1])
    features = _log_uniform_whole((min(least, most), most), generator)
    model = draw_model(family, features, generator)
    width = features + len(model.extra_columns)
    most_rows = max(rows[0], min(rows[1], most_cells // width))
    kind = list(INPUTS)[int(torch.randint(len(INPUTS), (), generator=generator))]
    return VariedInputsTask(model, (rows[0], most_rows), (width, width), kind)


def draw_model(family: Family, features: int, generator: torch.Generator) -> Model:
    """A model of the family with options and priors drawn at random."""
    options = {name: values[int(torch.randint(len(values), (), generator=generator))]
               for name, values in family.choices.items()}
    shrink = features**-0.5 if float(torch.rand((), generator=generator)) < family.xavier else 1.0
    plain = build_model(family.name, **options)
    priors = {p.name: draw_prior(p, family.scales, shrink if "features" in p.shape else 1.0, generator)
              for p in plain.parameters if p.name not in family.fixed and not p.event_dim}
    return build_model(family.name, priors=priors, **options)


def draw_prior(parameter: Parameter, scales: _Range, shrink: float, generator: torch.Generator) -> Distribution:
    """A prior for a scalar parameter: of a family and a width drawn at random, on the parameter's support."""
    width = _log_uniform(scales, generator)
    if type(parameter.support) is type(constraints.real):
        centre = width * float(torch.randn((), generator=generator)) / 2
        return _pick(_REAL, generator)(centre * shrink, width * shrink)
    if type(parameter.support) is type(constraints.positive):
        return _pick(_POSITIVE, generator)(_log_uniform((0.3, 3.0), generator))
    return parameter.prior


def _pick(choices: Sequence[tuple[float, Callable[..., Distribution]]], generator: torch.Generator) -> (
        Callable[..., Distribution]):
    place = float(torch.rand((), generator=generator))
    for share, build in choices:
        place -= share
        if place < 0:
            return build
    return choices[-1][1]


_REAL: Sequence[tuple[float, Callable[[float, float], Distribution]]] = (
    (0.7, distributions.Normal), (0.15, lambda m, s: distributions.Laplace(m, s / 2**0.5)),
    (0.15, lambda m, s: distributions.StudentT(4.0, m, s / 2**0.5)))
_POSITIVE: Sequence[tuple[float, Callable[[float], Distribution]]] = (
    (0.5, distributions.HalfNormal), (0.5, lambda s: distributions.LogNormal(math.log(s), 0.7)))


def _log_uniform(between: _Range, generator: torch.Generator) -> float:
    low, high = (math.log(edge) for edge in between)
    return math.exp(low + (high - low) * float(torch.rand((), generator=generator)))


def _log_uniform_whole(between: tuple[int, int], generator: torch.Generator) -> int:
    return min(between[1], int(_log_uniform((between[0], between[1] + 1), generator)))
