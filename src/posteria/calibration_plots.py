"""Plots of a calibration check: ranks, coverage and TARP as distances from what they should be, beside their bands.

Figures are made without pyplot, as in :mod:`posteria.plots`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posteria.errors import InputError
from posteria.metrics.calibration import Calibration, leaning
from posteria.metrics.uniformity import Band, Verdict, simultaneous_band_at

_PASSING = ("#2b6ca3", "#4f9bb8", "#6b7fb8", "#3b8f84", "#8a8f98", "#20517a")
_FAILING = ("#d9822b", "#c23b22", "#8e2f5c", "#b8860b", "#e2604a", "#6a1b1b")
_GREY = "#8a8f98"
_LONGEST_NAME = 22
_LEGEND_LINE = 0.06  # height of a line, as a fraction of the panel
_KINDS = {"hpd": "highest density", "tarp": "TARP"}
# A panel with more curves names only those that fail, and of these the worst.
_MOST_NAMED = 6


@dataclass(frozen=True)
class _Panel:
    title: str
    x: str
    y: str
    verdicts: tuple[Verdict, ...]


def calibration(found: Calibration, num_datasets: int) -> Figure:
    """Up to four panels: ranks of parameters, ranks of test quantities, central intervals, and regions.

    Each curve is a distance from what an exact posterior gives on average; each shaded band holds all the curves of
    all the panels together with probability ``found.level`` (Bonferroni). Some curve leaves its band exactly when the
    check as a whole fails; Holm's correction may then fail others that stay inside. Where not every dataset has every
    parameter, distances are scaled by the root of their number of datasets, so that one band serves all.

    Args:
        found: the tests.
        num_datasets: how many datasets were simulated, for the title.

    Raises:
        InputError: no tests.

    Examples:
        >>> report.plot().savefig("calibration.png")     # doctest: +SKIP
    """
    if not found.tests:
        raise InputError.of("found", "no tests", "at least one")
    panels = [panel for panel in _panels(found) if panel.verdicts]
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    figure = Figure(figsize=(5.6 * columns, 3.9 * rows + 0.7), layout="constrained")
    figure.suptitle(_headline(found, num_datasets), fontsize=12)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    each = 1 - (1 - found.level) / len(found.tests)
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel, each, found.level)
    for axis in axes[len(panels):]:
        axis.set_axis_off()
    return figure


def _panels(found: Calibration) -> tuple[_Panel, ...]:
    """Parameters are those whose central intervals were tested too."""
    central = found.of_kind("central")
    parameters = {verdict.test.name for verdict in central}
    ranks = found.of_kind("rank")
    own = tuple(v for v in ranks if v.test.name in parameters or not parameters)
    other = tuple(v for v in ranks if v.test.name not in parameters and parameters)
    return (
        _Panel("Ranks of parameters", "rank among the draws, as a fraction", "fraction of ranks below, minus expected",
               own),
        _Panel("Ranks of functions of parameters and data", "rank among the draws, as a fraction",
               "fraction of ranks below, minus expected", other),
        _Panel("Central intervals", "level", "coverage minus level", central),
        _Panel("Regions of highest density, and TARP", "level", "coverage minus level",
               found.of_kind("hpd") + found.of_kind("tarp")),
    )


def _headline(found: Calibration, num_datasets: int) -> str:
    failing, total = len(found.failing), len(found.verdicts)
    verdict = (f"Calibrated as far as seen: all {total} tests pass" if not failing
               else f"Not calibrated: {failing} of {total} tests fail")
    return f"{verdict} ({num_datasets} datasets)"


def _draw(axis: Axes, panel: _Panel, each: float, level: float) -> None:
    counts = Counter(v.test.num_datasets for v in panel.verdicts)
    count = counts.most_common(1)[0][0]
    band = simultaneous_band_at(count, tuple(panel.verdicts[0].test.points.tolist()), each)
    axis.fill_between(*_band_area(band), color=_GREY, alpha=0.22, linewidth=0, label=f"{level:.0%} band, all tests")
    axis.axhline(0.0, color=_GREY, linewidth=0.9, linestyle="--")
    failing = sorted((v for v in panel.verdicts if not v.passes), key=lambda v: v.test.p_value)
    passing = [v for v in panel.verdicts if v.passes]
    few = len(panel.verdicts) <= _MOST_NAMED
    _curves(axis, passing, count, _PASSING if few else _PASSING[:1], 1.3, few)
    _curves(axis, failing[_MOST_NAMED:], count, _FAILING[:1], 0.8, False)
    _curves(axis, failing[:_MOST_NAMED], count, _FAILING, 2.0, True)
    axis.set_xlim(0, 1)
    axis.set_xlabel(panel.x, fontsize=9)
    axis.set_ylabel(panel.y, fontsize=9)
    scaled = f", distances scaled to {count} datasets" if len(counts) > 1 else ""
    axis.set_title(f"{panel.title}\n{_counted(len(failing), len(panel.verdicts))}{scaled}", fontsize=10)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(axis, 0 if few else len(passing), max(0, len(failing) - _MOST_NAMED))


def _curves(axis: Axes, verdicts: Sequence[Verdict], num_datasets: int, colours: Sequence[str], width: float,
            named: bool) -> None:
    """Distances in units of their standard error for the band's number of datasets."""
    for place, verdict in enumerate(verdicts):
        test = verdict.test
        points = np.concatenate([[0.0], test.points.numpy(), [1.0]])
        unit = (test.num_datasets / num_datasets) ** 0.5
        away = unit * np.concatenate([[0.0], (test.fractions - test.points).numpy(), [0.0]])
        name = _KINDS.get(test.kind) or _short(test.name)
        words = name if verdict.passes else f"{name}: draws {leaning(test)}"
        axis.plot(points, away, color=colours[place % len(colours)], linewidth=width, alpha=0.9 if named else 0.45,
                  label=words if named else None, zorder=3 if not verdict.passes else 2)


def _legend(axis: Axes, unnamed_passing: int, unnamed_failing: int) -> None:
    """Above the curves, in room made for it."""
    handles, labels = axis.get_legend_handles_labels()
    for count, colour, word in ((unnamed_passing, _PASSING[0], "pass"), (unnamed_failing, _FAILING[0], "more fail")):
        if count:
            handles.append(Line2D([], [], color=colour, alpha=0.6))
            labels.append(f"{count} {word}")
    low, high = axis.get_ylim()
    room = _LEGEND_LINE * -(-len(labels) // 2)
    axis.set_ylim(low, low + (high - low) / (1 - room))
    axis.legend(handles, labels, fontsize=7, frameon=False, ncols=2, loc="upper right")


def _band_area(band: Band) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = np.concatenate([[0.0], band.points.numpy(), [1.0]])
    lower, upper = (np.concatenate([[0.0], (end - band.points).numpy(), [0.0]]) for end in (band.lower, band.upper))
    return points, lower, upper


def _counted(failing: int, total: int) -> str:
    if not failing:
        return "passes" if total == 1 else f"all {total} pass"
    return "fails" if total == 1 else f"{failing} of {total} fail"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME - 1] + "…"
