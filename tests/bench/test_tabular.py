"""Table 3 as cells: which exist, what they measure on known answers, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, Normal

from posteria.bench.methods import TRAINED, Trained
from posteria.bench.paper import paper_numbers
from posteria.bench.real_tables import CONTEXTS, SOURCES, TableCases
from posteria.bench.scales import SCALES
from posteria.bench.setups import SETUPS
from posteria.bench.store import Result, key_of
from posteria.bench.tables import table_cells, table_report
from posteria.bench.tabular import FAMILIES, ROWS, TabularCell, paper_entry, tabular_cells
from posteria.bench.tabular_report import GOALS, tabular_frame, verdict
from posteria.bench.tabular_rows import SKLEARN, _classes
from posteria.bench.tabular_scores import scores_of, summarise_tables
from posteria.bench.workspace import Workspace
from posteria.errors import InputError
from posteria.types import Dataset

SMOKE, LAPTOP = SCALES["smoke"], SCALES["laptop"]


@pytest.fixture
def made_up_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All tables by name, each of 120 rows: a line, or which side of it, with noise."""
    generator, index = torch.Generator().manual_seed(3), []
    for source in SOURCES.values():
        x = torch.randn(120, 3, generator=generator)
        y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * torch.randn(120, generator=generator)
        y = y if source.kind == "regression" else (y > 0).float()
        lines = [",".join(map(str, row)) for row in torch.cat([x, y[:, None]], 1).tolist()]
        (tmp_path / f"{source.name}.csv").write_text("\n".join(["a,b,c,target", *lines]))
        index.append({"name": source.name, "kind": source.kind, "file": f"{source.name}.csv"})
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setenv("POSTERIA_DATA", str(tmp_path))
    return tmp_path


def cell(setup: str, method: str, scale: str = "smoke") -> TabularCell:
    return tabular_cells(SCALES[scale], 1, [setup], [method])[0]


def test_every_number_of_the_paper_has_a_cell() -> None:
    cells = tabular_cells(SMOKE)
    entries = [paper_entry(c.family, c.method_key) for c in cells]
    table = paper_numbers()
    assert sum(entry is not None for entry in entries) == len(CONTEXTS) * int((table.table == 3).sum())
    assert len({key_of(c.identity) for c in cells}) == len(cells)


@pytest.mark.parametrize("scale", sorted(SCALES))
def test_training_runs_are_those_of_the_variable_setups(scale: str) -> None:
    for family, setup in {"lr": "lr_1d_var", "nlr_relu1": "nlr_relu1_1d_var", "lc_2c": "lc_100d_2c_var",
                          "nlc_relu1_2c": "nlc_relu1_2d_2c_var"}.items():
        for method in TRAINED:
            config = cell(f"{family}_whole_fold", method.key, scale).config
            assert config == SCALES[scale].config(SETUPS[setup], method, 0)


def test_both_contexts_of_a_training_run_are_a_group() -> None:
    trained = [c for c in tabular_cells(SMOKE) if isinstance(c.row, Trained)]
    assert len({c.group for c in trained}) == len(trained) // len(CONTEXTS) == len(FAMILIES) * len(TRAINED) + 1


def test_slow_rows_are_run_where_they_are_named() -> None:
    keys = {(c.family, c.method_key) for c in tabular_cells(LAPTOP)}
    assert not any(method == "nuts" for _, method in keys)
    assert len({c.family for c in tabular_cells(LAPTOP, methods=["nuts"])}) == len(FAMILIES)
    assert ("lc_2c", "converged_hmc") in keys
    assert ("nlr_relu1", "converged_hmc") not in keys
    assert ("nlr_relu1", "converged_hmc") in {(c.family, c.method_key)
                                              for c in tabular_cells(LAPTOP, methods=["converged_hmc"])}


def test_only_training_has_seeds() -> None:
    assert all(isinstance(c.row, Trained) for c in tabular_cells(SMOKE, seeds=2) if c.seed == 1)


@pytest.mark.parametrize(("options", "named"), [
    ({"seeds": 0}, "seeds"), ({"setups": ["lr"]}, "setups"), ({"methods": ["magic"]}, "methods"),
])
def test_wrong_choices_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        tabular_cells(SMOKE, **options)


# -- figures ----------------------------------------------------------------------------------


def test_scores_of_a_known_normal_prediction() -> None:
    generator = torch.Generator().manual_seed(0)
    y = 2 * torch.randn(1, 20_000, generator=generator)
    held_out = Dataset.of(torch.zeros(1, 20_000, 1), y)
    scores = scores_of(Normal(torch.zeros(1, 1, 20_000), 2.0), held_out)
    assert float(scores["l2_per_draw"]) == pytest.approx(4.0, abs=4 * 4 * (2 / 20_000) ** 0.5)
    assert float(scores["l2_ensembled"]) == pytest.approx(float(scores["l2_per_draw"]))  # one component
    assert float(scores["coverage_90"]) == pytest.approx(90.0, abs=100 * 4 * (0.09 / 20_000) ** 0.5)
    assert float(scores["crps"]) == pytest.approx(2 / 3.14159**0.5, abs=0.05)  # sd / sqrt(pi)
    assert float(scores["log_predictive"]) == pytest.approx(-0.5 - 0.91894 - 0.69315, abs=0.03)


def test_padding_and_order_do_not_change_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    held_out = Dataset.of(torch.zeros(2, 30, 1), torch.randint(2, (2, 30), generator=generator).float())
    probs = torch.rand(2, 40, 30, 2, generator=generator)
    scores = scores_of(Categorical(probs), held_out)
    wider = torch.cat([probs, torch.full((2, 40, 5, 2), 0.5)], 2).flip(0)
    again = scores_of(Categorical(wider), held_out.padded(35, 1)[torch.tensor([1, 0])])
    for name, values in scores.items():
        assert torch.allclose(values, again[name].flip(0), atol=1e-6)


def test_means_are_over_folds_then_tables_with_the_folds_errors() -> None:
    data = Dataset.of(torch.zeros(4, 2, 1), torch.zeros(4, 2))
    fold = torch.tensor([0, 0, 1, 1])
    batches = [(TableCases(name, data, data, fold), {"crps": torch.tensor(values)})
               for name, values in (("a", [1.0, 3.0, 4.0, 4.0]), ("b", [8.0, 8.0, 8.0, 8.0]))]
    figures = summarise_tables(batches)
    assert figures["crps@a"] == {"mean": 3.0, "standard_error": 1.0}  # folds 2 and 4
    assert figures["crps@b"] == {"mean": 8.0, "standard_error": 0.0}
    assert figures["crps"] == {"mean": 5.5, "standard_error": 0.5}


def test_numbers_that_are_not_finite_are_missing() -> None:
    data = Dataset.of(torch.zeros(1, 2, 1), torch.zeros(1, 2))
    figures = summarise_tables([(TableCases("a", data, data, torch.tensor([0])), {"crps": torch.tensor([torch.inf])})])
    assert figures["crps"] == {"mean": None, "standard_error": None}


def test_a_context_of_one_class_has_a_prediction() -> None:
    import numpy as np

    probabilities = _classes(None, np.zeros((8, 1)), np.zeros(8), np.zeros((3, 1)))
    assert probabilities.T.tolist() == [[0.9, 0.1]] * 3


# -- cells on made-up tables ------------------------------------------------------------------


@pytest.mark.usefixtures("made_up_tables")
@pytest.mark.parametrize("method", ["exact", "laplace", "bayesian_ridge", "shipped_regression"])
def test_rows_for_numbers_find_the_line(method: str, tmp_path: Path) -> None:
    """d = 3: y is scaled to variance 3, of which noise of variance 0.09 / 5.34 is left."""
    figures, _ = cell("lr_whole_fold", method).compute(Workspace(tmp_path))
    assert figures["l2_ensembled"]["mean"] == pytest.approx(3 * 0.09 / 5.34, rel=0.5)
    assert figures[f"l2_per_draw@{next(iter(SOURCES))}"]["standard_error"] is not None


@pytest.mark.usefixtures("made_up_tables")
@pytest.mark.parametrize("method", ["laplace", "converged_hmc", "nuts", "logistic_regression",
                                    "shipped_classification"])
def test_rows_for_classes_find_the_line(method: str, tmp_path: Path) -> None:
    figures, record = cell("lc_2c_context_100", method).compute(Workspace(tmp_path))
    assert (figures["accuracy_ensembled"]["mean"] or 0) > 85
    assert ("converged" in record) == (method in ("converged_hmc", "nuts"))


@pytest.mark.usefixtures("made_up_tables")
@pytest.mark.parametrize(("setup", "method"), [("nlr_relu1_context_100", "mlp_regressor"),
                                               ("nlc_relu1_2c_context_100", "mlp_classifier")])
def test_networks_of_scikit_learn(setup: str, method: str, tmp_path: Path) -> None:
    figures, _ = cell(setup, method).compute(Workspace(tmp_path))
    assert all(figure["mean"] is not None for figure in figures.values())
    assert SKLEARN[method].classes == ("accuracy_per_draw" in figures)


@pytest.mark.usefixtures("made_up_tables")
def test_a_trained_cell_and_the_report(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    chosen = ["lr_whole_fold", "lr_context_100"]
    methods = ["reverse_kl/gaussian/deepsets", "bayesian_ridge", "random"]
    for c in table_cells(3, SMOKE, None, chosen, methods):
        figures, record = c.compute(workspace)
        workspace.store.add(Result(c.identity, c.bench, c.setup_key, c.method_key, c.scale_name, c.seed, figures,
                                   {"seconds": 1.0, **record}, {}, "2026-01-01 00:00:00"))
    frame = tabular_frame(SMOKE, chosen, workspace.store)
    assert set(frame.method) == set(methods)
    assert set(frame.table) == {"", *list(SOURCES)[:2]}
    printed = frame.loc[(frame.method == methods[0]) & (frame.figure == "l2_per_draw") & (frame.table == "")]
    assert set(printed.paper) == {9.26}
    markdown, table = table_report(3, SMOKE, [], workspace.store, tmp_path / "reports")
    assert markdown.name == "table_03_smoke.md"
    assert "within 5% of BayesianRidge" in markdown.read_text()
    assert table.stat().st_size > 0
    against_ridge = verdict(GOALS[-1], "whole_fold", frame)
    assert against_ridge is not None
    assert against_ridge.met == (against_ridge.ours <= 1.05 * against_ridge.rival)
    assert verdict(GOALS[-2], "whole_fold", frame) is None  # no classification yet


# -- the paper's tables -----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["lr", "lc_2c"])
def test_prior_draws_score_what_the_paper_prints(family: str, data_dir: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained: this is what tells that tables, columns and scaling are the paper's."""
    monkeypatch.setenv("POSTERIA_DATA", str(data_dir))
    figures, _ = cell(f"{family}_context_100", "random", "laptop").compute(Workspace(tmp_path))
    name = "l2_per_draw" if family == "lr" else "accuracy_per_draw"
    printed, (mean, error) = paper_entry(family, "random"), figures[name].values()
    assert printed is not None
    assert mean is not None
    assert error is not None
    assert abs(mean - printed.mean) < 4 * (error**2 + printed.error**2) ** 0.5


def test_shipped_rows_do_not_count_for_goals() -> None:
    import pandas as pd

    rows = [{"table": "", "context": "whole_fold", "family": "lc_2c", "figure": "accuracy_per_draw", "method": method,
             "ours": ours} for method, ours in (("shipped_classification", 99.0), ("reverse_kl/own/iterative", 70.0))]
    found = verdict(GOALS[2], "whole_fold", pd.DataFrame(rows))
    assert found is not None
    assert (found.method, found.met) == ("reverse_kl/own/iterative", False)


def test_every_row_belongs_to_a_model() -> None:
    cells = tabular_cells(LAPTOP, methods=list(ROWS))
    assert {c.method_key for c in cells} == set(ROWS)
