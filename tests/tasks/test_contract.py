"""What every registered task keeps: sizes, masks, seeds, and rebuilding from its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posteria.errors import InputError, UnsupportedError
from posteria.models.linear import LinearRegression
from posteria.objectives import ForwardKL, Step
from posteria.randomness import generator_for
from posteria.tasks import TASKS
from posteria.training import TrainConfig, train
from posteria.training import build as make_parts
from tests.doubles import gaussian_for

NETWORK = {"name": "neural_regression", "options": {"hidden": 4, "activation": "tanh"}}
REAL = {"folder": str(Path(__file__).parent / "tables"), "target": "y"}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("simulated", {}),
    ("standardised", {}),
    ("gaussian_process", {"lengthscale": (0.5, 2.0)}),
    ("other_model", {"source": NETWORK}),
    ("real_tables", REAL),
    ("many_models", {"families": ["logistic", "linear"]}),
    ("mixture_of_tasks", {"tasks": ["simulated", {"name": "other_model", "options": {"source": NETWORK}}]}),
    ("mixture_of_tasks", {"tasks": ["simulated", {"name": "simulated", "options": {"rows": (3, 4)}}]}),
]
# Every batch has a model of its own, and no estimator of one size could take them.
NEVER_MASKED = ("many_models",)


def build(name: str, options: dict[str, Any], **sizes: Any) -> Any:
    if name != "mixture_of_tasks":
        sizes = {"rows": (6, 12), **sizes}
    return TASKS[name](LinearRegression(), **options, **sizes)


def test_every_task_is_covered() -> None:
    assert {name for name, _ in VARIANTS} == set(TASKS)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
class TestContract:
    def test_datasets_are_whole_and_the_models(self, name: str, options: dict[str, Any]) -> None:
        task = build(name, options, columns=(1, 4))
        for seed in range(4):
            dataset, theta = task.draw(5, generator_for(seed))
            task.model.check(dataset)
            assert dataset.y is not None
            assert dataset.y.dtype == dataset.x.dtype == torch.float32
            assert torch.isfinite(dataset.x).all()
            assert torch.isfinite(dataset.y).all()
            assert task.rows[0] <= dataset.x.shape[1] <= task.rows[1]
            assert task.columns[0] <= dataset.x.shape[2] <= task.columns[1]
            assert (theta is not None) == task.gives_theta
            assert theta is None or theta.shape == (5, dataset.x.shape[2] + 1)

    def test_rows_are_fixed_on_request(self, name: str, options: dict[str, Any]) -> None:
        assert build(name, options, columns=(2, 2)).draw(3, generator_for(1), rows=17)[0].x.shape == (3, 17, 2)

    def test_a_draw_repeats_with_its_seed_and_differs_with_another(self, name: str, options: dict[str, Any]) -> None:
        task = build(name, options, columns=(1, 4))
        first, again, other = (task.draw(4, generator_for(seed), rows=9)[0] for seed in (3, 3, 4))
        assert first.y is not None
        assert again.y is not None
        assert torch.equal(first.x, again.x)
        assert torch.equal(first.y, again.y)
        assert first.x.shape != other.x.shape or not torch.equal(first.x, other.x)

    def test_global_state_is_left_alone(self, name: str, options: dict[str, Any]) -> None:
        before = torch.get_rng_state()
        build(name, options, columns=(1, 2)).draw(3, generator_for(2))
        assert torch.equal(before, torch.get_rng_state())

    def test_masked_has_the_most_columns_and_zeros_behind_the_mask(self, name: str, options: dict[str, Any]) -> None:
        task = build(name, options, columns=(1, 4))
        if name in NEVER_MASKED:
            with pytest.raises(InputError, match="shared=True"):
                task.masked()
            return
        task, seen = task.masked(), set()
        for seed in range(4):
            dataset, _ = task.draw(20, generator_for(seed))
            assert dataset.x.shape[-1] == 4
            assert (dataset.x[~dataset.features[:, None].expand_as(dataset.x)] == 0).all()
            seen |= set(dataset.num_features.tolist())
        assert seen == {1, 2, 3, 4}

    def test_options_are_json_and_build_it_again(self, name: str, options: dict[str, Any]) -> None:
        task = build(name, options, columns=(1, 3))
        again = TASKS[name](task.model, **json.loads(json.dumps(task.options())))
        assert again.options() == task.options()
        first, second = (t.draw(4, generator_for(5))[0] for t in (task, again))
        assert torch.equal(first.x, second.x)
        assert torch.equal(first.y, second.y)

    def test_training_on_it_moves_the_weights(self, name: str, options: dict[str, Any]) -> None:
        sizes: dict[str, Any] = {} if name == "mixture_of_tasks" else {"rows": [6, 12]}
        task = {"name": name, "options": {**options, **sizes, "columns": [1, 2]}}
        small = {"name": "deepsets", "options": {"layers": 1, "width": 8}}
        encoder = {"name": "iterative", "options": {"shared": True}} if name in NEVER_MASKED else small
        result = train({"model": "linear_regression", "density": "gaussian", "steps": 2, "batch_size": 4,
                        "encoder": encoder, "task": task})
        assert result.history[-1]["skipped"] == 0
        assert torch.isfinite(torch.tensor(result.history[-1]["loss"]))

    def test_forward_kl_is_refused_exactly_where_there_is_no_theta(self, name: str, options: dict[str, Any]) -> None:
        task = build(name, options, columns=(2, 2))
        config = TrainConfig.of(model="linear_regression", steps=1, objective="forward_kl",
                                task={"name": name, "options": json.loads(json.dumps(task.options()))})
        if task.gives_theta:
            assert isinstance(make_parts(config)[2], ForwardKL)
            return
        with pytest.raises(UnsupportedError, match=rf"objective: got 'forward_kl' with the task '{name}'; takes"):
            make_parts(config)

    def test_a_gpu_draws_sizes_and_values_too(self, name: str, options: dict[str, Any]) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        task = build(name, options, columns=(1, 3))
        first, again = (task.draw(3, generator_for(6, device="cuda"), "cuda")[0] for _ in range(2))
        assert first.x.is_cuda
        assert first.y is not None
        assert again.y is not None
        assert torch.equal(first.y, again.y)


def test_the_objective_says_why_it_needs_theta() -> None:
    task = build("gaussian_process", {}, columns=(1, 1))
    dataset, theta = task.draw(2, generator_for(7))
    guess = gaussian_for(LinearRegression(), dataset)
    with pytest.raises(UnsupportedError, match=r"theta: got None; takes the parameters .* reverse_kl needs none"):
        ForwardKL()(guess, dataset, theta, task.model, Step())
