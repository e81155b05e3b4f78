"""A table's report as a picture: one panel per setup, ours and the paper's number of every method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posteria.bench.methods import METHODS
from posteria.bench.report import main_figure
from posteria.bench.setups import Setup

if TYPE_CHECKING:
    import pandas as pd

_PANEL = (4.2, 5.2)
_MOST_COLUMNS = 4
_OURS, _PAPER = "#1f4e9c", "#d1802a"


def plot_table(number: int, setups: Sequence[Setup], scale: str, frame: pd.DataFrame, path: Path) -> None:
    """Draw the main figure of every setup that has results."""
    from matplotlib.figure import Figure

    main = {setup: frame.loc[(frame.setup == setup.key) & (frame.figure == main_figure(number, setup))]
            for setup in setups}
    shown = [setup for setup in setups if main[setup].ours.notna().any()]
    columns = min(_MOST_COLUMNS, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axis, setup in zip(axes, shown, strict=False):
        _draw(axis, setup, main[setup], main_figure(number, setup))
    for axis in axes[len(shown):]:
        axis.set_axis_off()
    if shown:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(f"Table {number}, scale {scale}")
    figure.savefig(path, dpi=110)


def _draw(axis: Any, setup: Setup, rows: pd.DataFrame, figure: str) -> None:
    places = {name: -place for place, name in enumerate(METHODS)}
    for column, error, colour, label, marker in (("paper", "paper_std", _PAPER, "paper", "s"),
                                                 ("ours", "standard_error", _OURS, "posteria", "o")):
        known = rows.loc[rows[column].notna()]
        axis.errorbar(known[column], [places[name] for name in known.method], xerr=known[error].fillna(0.0),
                      fmt=marker, color=colour, ms=4.5, lw=1, label=label)
    axis.set_yticks(list(places.values()), list(places), fontsize=7)
    if figure not in ("accuracy_per_draw",) and len(rows) and (rows[["ours", "paper"]].max().max() > 0):
        axis.set_xscale("log")
    axis.set_title(setup.title, fontsize=9)
    axis.set_xlabel(figure.replace("_", " "), fontsize=8)
    axis.grid(axis="x", alpha=0.3)
