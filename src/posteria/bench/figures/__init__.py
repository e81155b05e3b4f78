"""The figures of arXiv 2502.06601, drawn again from our own estimators: ``posteria bench figure``."""

from __future__ import annotations

from pathlib import Path

from posteria.bench.figures.drawing import FigureSpec, found_results, write_drawing
from posteria.bench.figures.fine_tuning import FineTuning
from posteria.bench.figures.labels import Labels
from posteria.bench.figures.predictions import Predictions
from posteria.bench.figures.trends import Trends
from posteria.bench.runner import Say, run_cells
from posteria.bench.scales import Scale
from posteria.bench.setups import Setup
from posteria.bench.workspace import Workspace
from posteria.errors import DataError, InputError

__all__ = ["FIGURES", "figure_numbered", "make_figure"]

# The fewest and the most features of either kind.
SELECTED = ("airfoil_self_noise", "student_performance_por", "banknote-authentication", "qsar-biodeg")
FIGURES: dict[int, FigureSpec] = {
    1: Predictions(),
    2: FineTuning(("lr", "nlr_relu1", "lc_2c", "nlc_relu1_2c"), "gaussian", SELECTED),
    3: Labels(),
    4: Trends("Trends over the number of features: Gaussian mean, linear regression", (
        Setup("gaussian_mean", 2, variable=True), Setup("linear_regression", 2, variable=True))),
    5: Trends("Trends over the number of features: linear classification", (
        Setup("linear_classification", 2, 2, variable=True), Setup("linear_classification", 2, 5, variable=True))),
    6: Trends("Trends over the number of features: neural regression and classification", (
        Setup("nonlinear_regression", 2, 0, "relu", 1, variable=True),
        Setup("nonlinear_classification", 2, 2, "relu", 1, variable=True))),
    7: FineTuning(("lr",), "gaussian"),
    8: FineTuning(("lr",), "flow"),
    9: FineTuning(("nlr_relu1",), "gaussian"),
    10: FineTuning(("nlr_relu1",), "flow"),
    11: FineTuning(("lc_2c",), "gaussian"),
    12: FineTuning(("lc_2c",), "flow"),
    13: FineTuning(("nlc_relu1_2c",), "gaussian"),
    14: FineTuning(("nlc_relu1_2c",), "flow"),
}


def figure_numbered(number: int) -> FigureSpec:
    """A figure of the paper.

    Raises:
        InputError: a figure that the paper does not have.
    """
    if number not in FIGURES:
        raise InputError.of("figure", number, f"one of {list(FIGURES)}")
    return FIGURES[number]


def make_figure(number: int, scale: Scale, workspace: Workspace, workers: int = 1, seeds: int | None = None,
                say: Say = lambda text: None, report_only: bool = False) -> list[Path]:
    """Train and measure what a figure still needs, and draw it into the workspace's ``reports``.

    Args:
        number: of the figure.
        scale: budget and sizes.
        workspace: where estimators and results are kept.
        workers: processes.
        seeds: training seeds of the trends (4 to 6); default the scale's. Figures 1 and 3 draw the first.
        say: told of every cell that is done.
        report_only: draw what there is, and run nothing.

    Returns:
        Paths of the picture, of the numbers in it (CSV) and of its caption (Markdown).

    Raises:
        InputError: a figure that there is not, or fewer than one seed.
        DataError: nothing to draw.
    """
    spec = figure_numbered(number)
    count = scale.seeds if seeds is None else seeds
    if count < 1:
        raise InputError.of("seeds", count, "1 or more")
    cells = spec.cells(scale, count)
    if not report_only:
        tally = run_cells(cells, workspace, workers, say)
        say(f"{tally.run} cells run, {tally.known} known, {tally.failed} failed")
    results = found_results(cells, workspace)
    if not results:
        raise DataError.of("workspace", f"{workspace.root} without a result for figure {number}",
                           "one with results: run the figure first, without report_only")
    drawing = spec.draw(scale, workspace, count)
    return write_drawing(number, spec, scale, drawing, results, workspace.root / "reports")
