"""The calibration check: exact posteriors pass, wrong ones fail, and by the tests that should see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posteria.calibrate import CalibrationReport, check_calibration, exact_posterior_of
from posteria.densities.gaussian import GaussianTheta
from posteria.errors import InputError, UnsupportedError
from posteria.models.base import Model
from posteria.models.gaussian import GaussianMean
from posteria.models.linear import LinearRegression
from posteria.posterior import Posterior
from posteria.tasks import SimulatedTask
from posteria.types import Dataset
from tests.doubles import DiagonalGaussian, ScaledCounts, gaussian_for

Fault = Callable[[GaussianTheta], GaussianTheta]


class OffCentre(LinearRegression):
    """Features have mean 1, so that intercept and weights are correlated (about -0.6)."""

    def draw_inputs(self, num_datasets: int, rows: int, columns: int, generator: torch.Generator | None,
                    device: torch.device | str = "cpu") -> Tensor:
        return 1.0 + super().draw_inputs(num_datasets, rows, columns, generator, device)


def narrow(exact: GaussianTheta, by: float = 0.8) -> GaussianTheta:
    assert exact.factor is not None
    return replace(exact, factor=exact.factor / by)


def shifted(exact: GaussianTheta) -> GaussianTheta:
    return replace(exact, mean=exact.mean + 0.3 * exact.variance.sqrt())


def flipped(exact: GaussianTheta) -> GaussianTheta:
    """The last parameter's correlations with the others with the wrong sign."""
    assert exact.factor is not None
    sign = torch.ones_like(exact.mean[0])
    sign[-1] = -1.0
    precision = exact.factor @ exact.factor.mT * sign * sign[:, None]
    return replace(exact, factor=torch.linalg.cholesky(precision))


def prior(exact: GaussianTheta) -> GaussianTheta:
    return replace(exact, mean=torch.zeros_like(exact.mean), factor=None)


MODELS: dict[str, Model] = {"mean": GaussianMean([[1.0, 0.6], [0.6, 1.0]]), "regression": OffCentre()}


def check(name: str, fault: Fault = lambda exact: exact, num_datasets: int = 1000, seed: int = 0,
          **options: float) -> CalibrationReport:
    model = MODELS[name]
    exact = exact_posterior_of(model)
    task = SimulatedTask(model, (64, 128), (2, 2))
    return check_calibration(lambda dataset: fault(exact(dataset)), task, model, num_datasets, seed=seed,
                             **options)  # type: ignore[arg-type]


def failing(report: CalibrationReport) -> set[tuple[str, str]]:
    return {(verdict.test.kind, verdict.test.name) for verdict in report.calibration.failing}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_exact_posteriors_pass(name: str) -> None:
    for seed in range(3):
        report = check(name, seed=seed)
        assert report.passes, report.summary
        coverage = report.coverage()
        error = (coverage.columns * (1 - coverage.columns) / 1000) ** 0.5
        assert ((coverage - coverage.columns).abs() < 4 * error.to_numpy()).all(axis=None)


def test_false_alarms_are_as_rare_as_stated() -> None:
    """60 runs at level 80%: 12 false alarms on average, fewer by Holm's correction."""
    failed = sum(not check("mean", num_datasets=40, seed=seed, level=0.8, num_samples=49).passes for seed in range(60))
    assert 2 <= failed <= 23


@pytest.mark.slow
def test_the_rate_of_false_alarms_over_many_runs() -> None:
    failed = sum(not check("mean", num_datasets=100, seed=seed, level=0.95).passes for seed in range(500))
    assert 8 <= failed <= 25 + 4 * (500 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_a_wrong_spread_fails_everywhere(name: str, scale: float) -> None:
    report = check(name, lambda exact: narrow(exact, scale))
    assert failing(report) == {(v.test.kind, v.test.name) for v in report.calibration.verdicts}
    leans = report.to_frame().loc["central"].leaning
    assert set(leans) == {"too narrow" if scale < 1 else "too wide"}
    assert "Not calibrated" in report.summary


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_shift_fails_in_the_ranks_of_parameters(name: str) -> None:
    report = check(name, shifted)
    assert {("rank", parameter) for parameter in report.parameters} <= failing(report)
    assert set(report.to_frame().loc["rank"].leaning[list(report.parameters)]) == {"too high"}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_wrong_correlations_fail_in_joint_quantities_only(name: str) -> None:
    found = failing(check(name, flipped))
    joint = {("rank", "log joint"), ("rank", "log likelihood"), ("rank", "projection"), ("hpd", "log density")}
    assert joint <= found <= joint | {("tarp", "distance")}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_prior_fails_in_quantities_that_look_at_the_data(name: str) -> None:
    quantities = ("log joint", "log likelihood", "projection")
    assert failing(check(name, prior)) == {("rank", quantity) for quantity in quantities}


@pytest.mark.parametrize("fault", [narrow, shifted, flipped])
def test_five_hundred_datasets_find_each_fault(fault: Fault) -> None:
    assert not any(check(name, fault, num_datasets=500, seed=seed).passes for name in MODELS for seed in range(2))


def test_datasets_may_have_different_features_and_padding() -> None:
    model = LinearRegression()
    task = SimulatedTask(model, (10, 20), (1, 4), vary_features="dataset")
    report = check_calibration(exact_posterior_of(model), task, model, 300)
    assert report.passes, report.summary
    sizes = {name: len(ranks) for name, ranks in report.parameters.items()}
    assert sizes["intercept"] == sizes["weights[0]"] == 300 > sizes["weights[1]"] > sizes["weights[3]"] > 30
    batches = check_calibration(exact_posterior_of(model), SimulatedTask(model, (10, 20), (1, 4)), model, 300)
    assert batches.passes, batches.summary
    assert set(batches.parameters) == set(sizes)


def test_a_posterior_object_and_constrained_scalars() -> None:
    """Names and supports come from the model; a made-up posterior fails, and the user's own quantity is tested too."""
    model = ScaledCounts()
    done: list[int] = []
    report = check_calibration(lambda dataset: Posterior(model, dataset, gaussian_for(model, dataset)),
                               SimulatedTask(model, (8, 8), (2, 3)), model, 50, 19,
                               quantities={"first": lambda points, dataset: points[..., 0]}, progress=done.append)
    assert set(report.parameters) == {"weights[0]", "weights[1]", "shift[0]", "shift[1]", "noise_scale"}
    assert set(report.quantities) == {"log likelihood", "log joint", "projection", "first"}
    assert (report.passes, done) == (False, [20, 40, 50])


def test_what_cannot_be_tested_is_noted() -> None:
    class Simulator(ScaledCounts):
        has_likelihood = False

    class Draws(DiagonalGaussian):
        def log_prob(self, theta: Tensor) -> Tensor:
            raise UnsupportedError("draws have no density")

    def posterior_of(dataset: Dataset) -> Draws:
        gaussian = gaussian_for(model, dataset)
        return Draws(gaussian.location, gaussian.scale, gaussian.active)

    model = Simulator()
    report = check_calibration(posterior_of, SimulatedTask(model, (8, 8), (2, 2)), model, 20, 19)
    assert (set(report.quantities), set(report.regions)) == (set(), {"tarp"})
    assert [note.split()[0] for note in report.notes] == ["scaled_counts", "The"]


def test_a_seed_repeats_the_report_and_json_holds_it() -> None:
    first, again, other = (check("mean", narrow, 60, seed) for seed in (1, 1, 2))
    assert first.to_json() == again.to_json() != other.to_json()
    values = json.loads(json.dumps(first.to_json()))
    assert values["passes"] == first.passes
    assert len(values["tests"]) == len(first.to_frame()) == 9
    assert set(values["central_coverage"]["mean[0]"]) == {"0.5", "0.8", "0.95"}
    assert str(check("mean", num_datasets=60)).startswith("Calibrated as far as seen: all 9 tests pass")


def test_numbers_and_tasks_that_do_not_do_are_refused() -> None:
    model = MODELS["mean"]
    task, exact = SimulatedTask(model), exact_posterior_of(model)
    with pytest.raises(InputError, match="num_datasets: got 5; takes 20 or more"):
        check_calibration(exact, task, model, 5)
    with pytest.raises(InputError, match="num_samples: got 5; takes 19 or more"):
        check_calibration(exact, task, model, 50, 5)
    with pytest.raises(InputError, match=r"level: got 2\.0"):
        check_calibration(exact, task, model, 50, level=2.0)
    task.gives_theta = False
    with pytest.raises(UnsupportedError, match="task: got SimulatedTask"):
        check_calibration(exact, task, model, 50)
