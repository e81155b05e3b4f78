"""Data of another model than the assumed one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Normal

from posteria.errors import InputError, UnsupportedError
from posteria.models import build_model
from posteria.models.linear import LinearRegression
from posteria.models.neural import NeuralRegression
from posteria.randomness import generator_for
from posteria.tasks import OtherModelTask, SimulatedTask
from tests.doubles import ScaledCounts


def test_the_data_are_those_of_the_source() -> None:
    source, options = {"name": "linear_regression", "options": {"noise": 2.0}}, {"rows": (5, 9), "columns": (1, 3)}
    dataset, theta = OtherModelTask(NeuralRegression(hidden=4), source, **options).draw(6, generator_for(0))
    expected, _ = SimulatedTask(LinearRegression(noise=2.0), **options).draw(6, generator_for(0))
    assert theta is None
    assert dataset.y is not None
    assert expected.y is not None
    assert torch.equal(dataset.x, expected.x)
    assert torch.equal(dataset.y, expected.y)


def test_priors_and_options_of_the_source_are_used() -> None:
    zero = {"family": "normal", "loc": 0.0, "scale": 1e-6}
    source = {"name": "linear_regression", "options": {"noise": 4.0}, "priors": {"weights": zero, "intercept": zero}}
    y = OtherModelTask(LinearRegression(), source, (50, 50), (2, 2)).draw(400, generator_for(1))[0].y
    assert y is not None
    assert abs(y.mean()) < 4 * 2 / y.numel() ** 0.5
    assert abs(y.var() - 4.0) < 4 * 4 * (2 / y.numel()) ** 0.5


def test_sources_are_names_objects_or_parts() -> None:
    model = NeuralRegression(hidden=4)
    tasks = [OtherModelTask(model, s) for s in ("linear_regression", LinearRegression(), {"name": "linear_regression"})]
    first, second, third = (task.draw(2, generator_for(2))[0].x for task in tasks)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    # priors survive the round trip
    wide = LinearRegression(priors={"intercept": Normal(0.0, 50.0)})
    again = OtherModelTask(model, **OtherModelTask(model, wide).options())
    assert [float(parameter.prior.stddev) for parameter in again.source.parameters] == [1.0, 50.0]


def test_the_assumed_model_as_its_own_source_still_gives_no_theta() -> None:
    task = OtherModelTask(LinearRegression(), "linear_regression")
    assert not task.gives_theta
    assert task.draw(2, generator_for(3))[1] is None


@pytest.mark.parametrize(("model", "source", "message"), [
    ("linear_regression", "linear_classification", r"source: got .*'class'; takes a model with y of kind 'real'"),
    ("gaussian_mean", "linear_regression", r"takes a model with y of kind 'none'"),
    ("linear_classification", {"name": "neural_classification", "options": {"classes": 3}}, r"at most the 2 classes"),
    ("linear_regression", "nonsense", r"model: got 'nonsense'"),
    ("linear_regression", {"options": {}}, r"source: got .*; takes a registered model's name"),
    ("linear_regression", {"name": "linear_regression", "option": {}}, r"source: got"),
    ("linear_regression", {"name": "linear_regression", "options": {"hidden": 3}}, r"options of linear_regression"),
    ("linear_regression", 7, r"source: got 7"),
])
def test_sources_that_do_not_fit_are_refused(model: str, source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OtherModelTask(build_model(model), source)


def test_extra_columns_must_agree() -> None:
    with pytest.raises(InputError, match=r"source: got 'scaled_counts' with extra columns .*; takes"):
        OtherModelTask(LinearRegression(), ScaledCounts(), columns=(3, 3))


def test_fewer_classes_fit_more() -> None:
    model = build_model("linear_classification", classes=5)
    dataset, _ = OtherModelTask(model, "neural_classification").draw(3, generator_for(4))
    model.check(dataset)


def test_a_mixture_s_data_fit_a_mean() -> None:
    dataset, _ = OtherModelTask(build_model("gaussian_mean"), "gaussian_mixture").draw(3, generator_for(5))
    assert dataset.y is None


def test_an_own_model_has_no_options() -> None:
    class Own(LinearRegression):
        name = "own"

    task = OtherModelTask(LinearRegression(), Own(), columns=(1, 2))
    assert task.masked().draw(2, generator_for(6))[0].x.shape[-1] == 2
    with pytest.raises(UnsupportedError, match="source: got 'own'"):
        task.options()
