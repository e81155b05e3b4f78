"""The misspecification tables as cells: which exist, what they train and evaluate on, and the paper's numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from posteria.bench.methods import METHODS, PerDataset, Trained
from posteria.bench.misspecified import (
    ASSUMED,
    SOURCES,
    MisspecifiedCell,
    misspecified_cells,
    paper_entry,
    task_part,
)
from posteria.bench.paper import paper_numbers
from posteria.bench.scales import SCALES
from posteria.bench.store import key_of
from posteria.bench.workspace import Workspace
from posteria.errors import InputError
from posteria.training import build

SMOKE = SCALES["smoke"]


def cell(assumed: str = "linear", data: str = "gp>linear", method: str = "reverse_kl/gaussian/deepsets",
         scale: str = "smoke") -> MisspecifiedCell:
    trained_on, evaluated_on = data.split(">")
    return MisspecifiedCell(assumed, trained_on, evaluated_on, METHODS[method], SCALES[scale], 0)


def test_every_number_of_the_paper_s_tables_has_a_cell() -> None:
    entries = [paper_entry(c) for c in misspecified_cells(SMOKE)]
    assert sum(entry is not None for entry in entries) == 112  # 56 each in Tables 23 and 24
    table = paper_numbers()
    fourth = table[table.table == 4].to_dict("records")
    for row in fourth:  # repeats the transformer's
        assumed = "linear" if row["task"] == "linear_regression" else "mlp-tanh"
        key = Trained(row["objective"], row["density"], row["encoder"]).key
        assert paper_entry(cell(assumed, row["data"], key)) == (row["mean"], row["std"])


def test_cells_are_all_combinations_that_make_sense() -> None:
    cells = misspecified_cells(SMOKE, seeds=2)
    assert len({key_of(c.identity) for c in cells}) == len(cells)
    trained = [c for c in cells if isinstance(c.method, Trained)]
    per_model = Counter(c.assumed for c in trained if c.seed == 0)
    # Forward KL on one source, reverse KL on three; each of 2 densities × 4 encoders + our own; three evaluations.
    assert per_model == {"linear": (1 + 3) * 9 * 3, "mlp-tanh": (1 + 3) * 9 * 3}
    assert all(c.trained_on == c.assumed for c in trained if c.method.key.startswith("forward_kl"))
    baselines = [c for c in cells if isinstance(c.method, PerDataset)]
    assert all(c.trained_on == c.evaluated_on and c.seed == 0 for c in baselines)
    assert {"random", "optimization", "langevin", "hmc"} <= {c.method_key for c in baselines}


def test_evaluations_of_one_training_run_are_a_group() -> None:
    groups = Counter(c.group for c in misspecified_cells(SMOKE) if isinstance(c.method, Trained))
    assert len(groups) == 2 * (1 + 3) * 9
    assert set(groups.values()) == {len(SOURCES)}


@pytest.mark.parametrize("assumed", sorted(ASSUMED))
@pytest.mark.parametrize("source", sorted(SOURCES))
def test_tasks_draw_the_source_s_data(assumed: str, source: str) -> None:
    part = task_part(ASSUMED[assumed], source)
    expected = "simulated" if assumed == source else "gaussian_process" if source == "gp" else "other_model"
    assert part["name"] == expected
    assert part["options"]["columns"] == [1, 1]
    data = cell(assumed, f"{assumed}>{source}").cases()[0]
    assert data.dataset.x.shape[-1] == 1
    assert 64 <= data.dataset.x.shape[1] <= 128
    assert (data.theta is not None) == (assumed == source)


def test_both_assumed_models_see_the_same_test_datasets() -> None:
    for source in SOURCES:
        first, second = (cell(assumed, f"{assumed}>{source}").cases()[0] for assumed in ASSUMED)
        assert torch.equal(first.dataset.x, second.dataset.x)
        assert first.dataset.y is not None
        assert second.dataset.y is not None
        assert torch.equal(first.dataset.y, second.dataset.y)


@pytest.mark.parametrize("scale", sorted(SCALES))
def test_every_training_run_can_be_built(scale: str) -> None:
    for c in misspecified_cells(SCALES[scale], seeds=1, data=["linear>linear", "mlp-tanh>gp", "gp>gp"]):
        if isinstance(c.method, Trained) and (scale != "paper" or c.method.encoder == "deepsets"):
            estimator, task, _ = build(c.config)
            assert (task.columns, task.rows) == ((1, 1), (64, 128))
            assert estimator.model.name == c.setup.model["name"]


def test_the_setup_key_names_model_and_data() -> None:
    assert cell().setup_key == "lr_1d|gp>linear"
    assert cell("mlp-tanh", "mlp-tanh>gp").setup_key == "nlr_tanh1_1d|mlp-tanh>gp"


@pytest.mark.parametrize(("options", "named"), [
    ({"seeds": 0}, "seeds"), ({"assumed": ["cubic"]}, "assumed"), ({"data": ["gp"]}, "data"),
    ({"methods": ["magic"]}, "methods"),
])
def test_wrong_choices_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        misspecified_cells(SMOKE, **options)


def test_a_cell_trains_and_measures(tmp_path: Any) -> None:
    workspace = Workspace(tmp_path)
    figures, record = cell("linear", "gp>linear").compute(workspace)
    assert {"l2_per_draw", "l2_ensembled", "log_predictive", "symmetric_kl"} <= set(figures)
    assert all(value is not None for figure in figures.values() for value in figure.values())
    assert record["steps"] > 0
    again, _ = cell("linear", "gp>linear").compute(workspace)  # loaded, not trained
    assert again == figures
    other, _ = cell("linear", "gp>mlp-tanh").compute(workspace)
    assert other != figures


def test_the_prior_scores_what_the_paper_prints(tmp_path: Any) -> None:
    """Nothing is trained: within four standard errors, ours over 100 datasets and the paper's spread."""
    for assumed, data in (("linear", "gp>gp"), ("linear", "mlp-tanh>mlp-tanh"), ("mlp-tanh", "linear>linear")):
        prior = cell(assumed, data, "random", "laptop")
        figures, _ = prior.compute(Workspace(tmp_path))
        entry, (mean, error) = paper_entry(prior), figures["l2_per_draw"].values()
        assert entry is not None
        assert mean is not None
        assert error is not None
        assert abs(mean - entry[0]) < 4 * (error**2 + entry[1] ** 2) ** 0.5
