"""What every figure gives, and how it is written: a picture, the numbers drawn in it, and a caption."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from posteria.bench.runner import Cell
from posteria.bench.scales import Scale
from posteria.bench.store import Result, key_of
from posteria.bench.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_DPI = 130


@dataclass(frozen=True)
class Drawing:
    """A figure, ready to be written.

    Attributes:
        picture: what is drawn.
        data: every number in it, a row each.
        seen: sentences on what is seen, for the caption.
    """

    picture: Figure
    data: pd.DataFrame
    seen: str


class FigureSpec(Protocol):
    """One of the paper's figures."""

    @property
    def title(self) -> str: ...

    def cells(self, scale: Scale, seeds: int) -> Sequence[Cell]:
        """What must be trained and measured for it."""
        ...

    def draw(self, scale: Scale, workspace: Workspace, seeds: int) -> Drawing:
        """Draw what the workspace has; what it lacks is left out, and the picture says so."""
        ...


def found_results(cells: Sequence[Cell], workspace: Workspace) -> dict[str, Result]:
    """The results that the store has of some cells, by key."""
    wanted = {key_of(cell.identity) for cell in cells}
    return {result.key: result for result in workspace.store.results() if result.key in wanted}


def write_drawing(number: int, spec: FigureSpec, scale: Scale, drawing: Drawing, results: Mapping[str, Result],
                  folder: Path) -> list[Path]:
    """Write ``figure_NN_<scale>.png``, ``.csv`` and ``.md``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"figure_{number:02}_{scale.name}.{ending}" for ending in ("png", "csv", "md")]
    drawing.picture.savefig(paths[0], dpi=_DPI)
    drawing.data.to_csv(paths[1], index=False, float_format="%.4g")
    paths[2].write_text(_caption(number, spec, scale, drawing.seen, list(results.values())), encoding="utf-8")
    return paths


def _caption(number: int, spec: FigureSpec, scale: Scale, seen: str, results: Sequence[Result]) -> str:
    name = f"figure_{number:02}_{scale.name}"
    return "\n".join([
        f"# Figure {number} at scale `{scale.name}`: {spec.title}", "", f"![{spec.title}]({name}.png)", "",
        f"{seen} {_budget(results)} The numbers drawn are in `{name}.csv`.", "",
        f"    posteria bench figure {number} --scale {scale.name}", ""])


def _budget(results: Sequence[Result]) -> str:
    """A sentence on how long the estimators were trained."""
    trained = {key_of(r.identity["config"]): r.record for r in results if "config" in r.identity}
    if not trained:
        return "No estimator was trained."
    minutes = span([record["training_seconds"] / 60 for record in trained.values()])
    steps = span([record["steps"] for record in trained.values()])
    return f"Estimators: {len(trained)}, trained for {minutes} minutes ({steps} steps) each."


def span(values: Sequence[float]) -> str:
    """The least and the greatest of some numbers, in words."""
    low, high = (f"{value:.2g}" if value < 100 else f"{math.floor(value):,}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
