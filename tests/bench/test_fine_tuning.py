"""MAP fine-tuning: that it climbs the log joint, what is measured of it, its cells and its figures."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from posteria.bench import fine_tuning
from posteria.bench.figures import FIGURES, make_figure
from posteria.bench.figures.fine_tuning import FineTuning, _num_columns, look_of
from posteria.bench.fine_tuning import (
    PRIOR,
    XAVIER,
    FineTuningCell,
    Sizes,
    curve_figures,
    curve_of,
    estimator_start,
    fine_tune,
    fine_tuning_cells,
    first_within,
    held_out_error,
    merit_frame,
    prior_start,
    settled_within,
    tables_of,
    xavier_start,
)
from posteria.bench.real_tables import SOURCES, TableCases
from posteria.bench.runner import run_cells
from posteria.bench.scales import SCALES
from posteria.bench.store import Result
from posteria.bench.tabular import FAMILIES
from posteria.bench.workspace import Workspace
from posteria.errors import InputError
from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import Model
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.models.neural import NeuralClassification, NeuralRegression
from posteria.parts import Part
from posteria.randomness import generator_for
from posteria.types import Dataset

REVERSE = "reverse_kl/gaussian/iterative"
MODELS: list[Model] = [LinearRegression(), NeuralRegression(hidden=3), LinearClassification(),
                       NeuralClassification(hidden=3)]


def _cases(model: Model, folds: int = 3, rows: int = 30, features: int = 2) -> TableCases:
    """Folds of different lengths, simulated from the model."""
    generator = generator_for(1)
    observed = torch.arange(rows) < torch.arange(rows, rows - folds, -1)[:, None]
    inputs = Dataset.of(model.draw_inputs(folds, rows, features, generator), None, observed)
    theta = model.sample_prior(inputs, 1, generator)[:, 0]
    train, test = (model.simulate(theta, inputs, generator) for _ in range(2))
    return TableCases("simulated", train, test, torch.arange(folds))


# -- training ---------------------------------------------------------------------------------
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_weight_decay_is_the_prior(model: Model) -> None:
    """The same curve as plain Adam on the negative log joint."""
    cases = _cases(model)
    theta = prior_start(model, cases.dataset, 4, generator_for(2))
    point = theta.clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=fine_tuning.RATE)
    expected = [held_out_error(model, point, cases.held_out)]
    for _ in range(3):
        for _ in range(10):
            adam.zero_grad()
            (-model.log_joint(point, cases.dataset)).sum().backward()
            adam.step()
        expected.append(held_out_error(model, point, cases.held_out))
    torch.testing.assert_close(fine_tune(model, cases, theta, 30, 10), torch.stack(expected, 1), rtol=1e-4, atol=1e-4)


def test_the_end_is_the_mode() -> None:
    model = LinearRegression()
    cases = _cases(model)
    mode = model.exact_posterior(cases.dataset).mean.float()[:, None]
    start = mode + 0.1 * torch.randn(3, 5, 3, generator=generator_for(3))
    errors = fine_tune(model, cases, start, 1500, 500)
    torch.testing.assert_close(errors[:, -1], held_out_error(model, mode, cases.held_out), rtol=1e-3, atol=0)
    assert ((errors[:, 0] - errors[:, -1]).abs() > 0.005).all()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_folds_and_padding_do_not_matter(model: Model) -> None:
    cases = _cases(model)
    theta = prior_start(model, cases.dataset, 2, generator_for(4))
    together = fine_tune(model, cases, theta, 20, 10)
    for fold in range(3):
        one = slice(fold, fold + 1)
        train, test = cases.dataset[one].padded(40, 2), cases.held_out[one].padded(50, 2)
        alone = TableCases("one", train, test, torch.tensor([0]))
        torch.testing.assert_close(fine_tune(model, alone, theta[one], 20, 10), together[one], rtol=1e-4, atol=1e-3)


def test_errors_by_hand() -> None:
    x, mask = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[True, True, False]])
    theta = torch.tensor([[[1.0, 0.0], [2.0, 1.0]]])  # slopes and intercepts: 1, 2 and 3, 5
    numbers = Dataset.of(x, torch.tensor([[1.0, 4.0, 0.0]]), mask)
    assert held_out_error(LinearRegression(), theta, numbers).item() == pytest.approx((0 + 4 + 4 + 1) / 4)
    classes = Dataset.of(x, torch.tensor([[0.0, 1.0, 1.0]]), mask)
    logits = torch.tensor([[[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.5, 0.0]]])  # second draw: class 1 from x = 1.5 on
    assert held_out_error(LinearClassification(), logits, classes).item() == pytest.approx(25.0)


@pytest.mark.parametrize(("errors", "first", "settled"), [
    ([5.0, 2.0, 1.005, 1.0], 20, 20), ([5.0, 1.0, 0.5, 1.0], 10, 30), ([1.0, 1.0, 1.0], 0, 0),
    ([0.0, 3.0, 0.0], 0, 20), ([9.0, 1.02, 1.0], 20, 20), ([math.nan, 2.0, 2.0], 10, 10),
])
def test_steps_until_the_error_is_at_its_end(errors: list[float], first: int, settled: int) -> None:
    assert first_within(torch.tensor(errors), 10) == first
    assert settled_within(torch.tensor(errors), 10) == settled


# -- starts -----------------------------------------------------------------------------------
def test_xavier_s_variances() -> None:
    model = NeuralClassification(hidden=8, classes=2)
    cases = _cases(model, features=4)
    theta = xavier_start(model, cases.dataset, 2000, generator_for(5))
    for name, variance in (("hidden_weights", 2 / 12), ("output_weights", 2 / 10), ("hidden_bias", 0.0)):
        values = model.layout_of(cases.dataset)[name].take(theta)
        error = variance * math.sqrt(2 / values.numel())
        assert abs(values.var().item() - variance) <= 4 * error


def test_xavier_s_fan_out_of_one_output_is_one() -> None:
    model = LinearRegression()
    theta = xavier_start(model, _cases(model).dataset, 4000, generator_for(6))
    assert abs(theta[..., :2].var().item() - 2 / 3) < 4 * 2 / 3 * math.sqrt(2 / 24_000)
    assert (theta[..., 2] == 0).all()


@pytest.mark.parametrize("encoder", ["iterative", "deepsets"])
def test_an_estimator_s_draws_lose_their_padding(encoder: str) -> None:
    """The same predictions with the estimator's columns and with the table's own."""
    model = NeuralRegression(hidden=3)
    cases = _cases(model, features=2)
    part = Part(encoder, {"layers": 1, "width": 8} if encoder == "deepsets" else {})
    estimator = Estimator(model, part, "gaussian", EstimatorInfo((1, 5)))
    theta = estimator_start(estimator, cases.dataset, 4, generator_for(7))
    assert theta.shape == (3, 4, model.layout(2).size)
    padded = estimator.posterior(cases.dataset).sample_theta(4, generator_for(7))
    wide = cases.dataset.padded(30, 5) if encoder == "deepsets" else cases.dataset
    torch.testing.assert_close(model.predict(theta, cases.dataset).mean, model.predict(padded, wide).mean)


# -- cells ------------------------------------------------------------------------------------
@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables under the names of the paper's, and few steps."""
    folder = tmp_path / "tabular"
    folder.mkdir()
    random = np.random.default_rng(0)
    for source in SOURCES.values():
        values = random.normal(size=(30, 3))
        y = values.sum(1) + 0.1 * random.normal(size=30)
        frame = pd.DataFrame(values).assign(target=y if source.kind == "regression" else (y > 0).astype(int))
        frame.to_csv(folder / f"{source.name}.csv", index=False)
    index = [{"name": source.name, "kind": source.kind, "file": f"{source.name}.csv"} for source in SOURCES.values()]
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    monkeypatch.setenv("POSTERIA_DATA", str(folder))
    monkeypatch.setitem(fine_tuning.SIZES, "smoke", Sizes(folds=2, draws=3, steps=20, tables=2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("tables")
def test_cells_are_run_once(tmp_path: Path, family: str) -> None:
    cells = fine_tuning_cells(family, SCALES["smoke"], [PRIOR, XAVIER])
    workspace = Workspace(tmp_path / "out")
    first, second = (run_cells(cells, workspace) for _ in range(2))
    assert (first.run, first.failed) == (4, 0)
    assert (second.run, second.known) == (0, 4)
    result = next(r for r in workspace.store.results() if r.method == PRIOR)
    steps, mean, error = curve_of(result)
    assert steps == [0, 10, 20]
    assert all(math.isfinite(value) for value in [*mean, *error])
    assert result.figures["first_step"]["mean"] in steps


@pytest.mark.usefixtures("tables")
def test_a_start_is_the_same_draws_at_every_run(tmp_path: Path) -> None:
    cell = FineTuningCell("airfoil_self_noise", "lr", PRIOR, SCALES["smoke"])
    first, again, other = (dataclasses.replace(cell, seed=seed).compute(Workspace(tmp_path))[0] for seed in (0, 0, 1))
    assert first == again != other


def test_tables_of_a_family_share_a_training_run() -> None:
    cells = fine_tuning_cells("nlr_relu1", SCALES["laptop"], [REVERSE, PRIOR])
    assert len(cells) == 18
    assert len({cell.group for cell in cells if cell.start == REVERSE}) == 1
    assert len({cell.group for cell in cells if cell.start == PRIOR}) == 9
    assert {len(tables_of(family, SCALES["laptop"])) for family in ("lc_2c", "nlc_relu1_2c")} == {13}


@pytest.mark.parametrize(("arguments", "message"), [
    (("poisson", [PRIOR]), "family: got .*poisson.*; takes names among"),
    (("lr", ["random"]), "starts: got .*random"), (("lr", [PRIOR], ["wdbc"]), "tables: got .*wdbc"),
])
def test_unknown_names_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    family, starts, *tables = arguments
    with pytest.raises(InputError, match=message):
        fine_tuning_cells(family, SCALES["laptop"], starts, *tables)


# -- what came out ----------------------------------------------------------------------------
def _result(start: str, curve: list[float], table: str = "red_wine") -> Result:
    identity = {"start": start, "table": table, "evaluation": {"steps": 10 * (len(curve) - 1)}}
    figures = curve_figures(torch.tensor([curve]).double(), 10)
    return Result(identity, "fine_tuning", f"lr|{table}", start, "smoke", 0, figures, {}, {}, "")


def test_ratios_are_of_the_prior_s_steps() -> None:
    results = [_result(PRIOR, [9.0, 5.0, 1.0]), _result(REVERSE, [1.0, 1.0, 1.0]), _result(XAVIER, [4.0, 1.0, 1.0]),
               _result(PRIOR, [1.0, 1.0, 1.0], "cars"), _result(REVERSE, [1.0, 1.0, 1.0], "cars"),
               _result(REVERSE, [1.0, 1.0, 1.0], "socmob")]
    frame = merit_frame(results).set_index(["table", "start"])
    assert frame.ratio["red_wine"].to_dict() == {PRIOR: 1.0, REVERSE: 0.0, XAVIER: 0.5}
    assert frame.ratio[["cars", "socmob"]].isna().all()
    assert frame.first_error["red_wine", PRIOR] == 9.0
    assert frame.last_error["red_wine", PRIOR] == 1.0


# -- figures ----------------------------------------------------------------------------------
def test_figures_are_in_the_paper_s_order() -> None:
    specs = {number: FIGURES[number] for number in range(7, 15)}
    assert list(FAMILIES) == ["lr", "nlr_relu1", "lc_2c", "nlc_relu1_2c"]
    got = [(spec.families, spec.density) for spec in specs.values() if isinstance(spec, FineTuning)]
    assert got == [((family,), density) for family in FAMILIES for density in ("gaussian", "flow")]


def test_figure_2_has_all_families_and_both_kinds() -> None:
    cells = FIGURES[2].cells(SCALES["laptop"], 1)
    assert {cell.setup_key.split("|")[0] for cell in cells} == set(FAMILIES)
    assert len({cell.setup_key for cell in cells}) == 8
    assert all(look_of(cell.method_key) for cell in cells)
    assert len(FIGURES[2].cells(SCALES["smoke"], 1)) == 4 * 4


@pytest.mark.usefixtures("tables")
def test_curves_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FineTuning(("lr", "lc_2c"), "gaussian")
    monkeypatch.setitem(FIGURES, 7, spec)
    workspace = Workspace(tmp_path / "out")
    run_cells([cell for cell in spec.cells(SCALES["smoke"], 1) if cell.start in (PRIOR, XAVIER)], workspace)
    paths = make_figure(7, SCALES["smoke"], workspace, report_only=True)
    data = pd.read_csv(paths[1])
    assert data.groupby(["family", "table", "start"]).size().tolist() == [3] * 8
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    caption = paths[2].read_text(encoding="utf-8")
    assert "3 draws while Adam takes them to a mode, averaged over draws and 2 folds" in caption
    assert "No estimator was trained" in caption
    assert "Not run, tables: forward KL, iterative (4 of 4); reverse KL, iterative (4 of 4)." in caption


@pytest.mark.parametrize(("panels", "columns"), [(1, 1), (2, 2), (4, 4), (8, 4), (9, 3), (13, 5)])
def test_few_places_stay_empty(panels: int, columns: int) -> None:
    assert _num_columns(panels) == columns
