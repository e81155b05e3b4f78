"""The committed benchmarks: their configurations build, and their measures know the right answers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from posteria.bench.cases import draw_cases
from posteria.training import build

QUALITY = Path(__file__).parents[1] / "benchmarks" / "quality"
MODULES = ("rows", "measures", "report", "bench", "nuts")


@pytest.fixture(scope="module")
def quality() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, which import each other by their bare names as scripts do."""
    sys.path.insert(0, str(QUALITY))
    yield {name: importlib.import_module(name) for name in MODULES if name != "nuts"}
    sys.path.remove(str(QUALITY))
    for name in MODULES:
        sys.modules.pop(name, None)


def test_every_row_builds_and_has_its_measure(quality: dict[str, ModuleType]) -> None:
    for name, row in quality["rows"].ROWS.items():
        config = row.train_config(0.5)
        assert row.name == name
        assert row.measure in quality["measures"].MEASURES
        _, task, _ = build(config)
        assert task.rows == (64, 128)
        assert all((goal.at_most is None) != (goal.at_least is None) for goal in row.goals)
        minutes = [goal.minutes for goal in row.goals if goal.minutes is not None]
        assert config.minutes is None or not minutes or config.minutes < min(minutes)


def test_cases_are_fixed_and_of_the_size_asked_for(quality: dict[str, ModuleType]) -> None:
    _, task, _ = build(quality["rows"].ROWS["lr_2d_reverse_kl"].train_config())
    first, second = (list(draw_cases(task, 15)) for _ in range(2))
    assert [len(case.dataset) for case in first] == [10, 5]
    assert all(torch.equal(a.dataset.x, b.dataset.x) for a, b in zip(first, second, strict=True))
    assert all(64 <= case.dataset.x.shape[1] <= 128 and case.held_out.x.shape[1] == 100 for case in first)


def test_exact_search_has_no_divergence_on_conjugate_models(quality: dict[str, ModuleType]) -> None:
    row = quality["rows"].ROWS["lr_2d_reverse_kl"]
    estimator, task, _ = build(row.train_config())
    cases = list(draw_cases(task, 10))
    figures = quality["measures"].MEASURES["conjugate"](estimator.eval(), cases, row)
    assert figures["symmetric_kl"][0] == pytest.approx(0.0, abs=1e-3)
    assert figures["posterior_mean_error"][0] == pytest.approx(figures["exact_posterior_mean_error"][0], abs=1e-3)


def test_symmetric_kl_of_shifted_normals(quality: dict[str, ModuleType]) -> None:
    from posteria.densities.gaussian import GaussianTheta

    # Unit variances one apart in one of two dimensions: either divergence is 1/2, so half their sum over 2 is 1/4.
    ours = GaussianTheta(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    exact = torch.distributions.MultivariateNormal(torch.zeros(1, 2).double(), torch.eye(2).double()[None])
    assert float(quality["measures"].symmetric_kl(ours, exact, None, None)) == pytest.approx(0.25)


def test_labelling_shares_count_nearest_permutations(quality: dict[str, ModuleType]) -> None:
    truth = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    draws = torch.stack([truth[0] + 0.1, truth[0].flip(0), truth[0] - 0.1, truth[0] * 0.5])[None]
    assert quality["measures"].labelling_shares(draws, truth).tolist() == [[0.75, 0.25]]


def test_maximum_of_a_concave_log_joint_is_stationary(quality: dict[str, ModuleType]) -> None:
    estimator, task, _ = build(quality["rows"].ROWS["lc_2d"].train_config())
    case = next(iter(draw_cases(task, 5)))
    theta, gain = quality["measures"].maximum(estimator.model, case.dataset)
    point = theta[:, None].requires_grad_()
    (score,) = torch.autograd.grad(estimator.model.log_joint(point, case.dataset).sum(), point)
    assert float(gain.max()) < 1e-3
    assert float(score.abs().max()) < 0.1


def test_jax_density_is_the_models(quality: dict[str, ModuleType]) -> None:
    pytest.importorskip("numpyro")
    nuts = importlib.import_module("nuts")
    estimator, task, _ = build(quality["rows"].ROWS["poisson_5d_reverse_kl"].train_config())
    case = next(iter(draw_cases(task, 1)))
    nuts.check_density(estimator.model, case.dataset)


def test_results_are_written_and_reused(quality: dict[str, ModuleType], tmp_path: Path) -> None:
    row, bench = quality["rows"].ROWS["gm_2d_reverse_kl"], quality["bench"]
    first = bench.run_row(row, tmp_path, minutes_scale=0.001, datasets=10)
    assert bench.run_row(row, tmp_path, minutes_scale=0.001, datasets=10) == first
    assert first["steps"] >= 1
    assert set(first) >= {"config", "seed", "training_seconds", "torch", "processor", "figures", "untrained", "laplace"}
    quality["report"].write_report(tmp_path, tmp_path / "README.md")
    assert row.title in (tmp_path / "README.md").read_text()


@pytest.fixture
def specialists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark of special training, writing elsewhere."""
    spec = importlib.util.spec_from_file_location("specialists", QUALITY.parent / "specialists" / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "NUM_DATASETS", 64)
    return module


def test_special_training_is_measured_on_the_same_datasets(specialists: ModuleType, tmp_path: Path) -> None:
    for case in specialists.CASES:
        for way in ("fine-tuned", "specialist"):
            build(specialists.config_of(case, way, 1.0))
    network = specialists.trained("logistic", "universal", 1.0, tmp_path)
    found = specialists.bounds(network, "logistic")
    assert found.shape == (64,)
    assert found.isfinite().all()
    torch.testing.assert_close(found, specialists.bounds(network, "logistic"))
    row = {name: dict.fromkeys(specialists.WAYS, 0.1) for name in ("bound", "difference", "error")}
    machine = {"processor": "one", "torch": "2"}
    specialists.write_report({"machine": machine, "cases": {"logistic": {"minutes": 3, **row}}})
    assert "| logistic, 10 columns | 0.1000 | +0.10000 ± 0.10000 |" in (tmp_path / "README.md").read_text()
