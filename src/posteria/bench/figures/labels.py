"""Figure 3: label switching in a mixture, and estimated against exact posteriors.

A mixture's posterior has every labelling of its components; the first row shows which of them an estimator's draws
have. The other rows are models with an exact posterior over two parameters: regions of highest density, estimated and
exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from posteria.bench import measure
from posteria.bench.cases import Case
from posteria.bench.cells import PaperCell
from posteria.bench.figures.drawing import Drawing, found_results
from posteria.bench.figures.gallery import SEED, EstimatorCell, Example, draws_of, estimator_cell, posteriors
from posteria.bench.figures.points import COLUMNS, contours, means_of, numbers, only, pieces_of, rows_of, stacked
from posteria.bench.figures.style import (
    BLACK,
    CLASS_MARKERS,
    CLASSES,
    GREY,
    LOOKS,
    heading,
    not_run,
    paint_rows,
    plain,
    polylines,
    subject,
)
from posteria.bench.methods import METHODS
from posteria.bench.scales import Scale
from posteria.bench.workspace import Workspace
from posteria.evaluation import symmetric_kl
from posteria.metrics.labellings import labelling_shares
from posteria.posterior import Posterior

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ESTIMATORS = ("forward_kl/gaussian/transformer", "forward_kl/flow/transformer", "reverse_kl/gaussian/transformer",
              "reverse_kl/flow/transformer", "reverse_kl/own/iterative")
MIXTURE = Example("gmm_2d_2c", 4)
KNOWN = (Example("gm_2d"), Example("lr_1d"))
REFERENCE, EXACT = "converged_hmc", "exact"
SHARES = (0.5, 0.95)
_GRID, _NUM_DRAWS, _MANY_DRAWS = 160, 250, 4000
_CONVERGED = ("The mixture's reference has equal shares by construction, up to chance: each of its draws got a "
              "labelling at random. Before that, its chains met the criteria of convergence on {share:.0%} of the test "
              "datasets, which chains in different labellings fail.")
# So far below the outer border, log densities (which may be -inf) do not bend its line any more.
_DEPTH = 20.0
_SEEN = ("First row: the means of the two components in draws of a mixture's posterior, first component blue circles, "
         "second orange triangles, true means black crosses; the prior does not know an order, so that the true "
         "posterior has both labellings equally. Percent of the draws by labelling: {shares}. Other rows: the regions "
         "of highest density with 50 and 95% of the posterior, estimated (coloured) and exact (black, dotted), and "
         "draws of the estimate.")
# Half the width of a panel, in exact standard deviations: at least, and at most for estimates that are far off.
_LEAST_REACH, _MOST_REACH = 4.5, 15.0


@dataclass(frozen=True)
class Labels:
    """Figure 3.

    Attributes:
        mixture: the dataset of the first row, of a mixture of two components in 2D.
        exact: those of the other rows, of models with an exact posterior over two parameters.
        methods: keys of the columns after the first, trained ones.
    """

    mixture: Example = MIXTURE
    exact: Sequence[Example] = KNOWN
    methods: Sequence[str] = ESTIMATORS
    title: str = "Label switching, and estimated against exact posteriors"

    def cells(self, scale: Scale, seeds: int) -> list[PaperCell]:
        """The mixture's reference, and the estimators; a picture shows one seed."""
        estimators = (self._cells(example, scale) for example in (self.mixture, *self.exact))
        return [self._reference(scale), *(cell for cells in estimators for cell in cells.values())]

    def draw(self, scale: Scale, workspace: Workspace, seeds: int) -> Drawing:
        """Draw the reference and every trained estimator's posterior."""
        rows = {self.mixture: self._mixture_row(scale, workspace),
                **{example: self._exact_row(example, scale, workspace) for example in self.exact}}
        data = stacked(*(frame.assign(setup=example.setup, method=method)
                         for example, frames in rows.items() for method, frame in frames.items()))
        seen = f"{_seen(rows)} {self._converged(scale, workspace)}".strip()
        return Drawing(_paint(self, rows), data.reindex(columns=COLUMNS), seen)

    def _reference(self, scale: Scale) -> PaperCell:
        """The cell that keeps draws of converged chains."""
        return PaperCell(self.mixture.described, METHODS[REFERENCE], scale, SEED)

    def _converged(self, scale: Scale, workspace: Workspace) -> str:
        """A sentence on the reference, where there is one: it is only as good as its chains."""
        shares = [result.record.get("converged", 0.0)
                  for result in found_results([self._reference(scale)], workspace).values()]
        return "".join(_CONVERGED.format(share=share) for share in shares)

    def _cells(self, example: Example, scale: Scale) -> dict[str, EstimatorCell]:
        return {method: estimator_cell(example.described, method, scale) for method in self.methods}

    def _mixture_row(self, scale: Scale, workspace: Workspace) -> dict[str, pd.DataFrame]:
        """The numbers of the mixture, under "data" and by method."""
        case = self.mixture.case(scale)
        assert case.theta is not None
        frames = {"data": stacked(rows_of(case.dataset), means_of("truth", case.theta))}
        for method, theta in self._mixture_draws(case, scale, workspace):
            shares = labelling_shares(theta.cpu().unflatten(-1, (-1, 2)), case.theta.unflatten(-1, (-1, 2)))[0]
            frames[method] = stacked(means_of("mean", theta[0]),
                                     numbers("share", part=np.arange(len(shares)), value=shares.numpy()))
        return frames

    def _mixture_draws(self, case: Case, scale: Scale, workspace: Workspace) -> Iterator[tuple[str, Tensor]]:
        """Draws (1, S, P) by method."""
        if found_results([self._reference(scale)], workspace):
            draws = measure.reference_draws(self.mixture.described, scale, workspace)
            assert draws is not None
            number = self.mixture.number(scale)
            yield REFERENCE, draws[number:number + 1, :_NUM_DRAWS]
        for method, posterior in posteriors(self._cells(self.mixture, scale), case, workspace):
            yield method, draws_of(posterior, case, _NUM_DRAWS)

    def _exact_row(self, example: Example, scale: Scale, workspace: Workspace) -> dict[str, pd.DataFrame]:
        """The numbers of a model with an exact posterior, by method."""
        case = example.case(scale)
        exact = example.described.build_model().exact_posterior(case.dataset)
        found = dict(posteriors(self._cells(example, scale), case, workspace))
        x, y = _ticks(exact, [draws_of(posterior, case, _NUM_DRAWS).cpu() for posterior in found.values()])
        points = _points(x, y)
        # In two dimensions, half the squared distance to the mean is exponential.
        peak = float(exact.log_prob(exact.mean))
        frames = {EXACT: _regions(x, y, exact.log_prob(points.double()), [peak + math.log1p(-s) for s in SHARES])}
        for method, posterior in found.items():
            density = posterior.log_prob(points.to(posterior.dataset.device))
            draws = draws_of(posterior, case, _NUM_DRAWS)[0].cpu()
            frames[method] = stacked(_regions(x, y, density, _borders(posterior, case)),
                                     numbers("draw", *draws.T.numpy()),
                                     numbers("symmetric_kl", value=_divergence(posterior, exact, case)))
        return frames


@torch.no_grad()
def _divergence(posterior: Posterior, exact: MultivariateNormal, case: Case) -> float:
    generator = case.generator(1, posterior.dataset.device)
    return float(symmetric_kl(posterior.distribution, exact, posterior.model, posterior.dataset, _MANY_DRAWS,
                              generator))


def _ticks(exact: MultivariateNormal, draws: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Axes around the exact posterior that hold nearly all draws, unless these are far off."""
    centre, sd = exact.mean[0].cpu(), exact.variance[0].sqrt().cpu()
    away = [torch.quantile(((theta[0] - centre) / sd).abs().amax(-1), 0.97) for theta in draws]
    reach = min(_MOST_REACH, max([_LEAST_REACH, *(1.1 * float(value) for value in away)]))
    low, high = (centre - reach * sd).tolist(), (centre + reach * sd).tolist()
    return np.linspace(low[0], high[0], _GRID), np.linspace(low[1], high[1], _GRID)


def _points(x: np.ndarray, y: np.ndarray) -> Tensor:
    """(1, len(y) * len(x), 2)."""
    grid = np.stack(np.meshgrid(x, y), -1).reshape(1, -1, 2)
    return torch.from_numpy(grid).to(torch.get_default_dtype())


def _borders(posterior: Posterior, case: Case) -> list[float]:
    """Log densities at the borders of the regions of highest density, from draws."""
    levels = posterior.log_prob(draws_of(posterior, case, _MANY_DRAWS))[0].double()
    return torch.quantile(levels, 1.0 - torch.tensor(SHARES).to(levels)).tolist()


def _regions(x: np.ndarray, y: np.ndarray, log_density: Tensor, borders: Sequence[float]) -> pd.DataFrame:
    """Borders of the regions of highest density, from the log density (1, len(y) * len(x)) and its values there."""
    image = log_density.double().cpu().clamp(min=min(borders) - _DEPTH).reshape(len(y), len(x)).numpy()
    return stacked(numbers("corner", x[[0, -1]], y[[0, -1]]),
                   *(contours("region", x, y, image, border, value=share)
                     for share, border in zip(SHARES, borders, strict=True)))


def _value(frame: pd.DataFrame, kind: str, part: int = 0) -> float:
    """A single number of a frame."""
    return float(only(frame, kind=kind, part=part).value.iloc[0])


def _shares_text(frame: pd.DataFrame) -> str:
    return f"{100 * _value(frame, 'share', 0):.0f} : {100 * _value(frame, 'share', 1):.0f}"


def _seen(rows: Mapping[Example, Mapping[str, pd.DataFrame]]) -> str:
    """Shares of the labellings, and divergences."""
    mixture, *others = rows.items()
    parts = [f"{LOOKS[method].label} {_shares_text(frame)}" for method, frame in mixture[1].items() if method != "data"]
    text = _SEEN.format(shares="; ".join(parts) or "not run")
    for example, frames in others:
        found = [f"{LOOKS[m].label} {_value(f, 'symmetric_kl'):.2g}" for m, f in frames.items() if m != EXACT]
        text += f" Symmetric KL per parameter, {subject(example.described)}: {'; '.join(found) or 'not run'}."
    return text


# -- the picture ------------------------------------------------------------------------------
def _paint(spec: Labels, rows: Mapping[Example, Mapping[str, pd.DataFrame]]) -> Figure:
    from matplotlib.figure import Figure

    columns = 1 + len(spec.methods)
    figure = Figure(figsize=(0.5 + 2.35 * columns, 0.5 + 2.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex="row", sharey="row")
    for line, (example, frames) in zip(axes, rows.items(), strict=True):
        first, paint = (REFERENCE, _paint_mixture) if example is spec.mixture else (EXACT, _paint_exact)
        for axis, method in zip(line, (first, *spec.methods), strict=True):
            paint(axis, frames, method)
            if axis in (line[0], *axes[0]):
                axis.set_title(LOOKS[method].lines, fontsize=8.5, color=LOOKS[method].colour)
            plain(axis)
            if method not in frames:
                not_run(axis)
        names = example.described.build_model().layout(example.described.dim).scalar_names
        across, up = names if example in spec.exact else ("$x_1$", "$x_2$")
        line[0].set_ylabel(f"{heading(example.described)}\n{up}", fontsize=9)
        for axis in line:
            axis.set_xlabel(across, fontsize=8)
    return figure


def _paint_mixture(axis: Axes, frames: Mapping[str, pd.DataFrame], method: str) -> None:
    paint_rows(axis, frames["data"])
    if method in frames:
        for part in (0, 1):
            mine = only(frames[method], kind="mean", part=part)
            axis.plot(mine.x, mine.y, CLASS_MARKERS[part], color=CLASSES[part], ms=3.2, alpha=0.5, mew=0)
        _note(axis, f"labellings {_shares_text(frames[method])}")
    truth = only(frames["data"], kind="truth")
    axis.plot(truth.x, truth.y, "x", color=BLACK, ms=6, mew=1.5)


def _paint_exact(axis: Axes, frames: Mapping[str, pd.DataFrame], method: str) -> None:
    if method in frames and method != EXACT:
        draws = only(frames[method], kind="draw")
        axis.plot(draws.x, draws.y, ".", color=GREY, ms=2, alpha=0.5)
        polylines(axis, pieces_of(frames[method], "region"), LOOKS[method].colour, 1.4)
        _note(axis, f"symmetric KL {_value(frames[method], 'symmetric_kl'):.2g}")
    polylines(axis, pieces_of(frames[EXACT], "region"), BLACK, 1.2, style=":")
    corners = only(frames[EXACT], kind="corner")
    axis.set_xlim(*corners.x)
    axis.set_ylim(*corners.y)


def _note(axis: Axes, text: str) -> None:
    axis.text(0.03, 0.97, text, transform=axis.transAxes, fontsize=7.5, va="top",
              bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5})
