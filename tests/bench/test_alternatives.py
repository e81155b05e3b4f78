"""`posteria bench alternatives`: every method on a known posterior, what counts as accurate, cells and report."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from posteria.bench.alternatives_accuracy import errors_of_answer, reference_for
from posteria.bench.alternatives_answers import NUM_DRAWS, Answer
from posteria.bench.alternatives_bench import AlternativesCell, alternatives_cells
from posteria.bench.alternatives_cases import CASES, SIZES, AlternativesCase, Sizes
from posteria.bench.alternatives_methods import METHODS, OURS, Budget
from posteria.bench.alternatives_report import write_alternatives_report
from posteria.bench.runner import run_cells
from posteria.bench.samplers import Moments
from posteria.bench.scales import scale_named
from posteria.bench.store import Result, ResultStore
from posteria.bench.trust_accuracy import Errors, Reference
from posteria.bench.workspace import Workspace
from posteria.errors import InputError, UnsupportedError
from posteria.models import LinearRegression
from posteria.randomness import generator_for
from posteria.types import Dataset

_SIZES = Sizes(2, 2, 10.0, {"num_chains": 4, "num_samples": 200, "rounds": 1}, 50.0, ("logistic_5d",))
_NUTS: Budget = {"warmup": 300, "draws": 600}
# Budgets that are enough on a linear regression with three parameters.
_BUDGETS: dict[str, Budget] = {"pathfinder_psis": {"paths": 1, "draws": 4000}, "advi": {"steps": 4000},
                               "nuts_numpyro": _NUTS, "nuts_nutpie": _NUTS}


def _line(correlated: bool) -> Dataset:
    """Two datasets of a line on two features; exact posteriors are known."""
    common = torch.randn(2, 40, 2, generator=generator_for(1))
    x = torch.stack([common[..., 0], 0.95 * common[..., 0] + 0.3 * common[..., 1]], -1) if correlated else common
    noise = 0.5 * torch.randn(2, 40, generator=generator_for(2))
    observed = torch.arange(40) < torch.tensor([[40], [30]])
    return Dataset.of(x, 0.7 * x[..., 0] - 0.4 * x[..., 1] + 0.2 + noise, observed)


def _errors(name: str, correlated: bool) -> Errors:
    model, dataset = LinearRegression(), _line(correlated)
    if METHODS[name].missing:
        pytest.skip(f"needs {METHODS[name].missing}")
    solver = METHODS[name].builder(model, **_BUDGETS.get(name, {"draws": NUM_DRAWS}))
    together = METHODS[name].batched
    parts = [dataset] if together else [dataset[i:i + 1] for i in range(len(dataset))]
    return errors_of_answer(Answer.joined([solver(part, 0) for part in parts]), reference_for(model, dataset, _SIZES))


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] if name == "pathfinder_psis" else [])  # compiles for long
    for name in METHODS if name != "advi"])
def test_every_method_finds_a_known_posterior(name: str) -> None:
    assert _errors(name, correlated=True).accurate_up_to_chance.all()


def test_laplace_in_torch_and_in_jax_agree_where_there_is_a_log_link() -> None:
    """Within four standard errors of their 4,000 draws each."""
    case = CASES["beta_binomial_5d"]
    model, dataset = case.model(), case.draw(1)
    ours, theirs = (METHODS[name].builder(model, draws=NUM_DRAWS)(dataset, seed)
                    for name, seed in (("batched_laplace_psis", 0), ("laplace_psis", 1)))
    assert ((ours.mean - theirs.mean).abs() / ours.sd).max() < 4 * (2.0 / 1500) ** 0.5  # at least 1,500 effective
    assert (ours.sd / theirs.sd).log().abs().max() < 4 * (1.0 / 1500) ** 0.5


def test_a_mean_field_is_too_narrow_where_parameters_are_correlated() -> None:
    """The known answer: means are right, and every sd is that of the others held fixed (Turner & Sahani 2011)."""
    found = _errors("advi", correlated=True)
    assert (found.mean < 0.1).all()
    assert (found.narrowest < 0.6).all()
    assert not found.accurate_up_to_chance.any()


def test_importance_weights_mend_moments() -> None:
    """Draws of N(0, 2^2) weighted to N(0.5, 1), within four standard errors."""
    theta = 2.0 * torch.randn(1, 4000, 1, dtype=torch.double, generator=generator_for(0))
    log_q, target = -theta[..., 0].square() / 8.0, -(theta[..., 0] - 0.5).square() / 2.0
    found = Answer.weighted(theta, target, log_q)
    assert abs(float(found.mean) - 0.5) < 4 / 1500**0.5
    assert abs(float(found.sd) - 1.0) < 4 / 3000**0.5


def test_what_counts_as_accurate() -> None:
    """Means within 0.1 and sds within 10%, plus three errors of 4,000 draws; nothing without an answer."""
    one, nothing = torch.ones(5, 1, dtype=torch.double), torch.zeros(5, 1, dtype=torch.double)
    usable = torch.tensor([True, True, True, True, False])
    reference = Reference(Moments(nothing, one, nothing, nothing), usable, True)
    mean = torch.tensor([0.05, 0.14, 0.16, torch.nan, 0.0], dtype=torch.double)[:, None]
    found = errors_of_answer(Answer(mean, one), reference)
    assert found.accurate.tolist() == [True, False, False, False, False]
    assert found.accurate_up_to_chance.tolist() == [True, True, False, False, False]
    narrow = errors_of_answer(Answer(nothing, 0.85 * one), reference)
    assert not narrow.accurate_up_to_chance.any()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.batched])
def test_batches_and_padding_change_nothing(name: str) -> None:
    model, dataset = LinearRegression(), _line(correlated=False)
    solver = METHODS[name].builder(model, draws=NUM_DRAWS)
    together, alone = solver(dataset, 0), solver(dataset[1:], 0)
    padded = solver(dataset.padded(50, 2), 0)
    error = (2.0 / NUM_DRAWS) ** 0.5  # the network's draws are others in another batch
    for other in (together, padded):
        assert ((other.mean[1:] - alone.mean).abs() / alone.sd).max() < 4 * error
        assert (other.sd[1:] / alone.sd).log().abs().max() < 4 * error / 2**0.5


@pytest.mark.parametrize("name", list(CASES))
def test_cases_have_rows_of_their_own_and_one_shape(name: str) -> None:
    dataset = CASES[name].draw(4)
    counts = dataset.num_observations
    assert dataset.x.shape[:2] == (4, 128)
    assert ((counts >= 64) & (counts <= 128)).all()
    assert len(counts.unique()) > 1
    assert not torch.equal(CASES[name].draw(4, number=1).x, dataset.x)
    CASES[name].model().check(dataset)


def test_cells_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = scale_named("smoke")
    assert {cell.case for cell in alternatives_cells(scale_named("laptop"))} == set(CASES)
    assert len(alternatives_cells(scale, ["gamma_5d"])) == sum(not m.missing for m in METHODS.values())
    monkeypatch.setattr("posteria.bench.alternatives_methods.find_spec",
                        lambda name: None if name == "nutpie" else find_spec(name))
    assert "nuts_nutpie" not in {cell.method for cell in alternatives_cells(scale)}
    with pytest.raises(UnsupportedError, match=r"nutpie.*posteria\[alternatives\]"):
        alternatives_cells(scale, methods=["nuts_nutpie"])
    with pytest.raises(UnsupportedError, match=r"posteria\[alternatives\]"):
        _ = METHODS["nuts_nutpie"].builder
    with pytest.raises(InputError, match="case: got"):
        alternatives_cells(scale, ["no_such_case"])
    with pytest.raises(InputError, match="method: got"):
        alternatives_cells(scale, methods=["no_such_method"])


def test_cells_run_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "smoke", _SIZES)
    monkeypatch.setitem(CASES, "logistic_5d", AlternativesCase("linear_regression", 2))  # type: ignore[index]
    scale, workspace = scale_named("smoke"), Workspace(tmp_path)
    cells = alternatives_cells(scale, ["logistic_5d"], [OURS, "batched_laplace"])
    tally = run_cells(cells, workspace)
    assert (tally.run, tally.failed) == (2, 0)
    assert run_cells(cells, workspace).known == 2
    text = write_alternatives_report(scale, workspace.store, tmp_path / "reports")[0].read_text()
    assert "| `posteria` | 4,000 draws | 100% |" in text or "| `posteria` | 1,000 draws | 100% |" in text
    assert "- `advi`: NumPyro's mean-field normal guide; 1,000 steps or 4,000 steps or 16,000 steps; not run" in text


def test_the_report_says_where_there_is_no_reference(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.sqlite")
    known = _known(OURS, float("nan"), 10.0)
    figures = {**known.figures, "share": {"mean": None, "standard_error": None}}
    store.add(replace(known, figures=figures, record={**known.record, "datasets": 0}))
    text = write_alternatives_report(scale_named("laptop"), store, tmp_path)[0].read_text()
    assert "No dataset has a reference" in text
    assert "nan" not in text


def _known(method: str, share: float, many: float) -> Result:
    figures = {"share": share, "share_strict": 0.5, "cold_seconds": 1.0, "warm_seconds": 0.1, "many_seconds": many,
               "many_measured": 1.0, "reached": float(share >= 0.9)}
    cell = AlternativesCell(scale_named("laptop"), "poisson_5d", method)
    record = {"budget": {}, "datasets": 20, "no_reference": 1, "parameters": 6, "versions": {}}
    return Result(cell.identity, cell.bench, cell.case, method, "laptop", 0,
                  {name: {"mean": value, "standard_error": None} for name, value in figures.items()}, record,
                  {"threads": 1, "processor": ""}, "2026-01-01 00:00:00")


@pytest.mark.parametrize(("weighted", "alone", "said"), [
    (1.0, 0.95, "Laplace alone is enough here"), (0.95, 0.5, "Laplace with importance weights is enough here"),
    (0.5, 0.1, "Laplace is not enough here")])
def test_the_report_says_where_laplace_is_enough(tmp_path: Path, weighted: float, alone: float, said: str) -> None:
    store = ResultStore(tmp_path / "results.sqlite")
    for result in (_known(OURS, 1.0, 10.0), _known("batched_laplace", alone, 2.0),
                   _known("batched_laplace_psis", weighted, 4.0), _known("nuts_numpyro", 1.0, 500.0)):
        store.add(result)
    text = write_alternatives_report(scale_named("laptop"), store, tmp_path)[0].read_text()
    assert said in text
    assert "faster than `nuts_numpyro` (50 times)" in text
    assert ("slower than" in text) == (weighted >= 0.9 or alone >= 0.9)
    assert ("`batched_laplace_psis` (2.5 times)" in text) == (weighted >= 0.9)
