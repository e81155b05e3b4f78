"""Figure 1: what estimators predict in low dimensions, on one test dataset per model.

For the Gaussian models, posterior draws of the means; for regressions, of the mean function; for classifications, of
the decision boundary, over the probability averaged over draws. Numbers are computed first, and only those are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical

from posteria.bench.cases import Case
from posteria.bench.figures.drawing import Drawing, span
from posteria.bench.figures.gallery import EstimatorCell, Example, draws_of, estimator_cell, posteriors
from posteria.bench.figures.points import COLUMNS, contours, means_of, numbers, only, pieces_of, rows_of, stacked
from posteria.bench.figures.style import (
    BLACK,
    CLASS_MARKERS,
    CLASSES,
    LOOKS,
    Look,
    heading,
    not_run,
    paint_rows,
    plain,
    polylines,
)
from posteria.bench.scales import Scale
from posteria.bench.workspace import Workspace
from posteria.models import Model
from posteria.posterior import Posterior
from posteria.types import Dataset

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXAMPLES = (Example("gm_2d"), Example("gmm_2d_2c", 4), Example("lr_1d"), Example("nlr_relu1_1d"),
            Example("lc_2d_2c", 4), Example("nlc_relu1_2d_2c", 4))
METHODS = ("forward_kl/flow/transformer", "reverse_kl/gaussian/transformer", "reverse_kl/flow/transformer",
           "reverse_kl/own/iterative")
_NUM_MEANS, _NUM_FUNCTIONS = 100, 20
_REACH, _LINE_POINTS, _GRID = 3.0, 61, 31
_SEEN = ("Rows are methods, columns models; each column shows one test dataset of {rows} rows, with {means} posterior "
         "draws of the means, or {functions} of the mean function or the decision boundary. Black: the parameters "
         "that generated the data (a cross, or a dashed line). Shading: the probability of the second class, averaged "
         "over the draws.")


@dataclass(frozen=True)
class Predictions:
    """Figure 1.

    Attributes:
        examples: the columns.
        methods: keys of the rows, trained ones.
    """

    examples: Sequence[Example] = EXAMPLES
    methods: Sequence[str] = METHODS
    title: str = "Predictions of the estimators in low dimensions"

    def cells(self, scale: Scale, seeds: int) -> list[EstimatorCell]:
        """The estimators; a picture shows one seed."""
        return [cell for example in self.examples for cell in self._cells_of(example, scale).values()]

    def draw(self, scale: Scale, workspace: Workspace, seeds: int) -> Drawing:
        """Draw every trained estimator's posterior."""
        columns = [self._column(example, scale, workspace) for example in self.examples]
        picture = _paint(self.examples, self.methods, columns)
        data = stacked(*(frame.assign(setup=example.setup, method=method)
                         for example, frames in zip(self.examples, columns, strict=True)
                         for method, frame in frames.items()))
        rows = [int(example.case(scale).dataset.observed.sum()) for example in self.examples]
        seen = _SEEN.format(rows=span(rows), means=_NUM_MEANS, functions=_NUM_FUNCTIONS)
        return Drawing(picture, data.reindex(columns=COLUMNS), seen)

    def _cells_of(self, example: Example, scale: Scale) -> dict[str, EstimatorCell]:
        return {method: estimator_cell(example.described, method, scale) for method in self.methods}

    def _column(self, example: Example, scale: Scale, workspace: Workspace) -> dict[str, pd.DataFrame]:
        """The numbers of one dataset, under "data" and by method."""
        case, kind = example.case(scale), KINDS[example.described.task]
        frames = {"data": kind.data(example.described.build_model(), case)}
        for method, posterior in posteriors(self._cells_of(example, scale), case, workspace):
            frames[method] = kind.draws(posterior, case)
        return frames


@dataclass(frozen=True)
class Kind:
    """How one sort of model is drawn.

    Attributes:
        data: (model, case) -> numbers of the dataset, and of the truth.
        draws: (posterior, case) -> numbers of the posterior draws.
        paint: (axis, data, draws or None, look).
        axes: names of the axes.
    """

    data: Callable[[Model, Case], pd.DataFrame]
    draws: Callable[[Posterior, Case], pd.DataFrame]
    paint: Callable[[Axes, Any, Any, Look], None]
    axes: tuple[str, str]


# -- numbers ----------------------------------------------------------------------------------
def _theta_of(case: Case) -> Tensor:
    """The generating parameters (1, 1, P)."""
    assert case.theta is not None
    return case.theta[:, None]


def _means_data(model: Model, case: Case) -> pd.DataFrame:
    return stacked(rows_of(case.dataset), means_of("truth", _theta_of(case)[0]))


def _means_draws(posterior: Posterior, case: Case) -> pd.DataFrame:
    return means_of("mean", draws_of(posterior, case, _NUM_MEANS)[0])


def _functions_data(model: Model, case: Case) -> pd.DataFrame:
    return stacked(rows_of(case.dataset), _functions("truth", model, _theta_of(case)))


def _functions_draws(posterior: Posterior, case: Case) -> pd.DataFrame:
    return _functions("function", posterior.model, draws_of(posterior, case, _NUM_FUNCTIONS))


@torch.no_grad()
def _functions(kind: str, model: Model, theta: Tensor) -> pd.DataFrame:
    """Mean functions of theta (1, S, P) along a line."""
    line = np.linspace(-_REACH, _REACH, _LINE_POINTS)
    values = model.predict(theta, Dataset.of(line[:, None]).to(theta.device)).mean[0].cpu().numpy()
    return numbers(kind, line, values, np.arange(len(values))[:, None])


def _boundaries_data(model: Model, case: Case) -> pd.DataFrame:
    return stacked(rows_of(case.dataset), _boundaries("truth", _probabilities(model, _theta_of(case))))


def _boundaries_draws(posterior: Posterior, case: Case) -> pd.DataFrame:
    maps = _probabilities(posterior.model, draws_of(posterior, case, _NUM_FUNCTIONS))
    x, y = np.meshgrid(*_ticks())
    return stacked(_boundaries("boundary", maps), numbers("probability", x, y, value=maps.mean(0)))


@torch.no_grad()
def _probabilities(model: Model, theta: Tensor) -> np.ndarray:
    """(S, grid, grid) probability of the second class under theta (1, S, P)."""
    points = np.stack(np.meshgrid(*_ticks()), -1).reshape(-1, 2)
    distribution = model.predict(theta, Dataset.of(points).to(theta.device))
    assert isinstance(distribution, Categorical)
    return distribution.probs[0, :, :, 1].cpu().double().numpy().reshape(-1, _GRID, _GRID)


def _boundaries(kind: str, maps: np.ndarray) -> pd.DataFrame:
    """Where the probability is a half, draw by draw."""
    return stacked(*(contours(kind, *_ticks(), one, 0.5, draw) for draw, one in enumerate(maps)))


def _ticks() -> tuple[np.ndarray, np.ndarray]:
    ticks = np.linspace(-_REACH, _REACH, _GRID)
    return ticks, ticks


# -- pictures ---------------------------------------------------------------------------------
def _paint(examples: Sequence[Example], methods: Sequence[str], columns: Sequence[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.7 + 2.45 * len(examples), 0.6 + 2.25 * len(methods)), layout="constrained")
    axes = figure.subplots(len(methods), len(examples), squeeze=False, sharex="col", sharey="col")
    for column, (example, frames) in enumerate(zip(examples, columns, strict=True)):
        kind = KINDS[example.described.task]
        for row, method in enumerate(methods):
            kind.paint(axes[row, column], frames["data"], frames.get(method), LOOKS[method])
            plain(axes[row, column])
            if method not in frames:
                not_run(axes[row, column])
        axes[0, column].set_title(heading(example.described), fontsize=9)
        axes[-1, column].set_xlabel("across {}, up {}".format(*kind.axes), fontsize=8)
    for row, method in enumerate(methods):
        axes[row, 0].set_ylabel(LOOKS[method].lines, fontsize=9, color=LOOKS[method].colour, fontweight="bold")
    return figure


def _paint_means(axis: Axes, data: pd.DataFrame, draws: pd.DataFrame | None, look: Look) -> None:
    paint_rows(axis, data)
    if draws is not None:
        for part in draws.part.unique():
            mine = only(draws, part=part)
            axis.plot(mine.x, mine.y, CLASS_MARKERS[part], color=look.colour, ms=3, alpha=0.45, mew=0)
    truth = only(data, kind="truth")
    axis.plot(truth.x, truth.y, "x", color=BLACK, ms=6, mew=1.6)


def _paint_functions(axis: Axes, data: pd.DataFrame, draws: pd.DataFrame | None, look: Look) -> None:
    paint_rows(axis, data)
    if draws is not None:
        polylines(axis, pieces_of(draws, "function"), look.colour, 0.9, 0.55)
    polylines(axis, pieces_of(data, "truth"), BLACK, 1.2, style="--")
    axis.set_xlim(-_REACH, _REACH)
    low, high = data.y.min(), data.y.max()
    axis.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))


def _paint_boundaries(axis: Axes, data: pd.DataFrame, draws: pd.DataFrame | None, look: Look) -> None:
    if draws is not None:
        shading = only(draws, kind="probability").value.to_numpy().reshape(_GRID, _GRID)
        axis.contourf(*_ticks(), shading, levels=np.linspace(0, 1, 11), colors=_shades(), alpha=0.4)
        polylines(axis, pieces_of(draws, "boundary"), look.colour, 0.7, 0.6)
    for label, (colour, marker) in enumerate(zip(CLASSES, CLASS_MARKERS, strict=True)):
        mine = only(data, kind="row", value=label)
        axis.plot(mine.x, mine.y, marker, color=colour, ms=3.2, mec="white", mew=0.3)
    polylines(axis, pieces_of(data, "truth"), BLACK, 1.2, style="--")
    axis.set_xlim(-_REACH, _REACH)
    axis.set_ylim(-_REACH, _REACH)


def _shades() -> list[Any]:
    """From the first class's colour over white to the second's."""
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("classes", [CLASSES[0], "white", CLASSES[1]])
    return [ramp(place) for place in np.linspace(0, 1, 10)]


_MEANS = Kind(_means_data, _means_draws, _paint_means, ("$x_1$", "$x_2$"))
_FUNCTIONS = Kind(_functions_data, _functions_draws, _paint_functions, ("x", "y"))
_BOUNDARIES = Kind(_boundaries_data, _boundaries_draws, _paint_boundaries, ("$x_1$", "$x_2$"))
KINDS: dict[str, Kind] = {
    "gaussian_mean": _MEANS, "gaussian_mixture": _MEANS, "linear_regression": _FUNCTIONS,
    "nonlinear_regression": _FUNCTIONS, "linear_classification": _BOUNDARIES, "nonlinear_classification": _BOUNDARIES,
}
