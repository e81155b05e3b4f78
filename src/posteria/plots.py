"""Plots of a posterior: pairs, marginals, and predictions beside observations. All return a matplotlib Figure.

Figures are made without pyplot: nothing is kept open, and no display is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posteria.errors import DataError, InputError
from posteria.posterior import Posterior
from posteria.prediction import Prediction
from posteria.tables import TableCodec

_BLUE, _ORANGE, _GREY = "#2b6ca3", "#d9822b", "#8a8f98"
_LONGEST_NAME = 26
_MOST_POINTS, _MOST_ROWS = 600, 4000
_GRID, _BAND_DRAWS = 100, 5000
_LEVEL = 0.9
_CLOSE = 1e-12  # spread of values, relative to them, below which no axis tells them apart


def pairs(posterior: Posterior | pd.DataFrame, max_parameters: int = 6, num_samples: int = 1000,
          seed: int = 0) -> Figure:
    """Marginals on the diagonal, draws of every pair below, correlations above.

    Args:
        posterior: of one dataset; or draws, a column per parameter.
        max_parameters: of more than these, those furthest from zero in posterior sds are shown, and the title
            says so.
        num_samples, seed: of the draws.

    Examples:
        >>> pairs(posterior).savefig("pairs.png")     # doctest: +SKIP
    """
    draws, title = _top(_frame(posterior, num_samples, seed), max_parameters)
    size = draws.shape[1]
    side = max(4.0, 1.55 * size + 0.6)
    figure = Figure(figsize=(side, side), layout="constrained")
    figure.suptitle(f"Posterior draws{title}", fontsize=11)
    axes = figure.subplots(size, size, squeeze=False)
    with np.errstate(invalid="ignore"):  # what does not vary has no correlations
        correlation = np.nan_to_num(np.atleast_2d(np.corrcoef(draws.to_numpy(dtype=np.float64), rowvar=False)))
    for row in range(size):
        for column in range(size):
            _pair_cell(axes[row, column], draws, row, column, correlation[row, column])
    return figure


def marginals(posterior: Posterior | pd.DataFrame, max_parameters: int = 30, num_samples: int = 4000,
              seed: int = 0) -> Figure:
    """Median, 50% (thick) and 95% (thin) intervals of every parameter, one line each. Arguments as :func:`pairs`."""
    draws, title = _top(_frame(posterior, num_samples, seed), max_parameters)
    low, lower, middle, upper, high = np.quantile(draws.to_numpy(dtype=np.float64), [0.025, 0.25, 0.5, 0.75, 0.975], 0)
    places = np.arange(draws.shape[1])
    figure = Figure(figsize=(7.0, 1.5 + 0.24 * len(places)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0.0, color=_GREY, linewidth=0.8, linestyle=":")
    axis.hlines(places, low, high, color=_BLUE, linewidth=1.2)
    axis.hlines(places, lower, upper, color=_BLUE, linewidth=4.0)
    axis.plot(middle, places, "o", color="white", markeredgecolor=_BLUE, markersize=5)
    axis.set_yticks(places, [_short(name, 44) for name in draws.columns], fontsize=8)
    axis.set_ylim(len(places) - 0.4, -0.6)
    axis.set_xlabel("median, 50% and 95% interval", fontsize=9)
    axis.set_title(f"Posterior marginals{title}", fontsize=11)
    _plain(axis)
    return figure


def predictive(posterior: Posterior, x: Any = None, y: Any = None, codec: TableCodec | None = None,
               num_samples: int = 1000, seed: int = 0) -> Figure:
    """What the posterior predicts beside what was observed.

    A band for a regression on one feature, predicted against observed for more, a calibration curve for classes,
    replicated data for a model of x alone.

    Args:
        posterior: of one dataset.
        x, y: other rows (N, columns) and (N,), scaled as the dataset; default the dataset's own.
        codec: brings axes to the user's units and names.
        num_samples, seed: of the draws.
    """
    _check_one(posterior)
    if (x is None) != (y is None) and posterior.model.target != "none":
        raise InputError.of("y", "x without y or y without x", "both or neither")
    return _PREDICTIVE[posterior.model.target](_shown(posterior, x, y, codec, num_samples, seed))


@dataclass(frozen=True)
class _Shown:
    """Rows to show, in the dataset's scale: x (N, D), y (N,), and the prediction there."""

    posterior: Posterior
    x: np.ndarray
    y: np.ndarray
    prediction: Prediction
    codec: TableCodec | None
    source: str

    def target(self, values: np.ndarray) -> np.ndarray:
        return values if self.codec is None else self.codec.target_in_units(torch.as_tensor(values)).numpy()

    @property
    def target_name(self) -> str:
        return self.codec.target.name if self.codec is not None and self.codec.target is not None else "y"


def _shown(posterior: Posterior, x: Any, y: Any, codec: TableCodec | None, num_samples: int, seed: int) -> _Shown:
    source = "on the rows it was fitted to" if x is None else "on other rows"
    values, observed = _own_rows(posterior) if x is None else _given_rows(x, y)
    if len(values) > _MOST_ROWS:
        source += f" ({_MOST_ROWS} of {len(values)})"
        chosen = np.linspace(0, len(values) - 1, _MOST_ROWS).astype(int)
        values, observed = values[chosen], observed[chosen]
    return _Shown(posterior, values, observed, posterior.predict(values, num_samples, seed), codec, source)


def _own_rows(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    dataset = posterior.dataset
    x = dataset.x[0][dataset.observed[0]][:, dataset.features[0]].cpu().numpy()
    return x, np.zeros(len(x)) if dataset.y is None else dataset.y[0][dataset.observed[0]].cpu().numpy()


def _given_rows(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(x, dtype=np.float64)
    observed = np.zeros(len(values)) if y is None else np.asarray(y, dtype=np.float64)
    if len(observed) != len(values):
        raise DataError.of("y", f"{len(observed)} rows", f"{len(values)} rows, as x")
    return values, observed


# -- predictive, by kind of target ------------------------------------------------------------
def _numeric(shown: _Shown) -> Figure:
    return _band(shown) if shown.x.shape[1] == 1 else _against_observed(shown)


def _band(shown: _Shown) -> Figure:
    low, high = shown.x[:, 0].min(), shown.x[:, 0].max()
    margin = 0.05 * max(high - low, 1e-6)
    grid = np.linspace(low - margin, high + margin, _GRID)
    # Quantiles of few draws are ragged along a line.
    prediction = shown.posterior.predict(grid[:, None], _BAND_DRAWS, shown.prediction.seed)
    scaling = None if shown.codec is None else shown.codec.scaling
    location, scale = (0.0, 1.0) if scaling is None else (float(scaling.x_location[0]), float(scaling.x_scale[0]))
    at, points = location + scale * grid, location + scale * shown.x[:, 0]
    figure, axis = _single()
    for level, alpha in ((_LEVEL, 0.18), (0.5, 0.3)):
        lower, upper = (shown.target(_array(end)) for end in prediction.interval(level))
        axis.fill_between(at, lower, upper, color=_BLUE, alpha=alpha, linewidth=0, label=f"{level:.0%} predictive")
    axis.plot(at, shown.target(_array(prediction.mean)), color=_BLUE, linewidth=1.8, label="mean")
    axis.plot(points, shown.target(shown.y), "o", color=_ORANGE, markersize=3.5, alpha=0.7, label="observed")
    axis.set_xlabel("x" if shown.codec is None else _short(shown.codec.features[0]))
    axis.set_ylabel(_short(shown.target_name))
    axis.set_title(f"Predictive distribution, {shown.source}", fontsize=11)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _against_observed(shown: _Shown) -> Figure:
    lower, upper = (shown.target(_array(end)) for end in shown.prediction.interval(_LEVEL))
    mean, observed = shown.target(_array(shown.prediction.mean)), shown.target(shown.y)
    inside = float(((observed >= lower) & (observed <= upper)).mean())
    some = _some(len(observed))
    figure, axis = _single()
    axis.vlines(observed[some], lower[some], upper[some], color=_BLUE, alpha=0.25, linewidth=1.0)
    axis.plot(observed[some], mean[some], "o", color=_BLUE, markersize=3.5, alpha=0.8)
    ends = [float(min(observed.min(), mean.min())), float(max(observed.max(), mean.max()))]
    axis.plot(ends, ends, color=_GREY, linewidth=1.0, linestyle="--")
    axis.set_xlabel(f"observed {_short(shown.target_name)}")
    axis.set_ylabel(f"predicted: mean and {_LEVEL:.0%} interval")
    shortened = f", {len(some)} of {len(observed)} shown" if len(some) < len(observed) else ""
    axis.set_title(f"Predicted and observed, {shown.source}{shortened}\n"
                   f"{_LEVEL:.0%} intervals hold {inside:.0%} of the observations", fontsize=10)
    return figure


def _calibration(shown: _Shown) -> Figure:
    probabilities = _array(shown.prediction.mean)
    binary = probabilities.shape[1] == 2
    chosen = np.ones(len(probabilities), dtype=int) if binary else probabilities.argmax(1)
    predicted = probabilities[np.arange(len(chosen)), chosen]
    happened = (shown.y == chosen).astype(float)
    names = shown.codec.label_names if shown.codec is not None else ()
    what = (names[1] if names else "class 1") if binary else "the most probable class"
    accuracy = float((probabilities.argmax(1) == shown.y).mean())
    figure = Figure(figsize=(5.6, 5.8), layout="constrained")
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    centres, rates, errors = _binned(predicted, happened)
    axis.plot([0, 1], [0, 1], color=_GREY, linewidth=1.0, linestyle="--", label="perfectly calibrated")
    axis.errorbar(centres, rates, yerr=errors, color=_BLUE, marker="o", markersize=5, linewidth=1.2, capsize=2,
                  label="observed, 95% interval")
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.05, 1.05)
    axis.set_ylabel("observed frequency")
    axis.set_title(f"Calibration, {shown.source}\naccuracy {accuracy:.1%}", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    below.hist(predicted, bins=np.linspace(0, 1, 31), color=_BLUE, alpha=0.6)
    below.set_xlabel(f"predicted probability of {_short(what)}")
    below.set_ylabel("rows")
    _plain(axis)
    _plain(below)
    return figure


def _replicated(shown: _Shown) -> Figure:
    """Observed data beside data drawn from the predictive, in the first one or two columns."""
    replicas = _array(shown.prediction.draws)
    kept = shown.posterior.dataset.features[0].cpu().numpy()
    replicas = replicas[..., kept].reshape(-1, shown.x.shape[1])
    replicas = replicas[np.linspace(0, len(replicas) - 1, min(len(replicas), 4 * _MOST_POINTS)).astype(int)]
    names = ["x0", "x1"] if shown.codec is None else [_short(name) for name in shown.codec.features[:2]]
    figure, axis = _single()
    axis.set_title("Observed data and data drawn from the predictive", fontsize=11)
    axis.set_xlabel(names[0])
    if shown.x.shape[1] == 1:
        bins = _edges(np.concatenate([shown.x[:, 0], replicas[:, 0]]), 40)
        axis.hist(replicas[:, 0], bins=bins, density=True, color=_BLUE, alpha=0.35, label="predictive")
        axis.hist(shown.x[:, 0], bins=bins, density=True, histtype="step", color=_ORANGE, label="observed")
    else:
        axis.plot(replicas[:, 0], replicas[:, 1], ".", color=_BLUE, markersize=3, alpha=0.25, label="predictive")
        axis.plot(shown.x[:, 0], shown.x[:, 1], "o", color=_ORANGE, markersize=4, label="observed")
        axis.set_ylabel(names[1])
    axis.legend(fontsize=8, frameon=False)
    return figure


_PREDICTIVE: dict[str, Callable[[_Shown], Figure]] = {
    "real": _numeric, "count": _numeric, "positive": _numeric, "class": _calibration, "none": _replicated,
}


def _binned(predicted: np.ndarray, happened: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean prediction, observed rate and its 95% Wilson interval (2, bins), in bins of about equal counts."""
    groups = [group for group in np.array_split(np.argsort(predicted), min(bins, max(1, len(predicted) // 8)))
              if len(group)]
    centres = np.array([predicted[group].mean() for group in groups])
    rates = np.array([happened[group].mean() for group in groups])
    sizes = np.array([len(group) for group in groups])
    z = 1.96
    middle = (rates + z**2 / (2 * sizes)) / (1 + z**2 / sizes)
    half = z * np.sqrt(rates * (1 - rates) / sizes + z**2 / (4 * sizes**2)) / (1 + z**2 / sizes)
    return centres, rates, np.clip(np.stack([rates - middle + half, middle + half - rates]), 0, None)


# -- pieces -----------------------------------------------------------------------------------
def _edges(values: np.ndarray, count: int) -> list[float]:
    """Edges of so many bins; wide ones where values are the same, or too close together for numbers in between."""
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high))
    margin = 0.0 if high - low > _CLOSE * size else 0.5 * (size or 1.0)
    return np.linspace(low - margin, high + margin, count + 1).tolist()


def _pair_cell(axis: Axes, draws: pd.DataFrame, row: int, column: int, correlation: float) -> None:
    x, y = draws.iloc[:, column], draws.iloc[:, row]
    last = draws.shape[1] - 1
    axis.tick_params(labelsize=6)
    axis.locator_params(nbins=3)
    if row < column:
        axis.set_axis_off()
        axis.text(0.5, 0.5, f"{correlation:.2f}", ha="center", va="center", transform=axis.transAxes,
                  fontsize=8 + 6 * abs(correlation), color=_BLUE if abs(correlation) > 0.3 else _GREY)
        return
    if row == column:
        axis.hist(x, bins=_edges(x.to_numpy(dtype=np.float64), 30), color=_BLUE, alpha=0.7)
        axis.set_yticks([])
    else:
        some = _some(len(x))
        axis.plot(x.iloc[some], y.iloc[some], ".", color=_BLUE, markersize=2, alpha=0.35)
    _plain(axis)
    if row == last:
        axis.set_xlabel(_two_lines(draws.columns[column]), fontsize=7)
    if column == 0:
        axis.set_ylabel(_two_lines(draws.columns[row]), fontsize=7)
    axis.tick_params(labelbottom=row == last, labelleft=column == 0 and row != column)


def _frame(posterior: Posterior | pd.DataFrame, num_samples: int, seed: int) -> pd.DataFrame:
    if isinstance(posterior, pd.DataFrame):
        return posterior
    _check_one(posterior)
    return posterior.to_frame(num_samples, seed)


def _check_one(posterior: Posterior) -> None:
    if len(posterior) != 1:
        raise InputError.of("posterior", f"{len(posterior)} datasets", "one dataset, such as posterior[0]")


def _top(draws: pd.DataFrame, most: int) -> tuple[pd.DataFrame, str]:
    """The parameters to show, in their own order, and what to say in the title."""
    if most < 1:
        raise InputError.of("max_parameters", most, "1 or more")
    total = draws.shape[1]
    if total <= most:
        return draws, ""
    distance = (draws.mean().abs() / draws.std().clip(lower=1e-12)).to_numpy()
    chosen = np.sort(np.argsort(-distance, kind="stable")[:most])
    return draws.iloc[:, chosen], f"\nthe {most} of {total} parameters furthest from zero (|mean| / sd)"


def _array(values: torch.Tensor) -> np.ndarray:
    """The only dataset's values (1, ...), on the host."""
    return values[0].detach().cpu().numpy()


def _some(count: int) -> np.ndarray:
    """Indices of at most a plot's worth of points, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).astype(int))


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axis = figure.subplots()
    _plain(axis)
    return figure, axis


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _short(name: str, longest: int = _LONGEST_NAME) -> str:
    """A long name with its middle left out, so that both its ends can be read."""
    if len(name) <= longest:
        return name
    keep = longest - 1
    return name[: keep - keep // 2] + "…" + name[len(name) - keep // 2:]


def _two_lines(name: str) -> str:
    """The block above the entry, where they are too long for one line of a small panel."""
    block, bracket, entry = name.partition("[")
    return name if len(name) <= 16 else "\n".join(_short(part, 22) for part in (block, bracket + entry) if part)
