"""Every registered model, in its main variants, keeps the contract that posteria ships."""

from __future__ import annotations

from typing import Any

import pytest

from posteria.models import MODELS, build_model, prior_to_json
from posteria.testing.models import check_model

FULL = [[1.0, 0.5, 0.1], [0.5, 2.0, 0.0], [0.1, 0.0, 1.0]]
# name, options, columns of x, whether the curvature is the exact Hessian
CASES: list[tuple[str, dict[str, Any], int, bool]] = [
    ("gaussian_mean", {}, 3, True),
    ("gaussian_mean", {"covariance": 2.5}, 1, True),
    ("gaussian_mean", {"covariance": [1.0, 2.0, 0.5]}, 3, True),
    ("gaussian_mean", {"covariance": FULL}, 3, True),
    ("gaussian_mixture", {}, 2, False),
    ("gaussian_mixture", {"components": 3, "weights": [0.2, 0.3, 0.5], "covariance": FULL}, 3, False),
    ("gaussian_mixture", {"covariances": [None, [1.0, 2.0]]}, 2, False),
    ("linear_regression", {}, 3, True),
    ("linear_regression", {"noise": "inferred"}, 3, False),
    ("linear_classification", {}, 3, True),
    ("linear_classification", {"classes": 4, "temperature": 1.0, "reference": True}, 3, True),
    ("linear_classification", {"temperature": 1.0, "reference": True}, 1, True),
    ("neural_regression", {"hidden": 5}, 3, False),
    ("neural_regression", {"hidden": 5, "layers": 2, "activation": "tanh", "noise": "inferred"}, 3, False),
    ("neural_regression", {}, 1, False),
    ("neural_classification", {"hidden": 5}, 3, False),
    ("neural_classification", {"hidden": 4, "layers": 2, "activation": "tanh", "classes": 3}, 3, False),
    ("poisson_regression", {}, 4, True),
    ("poisson_regression", {}, 2, True),
    ("generalized_linear", {}, 3, False),
    ("generalized_linear", {"noise": 0.25, "intercept": False}, 3, True),
    ("generalized_linear", {"noise": "column"}, 3, True),
    ("generalized_linear", {"family": "student_t"}, 3, False),
    ("generalized_linear", {"family": "bernoulli"}, 3, True),
    ("generalized_linear", {"family": "probit"}, 3, False),
    ("generalized_linear", {"family": "categorical", "classes": 4}, 3, True),
    ("generalized_linear", {"family": "categorical", "intercept": False}, 1, True),
    ("generalized_linear", {"family": "poisson"}, 3, True),
    ("generalized_linear", {"family": "poisson", "exposure": True, "intercept": False}, 2, True),
    ("generalized_linear", {"family": "negative_binomial", "exposure": True}, 3, False),
    ("generalized_linear", {"family": "beta_binomial"}, 3, False),
    ("generalized_linear", {"family": "gamma"}, 3, False),
    ("generalized_linear", {"family": "survival"}, 3, False),
    ("hierarchical", {}, 3, False),
    ("hierarchical", {"groups": 3, "noise": "column", "varying_slopes": True}, 4, False),
    ("hierarchical", {"family": "negative_binomial", "exposure": True, "varying_slopes": True}, 4, False),
]


IDS = [f"{case[0]}-{i}" for i, case in enumerate(CASES)]


@pytest.mark.parametrize(("name", "options", "columns", "exact"), CASES, ids=IDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_contract(name: str, options: dict[str, Any], columns: int, exact: bool, seed: int) -> None:
    check_model(build_model(name, **options), columns, seed, exact_curvature=exact)


def test_every_model_is_covered() -> None:
    assert {case[0] for case in CASES} == set(MODELS)


@pytest.mark.parametrize(("name", "options", "columns", "exact"), CASES, ids=IDS)
def test_options_build_the_same_model(name: str, options: dict[str, Any], columns: int, exact: bool) -> None:
    model = build_model(name, **options)
    again = build_model(model.name, **model.options())
    assert model.name == name
    assert again.options() == model.options()
    assert again.layout(columns).scalar_names == model.layout(columns).scalar_names
    assert again.exchangeable_axes == model.exchangeable_axes


@pytest.mark.parametrize("name", sorted(MODELS))
def test_other_priors(name: str) -> None:
    first = build_model(name).parameters[0].name
    model = build_model(name, priors={first: {"family": "student_t", "df": 8.0, "loc": 0.1, "scale": 0.5}})
    assert prior_to_json(model.parameters[0].prior)["family"] == "student_t"
    check_model(model, 3)
