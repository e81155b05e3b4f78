"""Colours, markers and names that every figure shares: a method looks the same wherever it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posteria.bench.figures.points import only
from posteria.bench.setups import Setup

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLACK, GREY, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000", "#8a8f98", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
CLASSES = (BLUE, ORANGE)
CLASS_MARKERS = ("o", "^")


@dataclass(frozen=True)
class Look:
    """How a method is drawn. Wide and pale is what others may lie on."""

    label: str
    colour: str
    line: str = "-"
    marker: str = "o"
    width: float = 1.4
    alpha: float = 1.0

    @property
    def lines(self) -> str:
        """The label with a line for each of its parts."""
        return self.label.replace(", ", "\n")


LOOKS: dict[str, Look] = {
    "forward_kl/gaussian/transformer": Look("forward KL, Gaussian, Transformer", ORANGE, "--", "s"),
    "forward_kl/flow/transformer": Look("forward KL, flow, Transformer", VERMILLION, "-", "s"),
    "reverse_kl/gaussian/transformer": Look("reverse KL, Gaussian, Transformer", SKY, "--", "o"),
    "reverse_kl/flow/transformer": Look("reverse KL, flow, Transformer", BLUE, "-", "o"),
    "forward_kl/own/iterative": Look("forward KL, own, iterative", PURPLE, "-", "D", width=3.5, alpha=0.6),
    "reverse_kl/own/iterative": Look("reverse KL, own, iterative", GREEN, "-", "D"),
    "random": Look("prior draws", GREY, ":", "x"),
    "optimization": Look("optimization", BLACK, "-.", "v", width=1.0),
    "exact": Look("exact posterior", BLACK, "-", "None", width=7.0, alpha=0.18),
    "converged_hmc": Look("reference, HMC, relabelled at random", BLACK),
}


def subject(setup: Setup) -> str:
    """The setup's title without its number of features."""
    return setup.title.replace(f" {setup.dim}D", "")


def heading(setup: Setup) -> str:
    """The setup's title in two lines."""
    name, _, details = subject(setup).partition(", ")
    return f"{name}\n{setup.dim}D" + (f", {details}" if details else "")


def plain(axis: Axes) -> None:
    """No frame on the top and right, small ticks."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)


def not_run(axis: Axes) -> None:
    """Say that there is nothing to draw yet."""
    axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", va="center", color=GREY, fontsize=9)


def polylines(axis: Axes, pieces: Sequence[np.ndarray], colour: str, width: float, alpha: float = 1.0,
              style: str = "-") -> None:
    """Many open lines (n, 2) at once."""
    from matplotlib.collections import LineCollection

    axis.add_collection(LineCollection(list(pieces), colors=colour, linewidths=width, alpha=alpha, linestyles=style),
                        autolim=False)


def paint_rows(axis: Axes, data: pd.DataFrame) -> None:
    """The rows of a dataset, in grey."""
    rows = only(data, kind="row")
    axis.plot(rows.x, rows.y, "o", color=GREY, ms=2.8, alpha=0.55, mew=0)
