"""`posteria bench universal`: its optimization against known evidence, its cells, figures and report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from posteria.bench import universal_bench, universal_sizes
from posteria.bench.runner import Tally, run_cells
from posteria.bench.scales import scale_named
from posteria.bench.store import key_of
from posteria.bench.universal_bench import SIZES, Sizes, figures_of, universal_cells
from posteria.bench.universal_cases import CASES, HELD_OUT, NUTS_TOO, TRAINED, homes
from posteria.bench.universal_report import write_universal_report
from posteria.bench.universal_sizes import EVERY_FAMILY
from posteria.bench.variational import bound_of
from posteria.bench.workspace import Workspace
from posteria.densities.gaussian import GaussianTheta
from posteria.densities.skewed import SkewedTheta
from posteria.errors import InputError
from posteria.mixing import mixed
from posteria.models import LinearRegression
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from tests.problems import simulated


def test_the_skewed_density_has_the_moments_of_its_transform() -> None:
    """Means of sinh((arcsinh u + skew) / tail) by quadrature, within four standard errors."""
    active = torch.ones(1, 1, dtype=torch.bool)
    gaussian = GaussianTheta(torch.zeros(1, 1), torch.ones(1, 1), active)
    skewed = SkewedTheta(gaussian, torch.ones(1, 1), torch.full((1, 1), 0.5), torch.full((1, 1), 0.8))
    draws = skewed.rsample(100_000, generator_for(0))[0, :, 0].double()
    u = torch.linspace(-9, 9, 20_001, dtype=torch.double)
    weights = torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi) * (u[1] - u[0])
    values = torch.sinh((torch.asinh(u) + 0.5) / 0.8)
    assert abs(float(draws.mean() - (weights * values).sum())) < 4 * float(draws.std()) / 100_000**0.5
    x = torch.linspace(-40, 60, 200_001, dtype=torch.double)
    total = skewed.log_prob(x[None, :, None].float())[0].double().exp().sum() * (x[1] - x[0])
    assert float(total) == pytest.approx(1.0, abs=2e-3)


def test_every_family_of_training_has_a_cell_and_some_are_held_out() -> None:
    cells = universal_cells(scale_named("smoke"))
    assert {cell.case for cell in cells if cell.method_key == TRAINED} == {
        name for name, found in CASES.items() if TRAINED in found}
    assert {cell.case for cell in cells if cell.method_key == HELD_OUT} >= {"probit", "beta_binomial", "survival"}
    assert len({str(cell.identity) for cell in cells}) == len(cells)
    with pytest.raises(InputError, match="case: got"):
        universal_cells(scale_named("smoke"), ["no_such_family"])


def test_figures_of_known_columns() -> None:
    columns = {"passed": torch.tensor([1.0, 0.0, 1.0, 1.0]), "passed_cheaply": torch.ones(4),
               "ess": torch.tensor([900.0, 100.0, 500.0, 500.0]), "unfit": torch.zeros(4), "seconds": torch.ones(4),
               "batch": torch.tensor([0.0, 0.0, 1.0, 1.0]), "gap": torch.tensor([0.1, 0.3, math.nan, math.nan])}
    found = figures_of({name: values.double() for name, values in columns.items()})
    assert found["passed"]["mean"] == 0.75
    assert found["ess"] == {"mean": 500.0, "standard_error": 0.0}
    assert found["gap"]["mean"] == pytest.approx(0.2)
    assert found["optimised"]["mean"] == 2.0


def test_a_cell_runs_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "smoke", (Sizes(1, 3, 1, 5), Sizes(1, 1, 1, 5)))
    scale, workspace = scale_named("smoke"), Workspace(tmp_path)
    tally = run_cells(universal_cells(scale, ["logistic", "survival"], [TRAINED, HELD_OUT]), workspace)
    assert (tally.run, tally.failed) == (2, 0)
    paths = write_universal_report(scale, workspace.store, tmp_path / "reports")
    text = paths[0].read_text()
    assert "| logistic | trained |" in text
    assert "80% pass with refinement" in text


def test_a_cell_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "smoke", (Sizes(2, 3, 1, 5), Sizes(1, 1, 1, 5)))
    measured, begun = universal_bench._measured, []

    def counted(*arguments: Any) -> dict[str, Tensor]:
        begun.append(arguments[-1])
        if len(begun) == 2:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(universal_bench, "_measured", counted)
    workspace, cells = Workspace(tmp_path), universal_cells(scale_named("smoke"), ["survival"])
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, workspace)
    assert run_cells(cells, workspace).run == 1
    assert begun == [0, 1, 1]
    assert workspace.partial(key_of(cells[0].identity)).get(0) is None
    at_once = Workspace(tmp_path / "at_once")
    monkeypatch.setattr(universal_bench, "_measured", measured)
    assert run_cells(cells, at_once).run == 1
    killed, whole = (dict(place.store.results()[0].figures) for place in (workspace, at_once))
    for figures in (killed, whole):
        figures.pop("seconds")
    assert killed == whole


def test_quality_is_reported_by_size_and_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(universal_sizes._SIZES, "smoke", (2, 2))
    scale, workspace = scale_named("smoke"), Workspace(tmp_path)
    assert run_cells(universal_cells(scale, [EVERY_FAMILY]), workspace) == Tally(1, 0, 0)
    paths = write_universal_report(scale, workspace.store, tmp_path / "reports")
    table = pd.read_csv(paths[-1])
    assert set(table.by) == {"all", "rows", "features", "prior", "prior sd"}
    assert (table.groupby("by").datasets.sum() == 4).all()
    assert "| all | all | 4 |" in paths[0].read_text()


def test_groups_have_their_own_datasets_and_means() -> None:
    columns = {"rows": [4, 15, 16, 2000], "features": [1, 3, 4, 64], "prior sd": [0.1, 0.5, 2.0, 9.0],
               "prior": [0, 0, 1, 2], "passed": [1, 0, 1, 1],
               "passed_cheaply": [1, 1, 1, 1], "ess": [100, 300, 500, 900]}
    found = universal_sizes.figures_of({name: torch.tensor(v, dtype=torch.double) for name, v in columns.items()})
    means = {name: entry["mean"] for name, entry in found.items()}
    assert means["datasets, rows, 4 to 15"] == 2
    assert means["passed, rows, 4 to 15"] == 0.5
    assert means["ess, prior, Laplace"] == 500
    assert means["ess, prior sd, above 3"] == 900
    assert means["ess, all, all"] == 450
    assert "datasets, rows, 64 to 255" not in means


def test_answers_are_compared_with_nuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight schools, whose masked feature is no parameter of theirs."""
    monkeypatch.setitem(SIZES, "smoke", (Sizes(1, 5, 1, 5), Sizes(1, 5, 1, 5)))
    monkeypatch.setattr(universal_bench, "_NUTS", {"num_chains": 4, "num_samples": 500, "attempts": 1})
    scale, workspace = scale_named("smoke"), Workspace(tmp_path)
    assert run_cells(universal_cells(scale, ["eight_schools"], [NUTS_TOO]), workspace).failed == 0
    (result,) = workspace.store.results()
    assert result.record["parameters"] == [11, 11]
    compared = result.figures["compared"]["mean"]
    assert result.figures["near_up_to_chance"]["mean"] == (1.0 if compared else None)
    text = write_universal_report(scale, workspace.store, tmp_path / "reports")[0].read_text()
    assert f"of {compared:.0f} |" in text


def test_homes_are_in_counties_of_different_sizes() -> None:
    inputs = homes(generator_for(0))
    sizes = inputs.x[0, :, 0].long().bincount(minlength=85)
    assert (inputs.num_observations.item(), len(sizes)) == (919, 85)
    assert sizes.max() > 5 * sizes.float().median()
    assert set(inputs.x[0, :, 1].tolist()) == {0.0, 1.0}


def test_every_part_of_a_mixture_is_optimised() -> None:
    """Of a line with its noise known: two wrong Gaussians reach the evidence, which their mixture then has."""
    model = LinearRegression()
    dataset = simulated(model, 2, rows=30, batch=3)
    exact = model.exact_posterior(dataset)
    active, eye = model.active(dataset), torch.eye(3).expand(3, -1, -1)

    def moved(by: float) -> SkewedTheta:
        scale = 1.5 * exact.stddev.float()
        mean = exact.mean.float() + by * exact.stddev.float()
        return SkewedTheta(GaussianTheta(mean, scale, active, eye), scale, torch.zeros(3, 3), torch.ones(3, 3))

    posterior = Posterior(model, dataset, mixed([moved(1.0), moved(-0.5)], model, dataset))
    sizes = Sizes(batches=1, batch_size=3, optimised=1, steps=300)
    found = universal_bench._gaps(posterior, model, dataset, sizes, 0)["gap"]
    evidence = model.log_joint(exact.mean.float()[:, None], dataset)[:, 0] - exact.log_prob(exact.mean)
    own = bound_of(posterior.distribution, lambda theta: model.log_joint(theta, dataset))
    assert ((evidence - own) / dataset.num_observations - found).abs().max() < 2e-3
    assert universal_bench._gaps(posterior, model, dataset, sizes, 1)["gap"].isnan().all()
