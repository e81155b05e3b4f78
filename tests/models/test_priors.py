"""Priors to and from JSON, and building models by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.distributions import Distribution, Gumbel

from posteria.errors import InputError
from posteria.models import build_model, prior_from_json, prior_to_json

PRIORS: list[dict[str, Any]] = [
    {"family": "beta", "concentration1": 2.0, "concentration0": 3.0},
    {"family": "cauchy", "loc": 0.5, "scale": 2.0},
    {"family": "dirichlet", "concentration": [1.0, 2.0, 3.0]},
    {"family": "exponential", "rate": 2.0},
    {"family": "gamma", "concentration": 2.0, "rate": 0.5},
    {"family": "half_cauchy", "scale": 2.0},
    {"family": "half_normal", "scale": 0.5},
    {"family": "inverse_gamma", "concentration": 2.0, "rate": 0.5},
    {"family": "laplace", "loc": 1.0, "scale": 2.0},
    {"family": "log_normal", "loc": -1.0, "scale": 0.5},
    {"family": "normal", "loc": 0.0, "scale": 2.0},
    {"family": "student_t", "df": 4.0, "loc": 0.0, "scale": 1.5},
    {"family": "uniform", "low": -1.0, "high": 2.0},
]


@pytest.mark.parametrize("value", PRIORS, ids=lambda value: value["family"])
def test_round_trip(value: dict[str, Any]) -> None:
    prior = prior_from_json(json.loads(json.dumps(value)))
    assert isinstance(prior, Distribution)
    assert prior.batch_shape == ()
    assert prior_to_json(prior) == value


@pytest.mark.parametrize(("value", "message"), [
    ({"family": "pareto"}, "family: got 'pareto'; takes one of"),
    ({"loc": 0.0}, "family: got None"),
    ({"family": "normal", "loc": 0.0}, r"exactly \['loc', 'scale'\]"),
    ({"family": "normal", "loc": 0.0, "scale": 1.0, "df": 3}, "exactly"),
    ({"family": "normal", "loc": 0.0, "scale": -1.0}, "valid values"),
    ({"family": "normal", "loc": "a", "scale": 1.0}, "valid values"),
])
def test_bad_json(value: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prior_from_json(value)


def test_a_family_without_a_name() -> None:
    with pytest.raises(InputError, match="one of the families"):
        prior_to_json(Gumbel(0.0, 1.0))


def test_build_model_by_name() -> None:
    model = build_model("linear_regression", noise="inferred",
                        priors={"weights": {"family": "normal", "loc": 0, "scale": 2}})
    assert model.layout(2).prior_moments[1][:2].tolist() == [2.0, 2.0]
    assert prior_to_json(model.parameters[0].prior) == {"family": "normal", "loc": 0.0, "scale": 2.0}


@pytest.mark.parametrize(("name", "options", "message"), [
    ("linear", {}, r"model: got 'linear'; takes one of \['gaussian_mean'"),
    ("linear_regression", {"width": 3}, r"got \['width'\]; takes options among \['noise'\]"),
    ("poisson_regression", {"noise": 1.0}, "options of poisson_regression"),
    ("gaussian_mean", {"priors": {"weights": {"family": "normal", "loc": 0, "scale": 1}}}, "priors: got"),
])
def test_bad_builds(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(name, **options)


def test_a_vector_prior_over_events() -> None:
    prior = prior_from_json({"family": "dirichlet", "concentration": [1.0, 1.0]})
    assert prior.event_shape == torch.Size([2])
