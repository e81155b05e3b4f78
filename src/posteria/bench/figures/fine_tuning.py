"""Figures 2 and 7 to 14: test errors on real tables while draws of several starts are fine-tuned to a mode."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from posteria.bench.figures.drawing import Drawing, found_results
from posteria.bench.figures.points import only
from posteria.bench.figures.style import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILLION, Look, not_run, plain
from posteria.bench.fine_tuning import (
    GOAL,
    PRIOR,
    SIZES,
    XAVIER,
    FineTuningCell,
    curve_of,
    fine_tuning_cells,
    merit_frame,
    tables_of,
)
from posteria.bench.methods import OBJECTIVES
from posteria.bench.scales import Scale
from posteria.bench.store import Result
from posteria.bench.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Transformers of any number of features take an hour to train: not at scale smoke.
_ENCODERS = {"smoke": ("iterative",), "laptop": ("iterative", "transformer"), "paper": ("iterative", "transformer")}
_LOOKS: dict[str, Look] = {
    PRIOR: Look("prior", GREY, "-", width=1.6),
    XAVIER: Look("Xavier", BLACK, ":", width=1.6),
    "forward_kl/transformer": Look("forward KL, Transformer", VERMILLION, "--"),
    "reverse_kl/transformer": Look("reverse KL, Transformer", BLUE, "--"),
    "forward_kl/iterative": Look("forward KL, iterative", PURPLE, "-", width=3.2, alpha=0.6),
    "reverse_kl/iterative": Look("reverse KL, iterative", GREEN, "-", width=1.6),
}
_NAMES = {"lr": "Linear regression", "nlr_relu1": "Neural regression", "lc_2c": "Linear classification",
          "nlc_relu1_2c": "Neural classification"}
_DENSITIES = {"gaussian": "Gaussian", "flow": "flow"}
_TICKS = (0, 10, 100, 1000)
_FEWEST_COLUMNS, _MOST_COLUMNS = 3, 5
_COLUMNS = ["family", "table", "start", "step", "mean", "standard_error", "first_step"]
_SEEN = ("Held-out error of {draws} draws while Adam takes them to a mode, averaged over draws and {folds} folds; bands"
         " are standard errors over folds, and dots the first step at which the error is within 1% of its own value at "
         "the end, after {steps:,} steps. An error that passes that value on its way is within 1% there too: *settled* "
         "counts from when it stays. The axis of steps is even up to 10 and logarithmic beyond.")


@dataclass(frozen=True)
class FineTuning:
    """One of Figures 2 and 7 to 14.

    Attributes:
        families: keys of the families of models, a panel for each table of theirs.
        density: of the estimators.
        tables: names of some tables; default all.
    """

    families: Sequence[str]
    density: str
    tables: Sequence[str] = ()

    @property
    def title(self) -> str:
        names = " and ".join(_NAMES[family].lower() for family in self.families) if len(self.families) < 4 else "models"
        return f"Fine-tuning of {names} on real tables, from estimators with the density {_DENSITIES[self.density]}"

    def cells(self, scale: Scale, seeds: int) -> list[FineTuningCell]:
        """Every start on every table; an estimator is trained once for all tables of a family."""
        return [cell for family in self.families
                for cell in fine_tuning_cells(family, scale, self._starts(scale), self._tables(family, scale))]

    def draw(self, scale: Scale, workspace: Workspace, seeds: int) -> Drawing:
        """Draw the results there are."""
        cells = self.cells(scale, seeds)
        results = list(found_results(cells, workspace).values())
        frame = curve_frame(results)
        panels = [(family, table) for family in self.families for table in self._tables(family, scale)]
        seen = [_SEEN.format(**asdict(SIZES[scale.name])), *_sentences(merit_frame(results)), *_missing(cells, results)]
        return Drawing(_paint(panels, frame), frame, " ".join(seen))

    def _starts(self, scale: Scale) -> list[str]:
        trained = [f"{objective}/{self.density}/{encoder}" for encoder in _ENCODERS[scale.name]
                   for objective in OBJECTIVES]
        return [*trained, PRIOR, XAVIER]

    def _tables(self, family: str, scale: Scale) -> Sequence[str]:
        known = tables_of(family, scale)
        if not self.tables:
            return known
        return [table for table in self.tables if table in known] or known[:1]


def curve_frame(results: Sequence[Result]) -> pd.DataFrame:
    """A row per family, table, start and step: mean test error, its standard error, and the start's first step."""
    import pandas as pd

    return pd.DataFrame([row for result in results for row in _rows(result)], columns=_COLUMNS)


def _rows(result: Result) -> Iterator[tuple[Any, ...]]:
    family, table = result.setup.split("|")
    arrived = result.figures["first_step"]["mean"]
    for step, mean, error in zip(*curve_of(result), strict=True):
        yield family, table, result.method, step, mean, error, arrived


def _sentences(merits: pd.DataFrame) -> Iterator[str]:
    """How often each start meets the goal, beside the prior."""
    for start in dict.fromkeys(merits.start):
        rows = merits[(merits.start == start) & merits.ratio.notna()]
        if start != PRIOR and len(rows):
            met, settled = ((rows[name] <= GOAL).sum() for name in ("ratio", "settled_ratio"))
            yield (f"From {look_of(start).label}: within a tenth of the prior's steps on {met} of {len(rows)} tables "
                   f"(settled: {settled}), median ratio {rows.ratio.median():.2g}.")


def _missing(cells: Sequence[FineTuningCell], results: Sequence[Result]) -> Iterator[str]:
    """A sentence on the curves that there are not."""
    wanted, found = (Counter(starts) for starts in ((c.start for c in cells), (r.method for r in results)))
    absent = [f"{look_of(start).label} ({count - found[start]} of {count})" for start, count in wanted.items()
              if found[start] < count]
    if absent:
        yield f"Not run, tables: {'; '.join(absent)}."


def look_of(start: str) -> Look:
    """How a start is drawn; densities look alike, because a figure has one."""
    parts = start.split("/")
    return _LOOKS[f"{parts[0]}/{parts[-1]}" if len(parts) > 1 else start]


# -- the picture ------------------------------------------------------------------------------
def _paint(panels: Sequence[tuple[str, str]], frame: pd.DataFrame) -> Figure:
    from matplotlib.figure import Figure

    columns = _num_columns(len(panels))
    rows = math.ceil(len(panels) / columns)
    several = len({family for family, _ in panels}) > 1
    figure = Figure(figsize=(0.6 + 2.8 * columns, 0.8 + 2.35 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (family, table) in zip(axes, panels, strict=False):
        _panel(axis, only(frame, family=family, table=table), family)
        axis.set_title(f"{_NAMES[family]}\n{table}" if several else table, fontsize=9)
    for axis in axes[len(panels):]:
        axis.set_axis_off()
    figure.supxlabel("steps of Adam", fontsize=10)
    _legend(figure, axes)
    return figure


def _num_columns(panels: int) -> int:
    """Such that the fewest places stay empty."""
    wide = range(min(_FEWEST_COLUMNS, panels), min(_MOST_COLUMNS, panels) + 1)
    return min(wide, key=lambda columns: (-panels % columns, -columns))


def _panel(axis: Axes, rows: pd.DataFrame, family: str) -> None:
    plain(axis)
    axis.grid(axis="y", alpha=0.25)
    axis.set_ylabel("misclassified, %" if family in ("lc_2c", "nlc_relu1_2c") else "squared error", fontsize=8)
    for start in sorted(dict.fromkeys(rows.start), key=_order):
        _curve(axis, only(rows, start=start), look_of(start))
    if rows.empty:
        not_run(axis)
        return
    last = int(rows.step.max())
    axis.set_xscale("symlog", linthresh=_TICKS[1], linscale=0.5)
    axis.set_xlim(-0.7, last * 1.1)
    axis.set_xticks([tick for tick in _TICKS if tick <= last], [f"{tick:,}" for tick in _TICKS if tick <= last])
    axis.minorticks_off()
    if family in ("lr", "nlr_relu1"):
        _logarithmic(axis)


def _logarithmic(axis: Axes) -> None:
    """Errors on a logarithmic axis with plain numbers at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _curve(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    axis.plot(rows.step, rows["mean"], color=look.colour, ls=look.line, lw=look.width, alpha=look.alpha,
              label=look.label)
    error = rows.standard_error.fillna(0.0)
    axis.fill_between(rows.step, rows["mean"] - error, rows["mean"] + error, color=look.colour, alpha=0.13, lw=0)
    arrived = rows[rows.step == rows.first_step]
    axis.plot(arrived.step, arrived["mean"], "o", color=look.colour, ms=5, mec="white", mew=0.8, zorder=5,
              clip_on=False)


def _order(start: str) -> int:
    return [look.label for look in _LOOKS.values()].index(look_of(start).label)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), fontsize=9,
                      frameon=False)
