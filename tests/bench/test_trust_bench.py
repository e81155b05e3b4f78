"""`posteria bench trust`: its shifts, its measurements against known answers, its cells and its report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace
from typer.testing import CliRunner

from posteria.bench import trust_bench, trust_mixtures
from posteria.bench.runner import run_cells
from posteria.bench.samplers import Moments, Quantities, compare_moments, parameters
from posteria.bench.scales import SCALES
from posteria.bench.store import Result, key_of
from posteria.bench.trust_accuracy import Errors, errors_of, reference_of, reference_of_some
from posteria.bench.trust_bench import BENCH, BROKEN, SIZES, BrokenCell, TrustCell, figures_of, trust_cells
from posteria.bench.trust_broken import FAULTS, caught
from posteria.bench.trust_cases import CASES
from posteria.bench.trust_chains import steady
from posteria.bench.trust_importance import importance_moments
from posteria.bench.trust_mixtures import mixture_moments
from posteria.bench.trust_report import verdicts, write_trust_report
from posteria.bench.trust_shifts import SHIFTS, draw_shifted
from posteria.bench.workspace import Workspace
from posteria.cli import app
from posteria.errors import InputError
from posteria.models import GaussianMean, LinearClassification, LinearRegression, Model, build_model
from posteria.models.ordering import in_order
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from posteria.reference import Empirical
from posteria.types import Dataset

SMOKE = SCALES["smoke"]
MODELS = {"gaussian_mean": 2, "gaussian_mixture": 2, "linear_regression": 2, "linear_classification": 2,
          "poisson_regression": 3, "neural_regression": 2}


# -- shifts --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_every_shift_gives_datasets_of_the_assumed_model(name: str) -> None:
    model = build_model(name)
    plain = draw_shifted(model, MODELS[name], SHIFTS["in_distribution"], 3)
    for key, shift in SHIFTS.items():
        dataset = draw_shifted(model, MODELS[name], shift, 3)
        model.check(dataset)
        assert len(dataset) == 3
        assert torch.isfinite(dataset.x).all()
        assert key == "in_distribution" or dataset.x.shape != plain.x.shape or not _same(dataset, plain)


def _same(one: Dataset, other: Dataset) -> bool:
    same_y = one.y is None or other.y is None or torch.equal(one.y, other.y)
    return torch.equal(one.x, other.x) and same_y


def test_datasets_do_not_depend_on_how_many_are_drawn() -> None:
    model = LinearRegression()
    few, many = (draw_shifted(model, 2, SHIFTS["outliers"], count) for count in (4, 25))
    for i in range(4):
        rows = int(few.observed[i].sum())
        assert rows == int(many.observed[i].sum())
        torch.testing.assert_close(few.x[i, :rows], many.x[i, :rows])


def test_shifts_do_what_they_say() -> None:
    model = LinearRegression(noise=0.25)
    plain, scaled, far, alike = (draw_shifted(model, 3, SHIFTS[name], 100) for name in
                                 ("in_distribution", "scale_x5", "outliers", "correlated"))
    torch.testing.assert_close(scaled.x, 5.0 * plain.x)
    assert plain.y is not None
    assert scaled.y is not None
    assert far.y is not None
    torch.testing.assert_close(scaled.y, 5.0 * plain.y)
    jumps = (far.y - plain.y).abs()[plain.observed]
    torch.testing.assert_close(jumps[jumps > 0], torch.full_like(jumps[jumps > 0], 20.0 * 0.25**0.5), rtol=1e-4,
                               atol=1e-4)
    assert 0.04 < float((jumps > 0).double().mean()) < 0.06
    rows = alike.x[alike.observed]
    assert float(torch.corrcoef(rows.T)[0, 1]) == pytest.approx(0.95, abs=0.01)
    assert SHIFTS["n_8"].rows == (8, 8)


def test_heavy_tails_are_heavy() -> None:
    plain, heavy = (draw_shifted(GaussianMean(), 2, SHIFTS[name], 50) for name in ("in_distribution", "heavy_tails"))
    added = (heavy.x - plain.x)[plain.observed].flatten().double()
    # Student's t with two degrees: P(|t| > 4) = 1 - 4 / sqrt(18) = 0.0572.
    share = float((added.abs() > 4.0).double().mean())
    assert share == pytest.approx(0.0572, abs=4 * (0.0572 / len(added))**0.5)


# -- measurements --------------------------------------------------------------------------------
def _answer(model: Model, dataset: Dataset, shift: float, width: float, num: int = 20_000) -> Posterior:
    exact = model.exact_posterior(dataset)
    noise = torch.randn(num, *exact.mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    theta = exact.mean[:, None] + (shift + width * noise.transpose(0, 1)) * exact.stddev[:, None]
    return Posterior(model, dataset, Empirical(theta, model.active(dataset)))


@pytest.mark.parametrize(("shift", "width", "accurate", "wrong"), [
    (0.0, 1.0, True, False), (0.15, 1.0, False, False), (0.3, 1.0, False, True), (0.0, 0.85, False, False),
    (0.0, 1.15, False, False), (0.05, 1.05, True, False),
])
def test_errors_are_in_sds_of_the_exact_posterior(shift: float, width: float, accurate: bool, wrong: bool) -> None:
    model = LinearRegression()
    dataset = draw_shifted(model, 2, SHIFTS["in_distribution"], 4)
    reference = reference_of(model, dataset, parameters, {}, 0.0)
    assert reference.exact
    errors = errors_of(_answer(model, dataset, shift, width), reference, parameters, 20_000)
    assert (errors.mean - abs(shift)).abs().max() < 5.0 * width / 20_000**0.5
    assert (errors.widest - width).abs().max() < 5.0 * width / 40_000**0.5
    assert errors.accurate.tolist() == [accurate] * 4
    assert errors.wrong.tolist() == [wrong] * 4


def test_chains_are_a_reference_where_they_converge() -> None:
    model = LinearClassification(classes=2, temperature=1.0)
    dataset = draw_shifted(model, 1, SHIFTS["in_distribution"], 2)
    chains = {"num_chains": 4, "num_samples": 500, "rounds": 3}
    good = reference_of(model, dataset, parameters, chains, 400.0)
    assert good.usable.all()
    assert not good.exact
    hard = reference_of(model, dataset, parameters, chains, 1e6)
    assert not hard.usable.any()
    answer = Posterior(model, dataset, Empirical(torch.zeros(2, 100, 4), model.active(dataset)))
    assert errors_of(answer, hard, parameters, 100).mean.isnan().all()
    assert not errors_of(answer, hard, parameters, 100).wrong.any()


def test_weighted_draws_of_the_prior_have_the_moments_of_quadrature() -> None:
    """A line with the noise inferred: given the noise its posterior is normal, and the noise is one number."""
    model = build_model("linear_regression", noise="inferred")
    dataset = draw_shifted(model, 1, SHIFTS["n_8"], 3)
    moments, enough, _ = importance_moments(model, dataset, parameters, 4000.0)
    assert enough.all()
    exact = _by_quadrature(model, dataset.double())
    found = Moments(*(getattr(moments, name)[:, :2] for name in Moments.__dataclass_fields__))
    compared = compare_moments(found, exact)
    assert compared["mean_z_max"] < compared["z_limit"]
    assert compared["sd_z_max"] < compared["z_limit"]
    assert ((found.mean_error / found.sd) < 4000.0**-0.5).all()


def _by_quadrature(model: Model, dataset: Dataset) -> Moments:
    """Of intercept and slope; errors are zero."""
    grid = torch.linspace(-6.0, 4.0, 4001, dtype=torch.float64)
    theta = torch.zeros(len(dataset), len(grid), 3, dtype=torch.float64)
    theta[..., 2] = grid
    mean, factor = model.conditional(theta, dataset)
    theta[..., :2] = mean
    height = model.log_joint(theta, dataset) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weight = height.softmax(-1)[..., None]
    centre = (weight * mean).sum(1)
    inner = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
    sd = (weight * (inner + (mean - centre[:, None]).square())).sum(1).sqrt()
    return Moments(centre, sd, torch.zeros_like(sd), torch.zeros_like(sd))


def test_where_weights_of_the_prior_are_too_few_chains_take_over() -> None:
    model = build_model("linear_regression", noise="inferred")
    dataset = draw_shifted(model, 1, SHIFTS["n_8"], 1)
    chains = {"num_chains": 4, "num_samples": 500, "rounds": 1}
    moments, enough, _ = importance_moments(model, dataset, parameters, 1e6)  # more than all draws there may be
    assert not enough.any()
    long = reference_of(model, dataset, parameters, chains, 1e6)
    mixed = reference_of(model, dataset, parameters, chains, 1e6, weighted="importance")
    assert not mixed.usable.any()
    assert torch.equal(mixed.moments.mean, long.moments.mean)
    assert not torch.equal(mixed.moments.mean, moments.mean)


@pytest.mark.parametrize(("model", "shift", "quantities"), [
    (build_model("generalized_linear", family="poisson"), "n_8", parameters),
    (build_model("generalized_linear", family="bernoulli"), "scale_x5", parameters),
    (build_model("generalized_linear", family="bernoulli", priors={"weights": Laplace(0.0, 0.3)}), "n_8", parameters),
    (build_model("gaussian_mixture"), "n_8", in_order), (build_model("gaussian_mixture"), "outliers", in_order)])
def test_weighted_draws_of_mixtures_have_the_moments_of_quadrature(model: Model, shift: str,
                                                                   quantities: Quantities) -> None:
    whole = draw_shifted(model, 1, SHIFTS[shift], 3).double()
    few = slice(0, 24)
    dataset = replace(whole, x=whole.x[:, few], y=None if whole.y is None else whole.y[:, few],
                      observed=whole.observed[:, few])
    moments, enough, _ = mixture_moments(model, dataset, quantities, 4000.0)
    assert enough.all()
    assert ((moments.mean_error / moments.sd) < 4000.0**-0.5).all()
    compared = compare_moments(moments, _on_a_grid(model, dataset, quantities))
    assert compared["mean_z_max"] < compared["z_limit"]
    assert compared["sd_z_max"] < compared["z_limit"]


def _on_a_grid(model: Model, dataset: Dataset, quantities: Quantities) -> Moments:
    """Of two parameters. Sums over grids finer than a sd have next to no error where densities are smooth."""
    reach = 5.0 + float(dataset.x.abs().max())
    line = torch.linspace(-reach, reach, 601, dtype=torch.float64)
    found = []
    for i in torch.arange(len(dataset)).split(1):
        whole = torch.cartesian_prod(line, line)[None]
        height = torch.cat([model.log_joint(part, dataset[i]) for part in whole.split(20_000, 1)], 1)
        theta = whole[:, height[0] > height.max() - 50.0]
        weight = height[height > height.max() - 50.0].softmax(0)[:, None]
        values = quantities(model, dataset[i], theta[:, None])[0, 0]
        mean = (weight * values).sum(0)
        found.append((mean, (weight * (values - mean).square()).sum(0).sqrt()))
    mean, sd = (torch.stack(part) for part in zip(*found, strict=True))
    assert (sd > line[1] - line[0]).all()
    return Moments(mean, sd, torch.zeros_like(sd), torch.zeros_like(sd))


def test_a_mode_without_a_component_is_found_or_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both labellings of a mixture are modes; every climb starts in one of them."""
    model = build_model("gaussian_mixture")
    dataset = draw_shifted(model, 1, SHIFTS["in_distribution"], 8)
    for name in ("_of_few_rows", "led_by_few"):
        monkeypatch.setattr(trust_mixtures, name, lambda *_: torch.tensor([-1.0, 1.0]).double().expand(8, 20, -1))
    moments, enough, _ = mixture_moments(model, dataset, parameters, 2000.0)
    symmetric = (moments.mean[:, 0] - moments.mean[:, 1]).abs() < 5.0 * moments.mean_error.sum(-1)
    assert (symmetric | ~enough).all()
    assert symmetric.any()


def test_a_reference_that_left_a_mode_out_is_none() -> None:
    model = build_model("gaussian_mixture")
    dataset = draw_shifted(model, 1, SHIFTS["in_distribution"], 2)
    reference = reference_of(model, dataset, in_order, {}, 500.0, weighted="mixtures")
    assert reference.usable.all()
    assert reference.highest is not None
    answer = Posterior(model, dataset, Empirical(reference.moments.mean[:, None].float(), model.active(dataset)))
    assert reference.beside(answer, 1).usable.all()
    lower = replace(reference, highest=reference.highest - torch.tensor([0.0, 5.0]))
    assert lower.beside(answer, 1).usable.tolist() == [True, False]
    exact = replace(reference, highest=None)
    assert exact.beside(answer, 1) is exact


def test_what_chance_may_add_is_allowed_for_apart() -> None:
    one = torch.ones(1)
    errors = Errors(0.12 * one, 0.95 * one, 1.05 * one, 0.03 * one)
    assert not errors.accurate.any()
    assert errors.accurate_up_to_chance.all()


def columns(**changes: Tensor) -> dict[str, Tensor]:
    """Four datasets: amortized, amortized but wrong, mended by chains, failed."""
    yes, error = torch.ones(4, dtype=torch.bool), torch.tensor([0.02, 0.4, 0.05, 0.9]).double()
    good = error < 0.1
    known = {"status": torch.tensor([0, 0, 3, 4]), "trusted": torch.tensor([True, True, True, False]), "usable": yes,
             "mean_error": error, "narrowest": torch.ones(4).double(), "widest": torch.ones(4).double(),
             "accurate": good, "accurate_up_to_chance": good, "wrong": error > 0.25,
             "q_mean_error": torch.tensor([0.02, 0.4, 3.0, 3.0]).double(),
             "q_wrong": torch.tensor([False, True, True, True]), "evaluations": torch.full((4,), 10),
             "seconds": torch.full((4,), 0.5).double()}
    return known | changes


def test_figures_of_a_cell() -> None:
    found = figures_of(columns())
    assert found["share_amortized"] == 0.5
    assert found["share_failed"] == 0.25
    assert found["trusted_accurate"] == pytest.approx(2 / 3)
    assert (found["wrong"], found["wrong_trusted"]) == (2, 1)
    assert (found["q_wrong"], found["q_wrong_kept"]) == (3, 1)
    assert found["worst_trusted_error"] == pytest.approx(0.4)
    unknown = figures_of(columns(usable=torch.tensor([True, False, True, True])))
    assert unknown["no_reference"] == 1
    assert unknown["wrong_trusted"] == 0
    assert unknown["trusted_accurate"] == 1.0
    assert unknown["trusted"] == 0.75


# -- posteriors that are wrong on purpose ----------------------------------------------------------
@pytest.mark.parametrize("name", ["too_narrow", "shifted", "one_mode", "one_mode_draws"])
def test_wrong_posteriors_are_caught_and_mended(name: str) -> None:
    found = caught(name, 4)
    assert found["caught"] == 1.0
    assert found["trusted"] == 1.0
    assert found["trusted_wrong"] == 0.0


def test_chains_of_a_posterior_with_two_modes_fail() -> None:
    chains = caught("one_mode_chains", 2)
    assert chains["caught"] == 1.0
    assert chains["failed"] == 1.0


# -- cells and report ------------------------------------------------------------------------------
def test_cells_are_cases_times_shifts_that_mean_something() -> None:
    cells = trust_cells(SMOKE)
    assert len({key_of(cell.identity) for cell in cells}) == len(cells)
    assert len([cell for cell in cells if isinstance(cell, BrokenCell)]) == len(FAULTS)
    one_feature = [cell.shift for cell in cells if isinstance(cell, TrustCell) and cell.case == "nlr_relu1_1d"]
    assert set(one_feature) == set(SHIFTS) - {"correlated"}
    chosen = trust_cells(SMOKE, ["lr_2d"], ["outliers", "n_8"])
    assert [(cell.setup_key, cell.method_key) for cell in chosen] == [("lr_2d", "outliers"), ("lr_2d", "n_8")]
    assert len({cell.group for cell in chosen}) == 1
    with pytest.raises(InputError, match="case: got"):
        trust_cells(SMOKE, ["lr_3d"])
    with pytest.raises(InputError, match="shift: got"):
        trust_cells(SMOKE, [], ["sideways"])


def test_every_case_has_a_configuration_at_every_scale() -> None:
    for scale in SCALES.values():
        for name, case in CASES.items():
            assert case.config(scale).model_dump(mode="json"), name
    laptop = SCALES["laptop"]
    exact, home = TrustCell(laptop, case="gm_2d", shift="n_8"), TrustCell(laptop, case="gmm_2d_2c", shift="n_8")
    away, dear = (TrustCell(laptop, case=case, shift="n_1000") for case in ("lc_25d_2c", "nlr_relu1_1d"))
    assert [cell.num_datasets for cell in (exact, home, away, dear)] == [1000, 1000, 1000, 1000]


def test_a_cell_runs_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(SIZES["smoke"], num_datasets=2, num_exact=2)
    monkeypatch.setattr(trust_bench, "SIZES", {**SIZES, "smoke": few})
    monkeypatch.setattr(trust_bench, "nuts_figures", lambda *_: {"nuts_seconds_per_dataset": 100.0})
    workspace = Workspace(tmp_path)
    cells = [TrustCell(SMOKE, case="lr_2d", shift=shift) for shift in ("in_distribution", "n_8")]
    assert run_cells(cells, workspace).run == 2
    assert run_cells(cells, workspace).known == 2
    text, table = (path.read_text(encoding="utf-8") for path in write_trust_report(SMOKE, workspace.store, tmp_path))
    assert "| lr_2d | 3 | 2 |" in text
    assert "at most 30 parameters: yes so far. 1 of 1 cells reach it. 8 more cells" in text
    assert "Caught: a posterior that is too narrow by two: not measured." in text
    assert "lr_2d,n_8,share_failed" in table


def test_a_cell_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(SIZES["smoke"], num_datasets=4, num_exact=4)
    monkeypatch.setattr(trust_bench, "SIZES", {**SIZES, "smoke": few})
    monkeypatch.setattr(trust_bench, "_MOST_TOGETHER", 2)
    measured, begun = trust_bench._measured, []

    def counted(*arguments: Any) -> dict[str, Tensor]:
        begun.append(arguments[-1])
        if len(begun) == 2:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(trust_bench, "_measured", counted)
    workspace, cell = Workspace(tmp_path), TrustCell(SMOKE, case="lr_2d", shift="n_8")
    with pytest.raises(KeyboardInterrupt):
        run_cells([cell], workspace)
    assert run_cells([cell], workspace).run == 1
    assert begun == [0, 2, 2]
    kept = workspace.partial(cell.parts_key).get(0)
    assert kept is not None
    assert len(kept["status"]) == 2
    at_once = Workspace(tmp_path / "at_once")
    monkeypatch.setattr(trust_bench, "_measured", measured)
    assert run_cells([cell], at_once).run == 1
    killed, whole = (dict(place.store.results()[0].figures) for place in (workspace, at_once))
    for figures in (killed, whole):
        figures.pop("seconds_per_dataset")
    assert killed == whole
    assert killed["datasets"]["mean"] == 4


def test_a_cell_of_more_datasets_takes_over_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(SIZES["smoke"], num_datasets=5, num_exact=5)
    monkeypatch.setattr(trust_bench, "SIZES", {**SIZES, "smoke": few})
    monkeypatch.setattr(trust_bench, "_MOST_TOGETHER", 2)
    measured, begun = trust_bench._measured, []

    def counted(*arguments: Any) -> dict[str, Tensor]:
        begun.append(arguments[-1])
        return measured(*arguments)

    monkeypatch.setattr(trust_bench, "_measured", counted)
    workspace = Workspace(tmp_path)
    cells = [TrustCell(SMOKE, case="lr_2d", shift="n_8", most=most) for most in (3, None)]
    for cell, number in zip(cells, (3, 5), strict=True):
        assert run_cells([cell], workspace).run == 1
        (newest,) = workspace.store.results()
        assert newest.figures["datasets"]["mean"] == number
    # The last chunk of three has one dataset where that of five has two.
    assert begun == [0, 2, 2, 4]
    assert trust_cells(SMOKE, ["lr_2d"], ["n_8"], 3) == cells[:1]


def test_references_of_some_datasets_are_those_of_all() -> None:
    model = build_model("gaussian_mixture", components=2)
    dataset = draw_shifted(model, 2, SHIFTS["n_8"], 3, 0)
    how = (in_order, SIZES["smoke"].chains, 100.0, 0, "mixtures")
    whole = reference_of(model, dataset, *how)
    some = reference_of_some(torch.tensor([True, False, True]), model, dataset, *how)
    assert some.usable.tolist() == [True, False, True]
    assert some.highest is not None
    assert some.highest.isfinite().tolist() == [True, False, True]
    # Random numbers go by place, so that the first alone has the same.
    torch.testing.assert_close(some.moments.mean[0], whole.moments.mean[0])
    assert ((some.moments.mean[2] - whole.moments.mean[2]).abs() < 0.2 * whole.moments.sd[2]).all()
    none = reference_of_some(torch.zeros(3, dtype=torch.bool), model, dataset, *how)
    assert not none.usable.any()


def _result(case: str, condition: str, **figures: float) -> Result:
    entries = {name: {"mean": value, "standard_error": None} for name, value in figures.items()}
    return Result({"case": case, "shift": condition}, BENCH, case, condition, "smoke", 0, entries,
                  {"parameters": 3, "seconds": 1.0}, {}, "")


def test_goals_say_no_where_a_cell_misses_them() -> None:
    inside = {"share_amortized": 0.6, "share_reweighted": 0.2, "trusted_accurate": 0.99, "seconds_per_dataset": 0.5,
              "nuts_seconds_per_dataset": 6.0, "datasets": 100.0, "no_reference": 0.0, "wrong_trusted": 0.0,
              "q_wrong": 0.0, "q_wrong_kept": 0.0}
    outside = inside | {"wrong_trusted": 2.0, "q_wrong": 50.0}
    found = verdicts([_result("lr_2d", "in_distribution", **inside), _result("lr_2d", "n_8", **outside),
                      _result(BROKEN, "shifted", caught=0.5)])
    assert [verdict.reached for verdict in found[:6]] == [False, True, True, False, True, True]
    assert "lr_2d in_distribution 0.8" in found[0].line
    assert [v.reached for v in found if "moved by one sd" in v.goal] == [False]
    assert [v.reached for v in found if "too narrow" in v.goal] == [None]
    assert "**no**" in found[3].line


def test_the_command_reports_what_there_is_and_names_what_does_not_exist(tmp_path: Path) -> None:
    command = ["bench", "trust", "--out", str(tmp_path), "--report-only"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "reports" / "trust_smoke.md").read_text(encoding="utf-8")
    assert text.count("not measured.") == 6 + len(FAULTS)
    assert CliRunner().invoke(app, [*command, "--case", "lr_3d"]).exit_code == 2


def test_chains_that_came_from_far_away_are_no_reference() -> None:
    draws = torch.randn(2, 8, 1000, 3, generator=generator_for(0), dtype=torch.double)
    draws[1, 0, :100, 1] += 20.0
    assert steady(draws, 2000.0).tolist() == [True, False]
