"""The paper's figures: which there are, what they train, and that what they draw is right."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.path import Path as Outline

from posteria.bench import measure
from posteria.bench.figures import FIGURES, figure_numbered, make_figure
from posteria.bench.figures.drawing import FigureSpec
from posteria.bench.figures.gallery import EstimatorCell, Example
from posteria.bench.figures.labels import REFERENCE, Labels
from posteria.bench.figures.points import contours, only, pieces_of
from posteria.bench.figures.predictions import KINDS, Predictions
from posteria.bench.figures.trends import TrendCell, Trends, at
from posteria.bench.methods import METHODS, Trained
from posteria.bench.runner import run_cells
from posteria.bench.scales import SCALES, Scale
from posteria.bench.setups import SETUPS, Setup
from posteria.bench.store import Result
from posteria.bench.workspace import Workspace
from posteria.errors import DataError, InputError

FORWARD, REVERSE = "forward_kl/gaussian/transformer", "reverse_kl/flow/transformer"


class FewSteps(Scale):
    """A scale at which nothing is learnt."""

    def budget(self, setup: Setup, encoder: str) -> dict[str, Any]:
        return {"steps": 2}


@pytest.fixture
def scale() -> Scale:
    smoke = SCALES["smoke"]
    return FewSteps("smoke", 1, num_datasets=5, num_reference=20, small=smoke.small, large=smoke.large)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def _made(monkeypatch: pytest.MonkeyPatch, number: int, spec: FigureSpec, *args: Any, **options: Any) -> pd.DataFrame:
    """Make a smaller figure in a figure's place; returns the numbers drawn."""
    monkeypatch.setitem(FIGURES, number, spec)
    paths = make_figure(number, *args, **options)
    assert [path.name for path in paths] == [f"figure_{number:02}_smoke.{end}" for end in ("png", "csv", "md")]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert f"posteria bench figure {number} --scale smoke" in paths[2].read_text(encoding="utf-8")
    return pd.read_csv(paths[1])


# -- which figures there are ------------------------------------------------------------------
def test_registry_is_closed() -> None:
    assert set(FIGURES) == set(range(1, 15))


@pytest.mark.parametrize("number", [0, 15, -1])
def test_the_paper_has_no_other_figures(number: int) -> None:
    with pytest.raises(InputError, match=rf"figure: got {number}; takes one of \[1, 2, 3"):
        figure_numbered(number)


def test_seeds_are_checked(scale: Scale, workspace: Workspace) -> None:
    with pytest.raises(InputError, match="seeds: got 0"):
        make_figure(4, scale, workspace, seeds=0)


@pytest.mark.parametrize("number", FIGURES)
def test_nothing_to_draw_is_said(number: int, scale: Scale, workspace: Workspace) -> None:
    with pytest.raises(DataError, match=f"without a result for figure {number}"):
        make_figure(number, scale, workspace, report_only=True)


# -- what they train --------------------------------------------------------------------------
@pytest.mark.parametrize("number", [4, 5, 6])
@pytest.mark.parametrize("name", SCALES)
def test_one_training_serves_every_number_of_features(number: int, name: str) -> None:
    cells = FIGURES[number].cells(SCALES[name], 2)
    trained = [cell for cell in cells if isinstance(METHODS[cell.method_key], Trained)]
    groups = {cell.group for cell in trained}
    assert len(groups) == 2 * 2 * 6  # setups, seeds, methods
    assert len(trained) > len(groups)


def test_sizes_of_the_tables_are_measured_once() -> None:
    """The cells of a size that a table has are the table's; conclusions see no others."""
    cells = FIGURES[4].cells(SCALES["laptop"], 1)
    assert {cell.bench for cell in cells if cell.setup_key in SETUPS} == {"paper"}
    assert {cell.bench for cell in cells if cell.setup_key not in SETUPS} == {"figure"}
    assert {cell.setup_key for cell in cells} >= {"gm_100d_var", "gm_50d_var"}


def test_an_estimator_s_cell_shares_the_table_s_training(scale: Scale) -> None:
    setup, method = SETUPS["gm_2d"], METHODS[FORWARD]
    assert EstimatorCell(setup, method, scale, 0).group == TrendCell(setup, method, scale, 0).group


def test_baselines_run_with_one_seed(scale: Scale) -> None:
    cells = Trends("", (Setup("linear_regression", 2, variable=True),), (FORWARD,), (1, 3)).cells(scale, 2)
    assert [(c.method_key, c.setup_key, c.seed) for c in cells] == [
        *((name, f"lr_{d}d_var", 0) for name in ("random", "optimization", "exact", FORWARD) for d in (1, 3)),
        (FORWARD, "lr_1d_var", 1), (FORWARD, "lr_3d_var", 1)]


# -- what they draw ---------------------------------------------------------------------------
def test_predictions(monkeypatch: pytest.MonkeyPatch, scale: Scale, workspace: Workspace) -> None:
    spec = Predictions((Example("gm_2d"), Example("lr_1d", 1), Example("lc_2d_2c", 400)), (FORWARD,))
    said: list[str] = []
    data = _made(monkeypatch, 1, spec, scale, workspace, say=said.append)
    assert said[-1] == "3 cells run, 0 known, 0 failed"
    counts = data.groupby(["setup", "method", "kind"]).size()
    case = spec.examples[1].case(scale)
    assert counts["lr_1d", "data", "row"] == int(case.dataset.observed.sum())
    assert counts["lr_1d", FORWARD, "function"] == 20 * counts["lr_1d", "data", "truth"]
    assert counts["gm_2d", FORWARD, "mean"] == 100
    shading = only(data, setup="lc_2d_2c", kind="probability")
    assert shading.value.between(0, 1).all()
    again = _made(monkeypatch, 1, dataclasses.replace(spec, methods=(FORWARD, REVERSE)), scale, workspace,
                  report_only=True)  # the second method is not trained: its row is empty
    pd.testing.assert_frame_equal(again, data)


def test_true_functions_are_the_model_s(scale: Scale) -> None:
    example = Example("lr_1d")
    case = example.case(scale)
    assert case.theta is not None
    slope, intercept = case.theta[0].tolist()
    truth = only(KINDS["linear_regression"].data(example.described.build_model(), case), kind="truth")
    np.testing.assert_allclose(truth.y, slope * truth.x + intercept, atol=1e-5)


def test_true_boundaries_are_the_model_s(scale: Scale) -> None:
    example = Example("lc_2d_2c")
    case = example.case(scale)
    assert case.theta is not None
    weights, intercept = case.theta[0, :4].reshape(2, 2).numpy(), case.theta[0, 4:].numpy()
    (points,) = pieces_of(KINDS["linear_classification"].data(example.described.build_model(), case), "truth")
    logit = points @ (weights[1] - weights[0]) + intercept[1] - intercept[0]
    # Between grid points (0.2 apart) the probability is not linear.
    assert np.abs(logit / np.linalg.norm(weights[1] - weights[0])).max() < 0.1


def test_labels_and_exact_posteriors(monkeypatch: pytest.MonkeyPatch, scale: Scale, workspace: Workspace) -> None:
    spec = Labels(exact=(Example("gm_2d"),), methods=(REVERSE,))
    reference, *estimators = spec.cells(scale, 1)
    run_cells(estimators, workspace)
    _pretend_reference(monkeypatch, spec, scale, workspace, reference.identity)
    data = _made(monkeypatch, 3, spec, scale, workspace, report_only=True)
    assert only(data, kind="share", method=REFERENCE).value.tolist() == [0.75, 0.25]
    assert only(data, kind="share", method=REVERSE).value.sum() == pytest.approx(1.0)
    assert set(only(data, kind="symmetric_kl").method) == {REVERSE}
    caption = (workspace.root / "reports" / "figure_03_smoke.md").read_text(encoding="utf-8")
    assert "relabelled at random 75 : 25" in caption
    assert "convergence on 40% of the test datasets" in caption
    _check_exact_regions(only(data, method="exact", kind="region"), spec.exact[0], scale)


def _pretend_reference(monkeypatch: pytest.MonkeyPatch, spec: Labels, scale: Scale, workspace: Workspace,
                       identity: Any) -> None:
    """A reference of four draws: the truth, and once with its labels exchanged."""
    theta = spec.mixture.case(scale).theta
    assert theta is not None
    draws = torch.stack([theta[0], theta[0], theta[0], theta[0].roll(2)])
    monkeypatch.setattr(measure, "reference_draws", lambda *_: draws.expand(scale.num_datasets, -1, -1))
    workspace.store.add(Result(identity, "paper", "gmm_2d_2c", REFERENCE, "smoke", 0, {}, {"converged": 0.4}, {}, ""))


def _check_exact_regions(regions: pd.DataFrame, example: Example, scale: Scale) -> None:
    """A share s of a normal in two dimensions is within the squared distance -2 log(1 - s)."""
    exact = example.described.build_model().exact_posterior(example.case(scale).dataset)
    apart = torch.tensor(np.stack([regions.x, regions.y], -1)) - exact.mean[0]
    squared = (apart[:, None] @ exact.precision_matrix[0] @ apart[..., None]).flatten().numpy()
    for share in (0.5, 0.95):
        np.testing.assert_allclose(squared[regions.value == share], -2 * math.log(1 - share), rtol=0.02)


def test_an_estimate_s_regions_hold_their_share(scale: Scale, workspace: Workspace) -> None:
    """The borders come from draws: of the draws shown, about as many lie inside."""
    spec = Labels(exact=(Example("gm_2d"),), methods=("forward_kl/own/iterative",))
    run_cells([cell for cell in spec.cells(scale, 1) if cell.setup_key == "gm_2d"], workspace)
    frame = spec.draw(scale, workspace, 1).data
    mine = only(frame, setup="gm_2d", method="forward_kl/own/iterative")
    draws = only(mine, kind="draw")
    (inner,) = pieces_of(only(mine, value=0.5), "region")
    inside = Outline(inner).contains_points(np.stack([draws.x, draws.y], -1)).mean()
    assert abs(inside - 0.5) < 4 * math.sqrt(0.25 / len(draws))


def test_trends(monkeypatch: pytest.MonkeyPatch, scale: Scale, workspace: Workspace) -> None:
    spec = Trends("Trends", (Setup("gaussian_mean", 2, variable=True),), (FORWARD,), (2, 4))
    data = _made(monkeypatch, 4, spec, scale, workspace)
    shown = only(data, figure="l2_per_draw")
    means = dict(zip(zip(shown.features, shown.method, strict=True), shown["mean"], strict=True))
    for result in workspace.store.results():
        features = int(result.setup.split("_")[1].removesuffix("d"))
        assert means[features, result.method] == pytest.approx(result.figures["l2_per_draw"]["mean"], rel=1e-3)
    assert set(means) == {(d, method) for d in (2, 4) for method in ("random", "optimization", "exact", FORWARD)}
    assert means[2, "exact"] < means[2, "random"]
    printed = only(shown, method=FORWARD).paper.tolist()  # Table 15
    assert printed[0] == pytest.approx(2.352)
    assert math.isnan(printed[1])
    assert len(list((workspace.root / "runs").iterdir())) == 1


def test_a_failed_cell_leaves_the_others(monkeypatch: pytest.MonkeyPatch, scale: Scale, workspace: Workspace) -> None:
    def fail(*args: Any) -> Any:
        raise ValueError("no such luck")

    monkeypatch.setattr(measure, "measure_trained", fail)
    spec = Trends("Trends", (Setup("gaussian_mean", 2, variable=True),), (FORWARD,), (2,))
    data = _made(monkeypatch, 4, spec, scale, workspace)
    assert set(data.method) == {"random", "optimization", "exact"}


def test_setups_at_other_sizes_keep_their_training() -> None:
    setup = Setup("nonlinear_classification", 2, 5, "tanh", 2, variable=True)
    assert at(setup, 75).columns == setup.columns
    assert at(setup, 75).key == "nlc_tanh2_75d_5c_var"


def test_contours_of_a_cone_are_circles() -> None:
    ticks = np.linspace(-2, 2, 201)
    height = np.hypot(*np.meshgrid(ticks, ticks))
    frame = contours("circle", ticks, ticks, height, 1.5)
    (piece,) = pieces_of(frame, "circle")
    np.testing.assert_allclose(np.hypot(*piece.T), 1.5, atol=1e-3)
