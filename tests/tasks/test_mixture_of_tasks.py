"""A mixture of tasks: how often each is drawn, sizes, and when there is a theta."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posteria.errors import InputError
from posteria.models import build_model
from posteria.models.linear import LinearRegression
from posteria.randomness import generator_for
from posteria.tasks import MixtureOfTasks, SimulatedTask
from posteria.tasks.mixture_of_tasks import COMPONENTS

SMALL = {"name": "simulated", "options": {"rows": (3, 5)}}
LARGE = {"name": "simulated", "options": {"rows": [20, 30], "rows_scale": "log"}}


def test_tasks_are_drawn_in_proportion_to_their_weights() -> None:
    task = MixtureOfTasks(LinearRegression(), [SMALL, LARGE], weights=[3, 1])
    small = [task.draw(1, generator_for(0, step))[0].x.shape[1] <= 5 for step in range(600)]
    assert abs(sum(small) / 600 - 0.75) < 4 * (0.75 * 0.25 / 600) ** 0.5


def test_weights_are_equal_by_default() -> None:
    task = MixtureOfTasks(LinearRegression(), [SMALL, LARGE])
    small = [task.draw(1, generator_for(1, step))[0].x.shape[1] <= 5 for step in range(400)]
    assert abs(sum(small) / 400 - 0.5) < 4 * 0.5 / 400**0.5
    assert task.weights == (1.0, 1.0)


def test_a_batch_is_one_component_s_own() -> None:
    task = MixtureOfTasks(LinearRegression(), [SMALL], columns=(1, 3))
    dataset, theta = task.draw(4, generator_for(2))
    generator = generator_for(2)
    task._choice(generator)
    expected, its_theta = SimulatedTask(LinearRegression(), (3, 5), (1, 3)).draw(4, generator)
    assert theta is not None
    assert torch.equal(dataset.x, expected.x)
    assert torch.equal(theta, its_theta)


def test_sizes_cover_all_components() -> None:
    task = MixtureOfTasks(LinearRegression(), [LARGE, SMALL, "gaussian_process"], columns=(2, 4))
    assert task.rows == (3, 128)
    assert task.columns == (2, 4)
    assert {component.columns for component in task.tasks} == {(2, 4)}


def test_theta_only_where_all_give_it() -> None:
    model = LinearRegression()
    with_theta, without = (MixtureOfTasks(model, tasks) for tasks in ([SMALL, LARGE], [SMALL, "gaussian_process"]))
    assert with_theta.gives_theta
    assert not without.gives_theta
    for step in range(8):
        assert with_theta.draw(2, generator_for(3, step))[1] is not None
        assert without.draw(2, generator_for(3, step))[1] is None


def test_masked_components_have_one_width() -> None:
    task = MixtureOfTasks(LinearRegression(), ["simulated", "standardised", "gaussian_process"], columns=(1, 3))
    widths = {task.masked().draw(2, generator_for(4, step), rows=6)[0].x.shape[-1] for step in range(12)}
    assert widths == {3}


@pytest.mark.parametrize(("options", "message"), [
    ({"tasks": []}, "tasks: got"), ({"tasks": "simulated"}, "tasks: got 'simulated'; takes a list"),
    ({"tasks": ["nonsense"]}, f"tasks: got 'nonsense'; takes one of .*{sorted(COMPONENTS)[0]}"),
    ({"tasks": ["mixture_of_tasks"]}, "tasks: got 'mixture_of_tasks'"),
    ({"tasks": [3]}, "tasks: got 3"), ({"tasks": [{"options": {}}]}, "tasks: got"),
    ({"tasks": [{"name": "simulated", "rows": [1, 2]}]}, "tasks: got"),
    ({"tasks": [{"name": "simulated", "options": {"columns": [1, 1]}}]}, "these as options of the mixture"),
    ({"tasks": [{"name": "simulated", "options": {"row": [1, 1]}}]}, "options of task simulated"),
    ({"tasks": [{"name": "other_model"}]}, "options of task other_model"),
    ({"tasks": [SMALL], "weights": [1, 1]}, "weights"), ({"tasks": [SMALL], "weights": [0]}, "weights"),
    ({"tasks": [SMALL], "weights": [float("nan")]}, "weights"), ({"tasks": [SMALL], "columns": (0, 1)}, "columns"),
])
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MixtureOfTasks(LinearRegression(), **options)


def test_components_that_refuse_the_model_say_so() -> None:
    with pytest.raises(InputError, match="a model of a real y"):
        MixtureOfTasks(build_model("gaussian_mean"), ["gaussian_process"])
