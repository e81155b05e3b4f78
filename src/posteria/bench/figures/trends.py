"""Figures 4 to 6: estimators trained on any number of features, evaluated at growing numbers of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posteria.bench import measure
from posteria.bench.cells import PaperCell
from posteria.bench.figures.drawing import Drawing, found_results
from posteria.bench.figures.gallery import BENCH
from posteria.bench.figures.points import only
from posteria.bench.figures.style import GREY, LOOKS, not_run, plain, subject
from posteria.bench.methods import METHODS, Trained
from posteria.bench.paper import paper_numbers
from posteria.bench.report import HIGHER_IS_BETTER, over_seeds
from posteria.bench.scales import Scale
from posteria.bench.setups import SETUPS, Setup
from posteria.bench.store import Result
from posteria.bench.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ESTIMATORS = ("forward_kl/gaussian/transformer", "forward_kl/flow/transformer", "reverse_kl/gaussian/transformer",
              "reverse_kl/flow/transformer", "forward_kl/own/iterative", "reverse_kl/own/iterative")
FEATURES = (1, 2, 5, 10, 25, 50, 75, 100)
_FEW_FEATURES = (2, 25, 100)
_BASELINES = ("random", "optimization")
_KNOWN = (*_BASELINES, "exact")
# By whether y is a class: what is drawn in the upper and the lower row.
_FIGURES = {False: ("l2_per_draw", "l2_ensembled"), True: ("accuracy_per_draw", "accuracy_ensembled")}
_NAMES = {"l2_per_draw": "squared error per draw", "l2_ensembled": "squared error, ensembled",
          "accuracy_per_draw": "accuracy per draw, %", "accuracy_ensembled": "accuracy, ensembled, %"}
_SEEN = ("Each estimator is trained once, on 1 to 100 features, and evaluated at each number of them: upper row, the "
         "error or accuracy of single posterior draws, as the paper has it; lower row, of the prediction averaged over "
         "the draws. In many dimensions the former rewards draws that stay near their mean, so that over-confident "
         "posteriors can look better than the exact one. Bars are standard errors over datasets and seeds; hollow "
         "markers are the paper's numbers.")
_COLUMNS = ["setup", "features", "method", "figure", "mean", "standard_error", "seeds", "paper"]


@dataclass(frozen=True)
class TrendCell(PaperCell):
    """A cell at a number of features that no table has; apart from the tables' cells, whose training it shares."""

    @property
    def bench(self) -> str:
        return BENCH

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**super().identity, "bench": BENCH}


@dataclass(frozen=True)
class Trends:
    """One of Figures 4 to 6.

    Attributes:
        title: of the figure.
        setups: the columns: variable ones, at any number of features.
        methods: keys of the trained methods.
        features: numbers of features; default by the scale.
    """

    title: str
    setups: Sequence[Setup]
    methods: Sequence[str] = ESTIMATORS
    features: Sequence[int] = ()

    def cells(self, scale: Scale, seeds: int) -> list[PaperCell]:
        """Baselines and estimators at every number of features; an estimator is trained once for all of them."""
        return [cell for seed in range(seeds) for setup in self.setups for cell in self._cells_of(setup, scale, seed)]

    def draw(self, scale: Scale, workspace: Workspace, seeds: int) -> Drawing:
        """Draw the results there are."""
        results = found_results(self.cells(scale, seeds), workspace)
        frame = trend_frame(self.setups, self._features(scale), results.values())
        return Drawing(_paint(self.setups, frame, self._features(scale)), frame, _seen(self.setups, frame))

    def _features(self, scale: Scale) -> Sequence[int]:
        return self.features or (_FEW_FEATURES if scale.name == "smoke" else FEATURES)

    def _cells_of(self, setup: Setup, scale: Scale, seed: int) -> Iterator[PaperCell]:
        baselines = (*_BASELINES, *(["exact"] if setup.task in measure.EXACT_TASKS else []))
        for method in (*(baselines if seed == 0 else ()), *self.methods):
            for features in self._features(scale):
                yield _cell(at(setup, features), method, scale, seed)


def at(setup: Setup, features: int) -> Setup:
    """A variable setup at another number of features: its estimators are the same."""
    return dataclasses.replace(setup, dim=features)


def _cell(setup: Setup, method: str, scale: Scale, seed: int) -> PaperCell:
    kind = PaperCell if setup.key in SETUPS else TrendCell
    return kind(setup, METHODS[method], scale, seed)


def trend_frame(setups: Sequence[Setup], features: Sequence[int], results: Any) -> pd.DataFrame:
    """A row per setup, number of features, method and figure: mean over seeds, standard error, the paper's number."""
    import pandas as pd

    labelled: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        labelled.setdefault((result.setup, result.method), []).append(result)
    rows = [row for setup in setups for count in features for method in LOOKS
            for row in _rows(at(setup, count), method, labelled.get((at(setup, count).key, method), []))]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _rows(setup: Setup, method: str, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    printed = _printed(setup).get(method, math.nan)
    main = _shown(setup)[0]
    for figure in dict.fromkeys(name for result in results for name in result.figures):
        entry = over_seeds(results, figure)
        yield {"setup": subject(setup), "features": setup.dim, "method": method, "figure": figure, "mean": entry.mean,
               "standard_error": entry.error, "seeds": len(results), "paper": printed if figure == main else math.nan}


def _printed(setup: Setup) -> dict[str, float]:
    """Method -> what the paper prints for estimators of any number of features."""
    table = paper_numbers()
    same = ((table.setup == "variable") & (table.task == setup.task) & (table.dim == setup.dim)
            & (table.activation == setup.activation) & (table.layers == setup.layers)
            & (table.classes == setup.classes))
    rows = table.loc[same]
    return dict(zip(map(_method_key, rows.itertuples()), rows["mean"], strict=True))


def _method_key(row: Any) -> str:
    return Trained(row.objective, row.density, row.encoder).key if row.encoder else row.objective


def _shown(setup: Setup) -> tuple[str, str]:
    return _FIGURES["classification" in setup.task]


def _seen(setups: Sequence[Setup], frame: pd.DataFrame) -> str:
    """What stands out at the most features."""
    return " ".join([_SEEN, *(sentence for setup in setups for sentence in _best(setup, frame))])


def _best(setup: Setup, frame: pd.DataFrame) -> Iterator[str]:
    """A sentence per row of the picture: the best estimator at the most features, beside the baselines."""
    for figure in _shown(setup):
        rows = only(frame, setup=subject(setup), figure=figure)
        most = rows.features.max()
        last = only(rows, features=most)
        means = {name: mean for name, mean in zip(last.method, last["mean"], strict=True) if math.isfinite(mean)}
        trained = {name: mean for name, mean in means.items() if isinstance(METHODS[name], Trained)}
        if trained:
            best = (max if figure in HIGHER_IS_BETTER else min)(trained, key=trained.__getitem__)
            shown = [f"{LOOKS[name].label} {means[name]:.4g}" for name in (best, *_KNOWN) if name in means]
            yield f"{subject(setup)} at {most} features, {_NAMES[figure].rstrip(', %')}, the best and baselines: " \
                  f"{'; '.join(shown)}."


# -- the picture ------------------------------------------------------------------------------
def _paint(setups: Sequence[Setup], frame: pd.DataFrame, features: Sequence[int]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 4.3 * len(setups), 7.2), layout="constrained")
    axes = figure.subplots(2, len(setups), squeeze=False, sharex=True)
    for column, setup in zip(axes.T, setups, strict=True):
        for axis, name in zip(column, _shown(setup), strict=True):
            _panel(axis, only(frame, setup=subject(setup), figure=name), name, features)
        column[0].set_title(subject(setup), fontsize=10)
        column[-1].set_xlabel("features", fontsize=9)
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(),
                                                                            strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _panel(axis: Axes, rows: pd.DataFrame, name: str, features: Sequence[int]) -> None:
    plain(axis)
    axis.set_ylabel(_NAMES[name], fontsize=9)
    axis.set_xscale("log")
    axis.set_xticks(features, [str(count) for count in features])
    axis.minorticks_off()
    axis.grid(axis="y", alpha=0.25)
    for method, look in LOOKS.items():
        mine = only(rows, method=method)
        if len(mine):
            axis.errorbar(mine.features, mine["mean"], yerr=mine.standard_error.fillna(0.0), color=look.colour,
                          ls=look.line, marker=look.marker, ms=4, lw=look.width, elinewidth=1.0, alpha=look.alpha,
                          label=look.label)
            axis.plot(mine.features, mine.paper, look.marker, color=look.colour, mfc="none", ms=8, ls="none")
    if rows.paper.notna().any():
        axis.plot([], [], "o", color=GREY, mfc="none", ms=8, label="the paper's number (hollow)")
    if name not in HIGHER_IS_BETTER and len(rows):
        axis.set_yscale("log")
    if rows.empty:
        not_run(axis)
