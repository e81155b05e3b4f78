"""Neural models: outputs against torch.nn, Jacobian products against autograd, groups, errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posteria.errors import InputError
from posteria.models import NeuralClassification, NeuralRegression
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.types import Dataset

CASES = [
    NeuralRegression(hidden=4),
    NeuralRegression(hidden=4, layers=2, activation="tanh"),
    NeuralClassification(hidden=4, classes=3, activation="tanh"),
    NeuralClassification(hidden=4, classes=3, layers=2),
]
IDS = ["regression-1", "regression-2", "classification-1", "classification-2"]


def _inputs(rows: int = 5, columns: int = 3) -> Dataset:
    return Dataset.of(torch.randn(2, rows, columns, generator=generator_for(0)), torch.zeros(2, rows))


def _theta(model: Any, draws: int = 3, columns: int = 3) -> Tensor:
    return torch.randn(2, draws, model.layout(columns).size, generator=generator_for(1))


@pytest.mark.parametrize("model", CASES, ids=IDS)
def test_outputs_are_those_of_a_plain_network(model: Any) -> None:
    dataset, theta = _inputs(), _theta(model)
    values = {name: value[1, 2] for name, value in model.layout(3).constrain(theta).items()}
    act = {"relu": nn.functional.relu, "tanh": torch.tanh}[model.activation]
    level = act(dataset.x[1] @ values["hidden_weights"].T + values["hidden_bias"])
    if model.layers == 2:
        level = act(level @ values["hidden2_weights"].T)
    expected = level @ values["output_weights"].reshape(-1, 4).T
    torch.testing.assert_close(model.linearize(theta, dataset).outputs[1, 2], expected)


@pytest.mark.parametrize("model", CASES, ids=IDS)
def test_jacobian_products(model: Any) -> None:
    dataset, theta = _inputs(), _theta(model).double()
    dataset = replace(dataset, x=dataset.x.double())
    line = model.linearize(theta, dataset)
    outputs = line.outputs.shape[-1]

    def one(point: Tensor) -> Tensor:
        return model.linearize(point[None, None], dataset[1:2]).outputs[0, 0]

    jacobian: Tensor = torch.autograd.functional.jacobian(one, theta[1, 2])  # type: ignore[assignment]
    cotangent = torch.randn(2, 3, 5, outputs, generator=generator_for(2)).double()
    root = torch.randn(2, 3, 5, outputs, 2, generator=generator_for(3)).double()
    pulled = torch.einsum("nk,nkp->p", cotangent[1, 2], jacobian)
    rooted = torch.einsum("nkr,nkp->nrp", root[1, 2], jacobian).flatten(0, 1)
    torch.testing.assert_close(line.pull_back(cotangent)[1, 2], pulled)
    torch.testing.assert_close(line.jacobian(root)[1, 2], rooted)
    torch.testing.assert_close(line.pull_back_squared(root)[1, 2], (rooted**2).sum(0))


def test_groups_and_sizes() -> None:
    one = NeuralRegression(hidden=3).layout(2)
    assert one.groups["hidden"].tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2]
    assert one.groups["features"].tolist() == [0, 1] * 3 + [-1] * 6
    two = NeuralClassification(hidden=3, layers=2, classes=2).layout(2)
    assert set(two.groups) == {"hidden", "features", "hidden2", "classes"}
    assert NeuralRegression().layout(1).size == 96
    assert NeuralRegression().layout(100).size == 3264
    assert NeuralRegression(layers=2).exchangeable_axes == ("hidden", "hidden2")


@pytest.mark.parametrize(("options", "message"), [
    ({"hidden": 0}, "hidden: got 0"),
    ({"hidden": 2.5}, "hidden: got 2.5"),
    ({"layers": 3}, "layers: got 3; takes 1 or 2"),
    ({"activation": "gelu"}, r"activation: got 'gelu'; takes one of \['relu', 'tanh'\]"),
    ({"noise": -1.0}, "noise_variance"),
    ({"noise": "known"}, "noise: got 'known'"),
])
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NeuralRegression(**options)


@pytest.mark.parametrize(("options", "message"), [
    ({"classes": 1}, "classes: got 1"),
    ({"temperature": 0.0}, "temperature: got 0.0"),
])
def test_bad_class_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NeuralClassification(**options)


def test_blocks_of_datasets_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch):
    model = NeuralRegression(hidden=4)
    dataset = SimulatedTask(model, (6, 9), (1, 3)).draw(7, generator_for(0))[0].double()
    theta = torch.randn(7, 3, model.layout_of(dataset).size, dtype=torch.double, generator=generator_for(1))
    asked = (model.likelihood_score, model.conditional, lambda t, d: (model.row_log_prob(t, d),))
    wholes = [function(theta, dataset) for function in asked]
    for networks in (6, 2):  # two datasets at once; a part of the draws of one
        monkeypatch.setattr("posteria.models.blocks._CACHED", networks * dataset.x.shape[1] * 4)
        for function, whole in zip(asked, wholes, strict=True):
            for value, expected in zip(function(theta, dataset), whole, strict=True):
                torch.testing.assert_close(value, expected)
