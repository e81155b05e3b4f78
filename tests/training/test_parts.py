"""Schedule, average, guard, log and validation, each alone."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal

from posteria.densities.gaussian import GaussianTheta
from posteria.errors import TrainingError, UnsupportedError
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.tasks import SimulatedTask
from posteria.training.average import WeightAverage
from posteria.training.guard import NonFiniteGuard, Window
from posteria.training.log import CsvLog, TensorBoardLog, read_csv_log
from posteria.training.schedule import Schedule
from posteria.training.validation import Validation
from posteria.types import Dataset
from tests.doubles import ScaledCounts, gaussian_for


def test_rate_rises_and_falls() -> None:
    schedule = Schedule(1000, None, learning_rate=2.0, warmup=0.1, decay="cosine")
    rates = [schedule.rate(step, schedule.progress(step, 0.0)) for step in range(1001)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates[50] == pytest.approx(1.0, rel=0.02)
    assert rates[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))


def test_constant_rate_and_warm_up_in_steps() -> None:
    schedule = Schedule(None, 2.0, learning_rate=1.0, warmup=4, decay="constant")
    assert [schedule.rate(step, 0.5) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Schedule(None, 2.0, 1.0, 0, "constant").rate(0, 0.0) == 1.0


def test_progress_by_time() -> None:
    schedule = Schedule(None, 2.0, 1.0, 0, "constant")
    assert [schedule.progress(10**9, seconds) for seconds in (0.0, 60.0, 120.0, 500.0)] == [0.0, 0.5, 1.0, 1.0]


def test_average_follows_its_recursion() -> None:
    module = torch.nn.Linear(2, 1)
    average, expected = WeightAverage(module, 0.5), module.weight.detach().clone()
    for step in range(4):
        with torch.no_grad():
            module.weight += 1.0
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    own = module.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight.detach(), own)
    average.apply()
    torch.testing.assert_close(module.weight.detach(), expected)


def test_no_average_is_the_weights() -> None:
    module = torch.nn.Linear(2, 1)
    own = module.weight.detach().clone()
    average = WeightAverage(module, None)
    average.update(0)
    with average.applied():
        assert torch.equal(module.weight.detach(), own)
    assert average.tensors() == {}


def test_guard_remembers_the_longest_row() -> None:
    guard = NonFiniteGuard("cpu", patience=3)
    for finite in (False, False, True, False, True):
        guard.count(torch.tensor(finite))
    guard.check(5)
    assert guard.skipped == 3
    other = NonFiniteGuard("cpu", patience=2)
    other.load(guard.tensors())
    with pytest.raises(TrainingError, match="2 in a row"):
        other.check(5)


def test_window_leaves_out_bad_steps() -> None:
    window = Window("cpu")
    assert math.isnan(window.mean_loss)
    for loss in (1.0, math.nan, 3.0):
        window.add(torch.tensor(loss), torch.tensor(2.0), torch.tensor(math.isfinite(loss)))
    assert window.means() == {"loss": 2.0, "gradient_norm": 2.0}


def test_csv_log_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path)
    for step in (1.0, 2.0, 3.0):
        log.write({"step": step, "loss": math.nan if step == 2 else 0.1})
    with path.open("a") as file:
        file.write("4,0.")  # cut by a kill
    again = CsvLog(path, last_step=2)
    again.write({"step": 5.0, "loss": 1.0})
    assert path.read_text() == "step,loss\n1,0.1\n2,nan\n5,1\n"
    assert [row["step"] for row in read_csv_log(path)] == [1, 2, 5]


def test_missing_tensorboard_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UnsupportedError, match="install it"):
        TensorBoardLog(tmp_path)


class _Exact:
    """An estimator that knows the answer, with its mean off by some standard deviations."""

    def __init__(self, model: Any, off: float = 0.0):
        self.model, self.off = model, off

    def for_model(self, model: Any) -> Any:
        return self

    def distribution(self, dataset: Dataset) -> GaussianTheta:
        exact: MultivariateNormal = self.model.exact_posterior(dataset)
        factor = torch.linalg.cholesky(exact.precision_matrix).float()
        mean = exact.mean + self.off * exact.variance.sqrt()
        return GaussianTheta(mean.float(), torch.ones_like(mean).float(), self.model.active(dataset), factor)


@pytest.mark.parametrize("vary", ["batch", "dataset"])
def test_exact_posterior_has_no_divergence(vary: Any) -> None:
    model = LinearRegression()
    validation = Validation(SimulatedTask(model, (10, 30), (1, 4), vary_features=vary), model)
    figures = validation(_Exact(model))
    assert list(figures) == ["symmetric_kl", "log_predictive", "negative_elbo"]
    assert abs(figures["symmetric_kl"]) < 1e-4
    assert validation(_Exact(model)) == figures


def test_divergence_of_a_shifted_gaussian() -> None:
    """One parameter off by s standard deviations: both divergences are s^2 / 2 per parameter."""
    model = LinearRegression()
    task = SimulatedTask(model, (40, 40), (1, 1))
    validation = Validation(task, model, num_samples=256)
    case = validation._cases[0].dataset
    exact = model.exact_posterior(case)
    shift = 0.3 * exact.variance.sqrt()
    expected = (0.5 * (shift[:, None] @ exact.precision_matrix @ shift[..., None])).mean().item() / 2
    figures = validation(_Exact(model, off=0.3))
    assert figures["symmetric_kl"] == pytest.approx(expected, rel=0.1)
    assert figures["log_predictive"] < validation(_Exact(model))["log_predictive"]


def test_models_without_exact_posterior_have_the_other_figures() -> None:
    for model, columns in ((LinearClassification(), (1, 3)), (ScaledCounts(), (2, 4))):
        task = SimulatedTask(model, (10, 20), columns)

        class Some:
            def __init__(self, model: Any):
                self.model = model

            def for_model(self, model: Any) -> Any:
                return self

            def distribution(self, dataset: Dataset) -> Any:
                return gaussian_for(self.model, dataset)

        figures = Validation(task, model)(Some(model))
        assert list(figures) == ["log_predictive", "negative_elbo"]
        assert all(math.isfinite(value) for value in figures.values())
