"""The loop: learning, schedules, budgets, averages, guards, logs, and what a person is told."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch

from posteria.errors import InputError, TrainingError
from posteria.estimator import Estimator
from posteria.models import build_model
from posteria.objectives import ForwardKL
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.training import Recipe, build, fit, train
from posteria.training.log import read_csv_log
from tests.training.problems import assert_same, state, tiny, without_time


class Spoiled:
    """A task whose datasets are NaN at some draws."""

    def __init__(self, task: SimulatedTask, when: Any):
        self.task, self.when, self.draws = task, when, 0
        self.rows, self.columns, self.model = task.rows, task.columns, task.model

    def pick(self, generator: torch.Generator) -> Any:
        return self

    def draw(self, num_datasets: int, generator: torch.Generator, device: Any = "cpu",
             rows: int | None = None) -> Any:
        dataset, theta = self.task.draw(num_datasets, generator, device, rows)
        if rows is None:  # validation asks for rows
            self.draws += 1
            theta = theta * torch.nan if self.when(self.draws) else theta
        return dataset, theta


_SMALL_ITERATIVE = {"name": "iterative", "options": {"layers": 2, "width": 16}}
_SMALL_DEEPSETS = {"name": "deepsets", "options": {"layers": 2, "width": 64}}


@pytest.mark.parametrize(("encoder", "density", "objective", "steps", "reaches"), [
    (_SMALL_ITERATIVE, "gaussian", "reverse_kl", 60, 0.2),
    (_SMALL_ITERATIVE, "full", "forward_kl", 60, 0.05),
    (_SMALL_DEEPSETS, "gaussian", "forward_kl", 400, 4.0),
])
def test_it_learns(encoder: Any, density: str, objective: str, steps: int, reaches: float) -> None:
    config = tiny(encoder=encoder, density=density, objective=objective, steps=steps, batch_size=32,
                  validate_every=steps)
    last = train(config).history[-1]
    assert last["symmetric_kl"] < reaches
    assert last["skipped"] == 0


def test_history_has_the_figures() -> None:
    seen: list[dict[str, float]] = []
    history = train(tiny(), callbacks=[seen.append]).history
    assert [row["step"] for row in history] == [10, 20, 30, 40]
    assert list(history[0]) == ["step", "elapsed_seconds", "loss", "gradient_norm", "learning_rate", "skipped",
                                "symmetric_kl", "log_predictive", "negative_elbo"]
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert seen == history


def test_validation_is_spread_over_the_budget_by_default() -> None:
    assert [row["step"] for row in train(tiny(validate_every=None)).history] == list(range(2, 41, 2))


def test_same_seed_same_weights_and_another_seed_others() -> None:
    first, second, other = train(tiny()), train(tiny()), train(tiny(seed=1))
    assert_same(first.estimator, second.estimator)
    assert without_time(first.history) == without_time(second.history)
    weight = next(iter(state(first.estimator)))
    assert not torch.equal(state(first.estimator)[weight], state(other.estimator)[weight])


def test_global_random_state_and_mode_are_left_alone() -> None:
    before = torch.get_rng_state()
    result = train(tiny(steps=5))
    assert torch.equal(before, torch.get_rng_state())
    assert not result.estimator.training


def test_validation_does_not_touch_training() -> None:
    assert_same(train(tiny(validate_every=3)).estimator, train(tiny(validate_every=40)).estimator)


def test_averaged_weights_are_what_comes_out() -> None:
    averaged, plain = train(tiny(ema=0.999)), train(tiny(ema=None))
    assert without_time(averaged.history)[0]["loss"] == without_time(plain.history)[0]["loss"]
    assert averaged.history[-1]["symmetric_kl"] != plain.history[-1]["symmetric_kl"]


def test_minutes_budget_ends_in_time() -> None:
    began = time.perf_counter()
    history = train(tiny(steps=None, minutes=0.02, validate_every=None)).history
    assert 1.2 <= history[-1]["elapsed_seconds"] < 6.0
    assert time.perf_counter() - began < 12.0
    assert history[-1]["learning_rate"] < 0.1 * 3e-3


def test_trained_estimator_is_saved_and_loads(tmp_path: Any) -> None:
    result = train(tiny(), out=tmp_path / "run")
    loaded = Estimator.load(tmp_path / "run")
    assert_same(result.estimator, loaded)
    assert loaded.info.training["seed"] == 0
    assert loaded.info.training["result"]["step"] == 40
    assert without_time(read_csv_log(tmp_path / "run" / "log.csv")) == without_time(result.history)


def test_tensorboard_is_written_when_asked_for(tmp_path: Any) -> None:
    pytest.importorskip("tensorboard")
    train(tiny(steps=10, tensorboard=True), out=tmp_path)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_few_bad_steps_are_skipped_and_counted() -> None:
    estimator, task, objective = build(tiny())
    history = fit(estimator, Spoiled(task, lambda n: n % 7 == 0), objective, tiny()).history
    assert history[-1]["skipped"] == 5
    assert all(math.isfinite(row["loss"]) for row in history)
    assert all(torch.isfinite(p).all() for p in estimator.parameters())


def test_a_bad_step_changes_nothing() -> None:
    estimator, task, objective = build(tiny())
    before = state(estimator)
    fit(estimator, Spoiled(task, lambda n: True), objective, tiny(steps=3))
    assert all(torch.equal(before[name], value) for name, value in estimator.state_dict().items())


def test_failed_factorisations_count_as_bad_steps() -> None:
    estimator, task, _ = build(tiny())

    class Fails(ForwardKL):
        def __call__(self, *args: Any) -> torch.Tensor:
            return super().__call__(*args) * torch.linalg.cholesky(-torch.eye(1)).sum()

    assert fit(estimator, task, Fails(), tiny(steps=3)).history[-1]["skipped"] == 3


def test_bad_steps_in_a_row_end_the_run() -> None:
    estimator, task, objective = build(tiny())
    with pytest.raises(TrainingError, match=r"10 of 20 steps \(10 in a row\).*learning rate.*likelihood"):
        fit(estimator, Spoiled(task, lambda n: n > 10), objective, tiny(steps=1000, patience=10, validate_every=1000))


def test_too_many_bad_steps_end_the_run() -> None:
    estimator, task, objective = build(tiny())
    with pytest.raises(TrainingError, match="not finite in 1"):
        fit(estimator, Spoiled(task, lambda n: n % 3 == 0), objective, tiny(steps=1000, validate_every=1000))


def test_a_run_that_diverged_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posteria.training.run.Validation.__call__", lambda *args: {"negative_elbo": 1e9})
    with pytest.warns(UserWarning, match="training has diverged"):
        train(tiny())


def test_objects_train_without_names(tmp_path: Any) -> None:
    estimator, task, objective = build(tiny())
    recipe = Recipe.of(steps=20, batch_size=8, device="cpu")
    result = fit(estimator, task, objective, recipe, out=tmp_path)
    assert result.estimator is estimator
    assert estimator.info.training["steps"] == 20


@pytest.mark.parametrize("device", ["nowhere", "cuda:77"])
def test_missing_devices_are_named(device: str) -> None:
    with pytest.raises(InputError, match=f"device: got '{device}'"):
        train(tiny(device=device))


def test_low_precision_runs() -> None:
    assert math.isfinite(train(tiny(steps=3, precision="bf16")).history[-1]["loss"])


def test_variable_features_are_masked_for_the_paper_s_encoders_only() -> None:
    options = {"name": "simulated", "options": {"rows": [6, 10], "columns": [1, 4]}}
    _, task, _ = build(tiny(task=options))
    assert isinstance(task, SimulatedTask)
    assert task.vary_features == "dataset"
    _, task, _ = build(tiny(task=options, encoder="iterative"))
    assert isinstance(task, SimulatedTask)
    assert task.vary_features == "batch"
    assert train(tiny(task=options, steps=5)).history


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(99)
    first, *_ = build(tiny())
    torch.rand(1)
    assert_same(first, build(tiny())[0])


def test_the_first_batch_is_the_documented_one() -> None:
    """A step's data depend on (seed, step) alone."""
    drawn: list[torch.Tensor] = []
    estimator, task, objective = build(tiny())

    class Watched(Spoiled):
        def draw(self, *args: Any, **kwargs: Any) -> Any:
            dataset, theta = super().draw(*args, **kwargs)
            drawn.append(theta)
            return dataset, theta

    assert isinstance(task, SimulatedTask)
    fit(estimator, Watched(task, lambda n: False), objective, tiny(steps=3))
    expected = task.draw(8, generator_for(0, 2))[1]
    assert any(torch.equal(theta, expected) for theta in drawn)


def test_the_task_may_have_a_model_object_of_its_own() -> None:
    """An equal model built twice, with networks of one size, which serve one model only."""
    estimator, _, objective = build(tiny(steps=1))
    model = build_model(estimator.model.name, **estimator.model.options())
    task = SimulatedTask(model, (8, 12), estimator.info.columns)
    assert task.model is not estimator.model
    assert fit(estimator, task, objective, tiny(steps=1)).history[-1]["skipped"] == 0
