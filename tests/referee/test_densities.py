"""The log joints in JAX against those in torch: values, constants and gradients, for every model and option."""

from __future__ import annotations

from typing import Any

import jax
import pytest
import torch
from torch import Tensor
from torch import distributions as d
from torch.distributions import constraints

from posteria.errors import UnsupportedError
from posteria.models import MODELS, CustomModel, Model, Parameter, build_model
from posteria.randomness import generator_for
from posteria.referee import DENSITIES, check_density, check_score, density_of, has_own_density
from posteria.referee.data import data_of, double_precision
from posteria.tasks import SimulatedTask
from posteria.types import Dataset

FULL = [[1.0, 0.5, 0.1], [0.5, 2.0, 0.0], [0.1, 0.0, 1.0]]
# name, options, columns of x
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("gaussian_mean", {}, 3),
    ("gaussian_mean", {"covariance": 2.5}, 1),
    ("gaussian_mean", {"covariance": [1.0, 2.0, 0.5, 3.0]}, 3),
    ("gaussian_mean", {"covariance": FULL}, 2),
    ("gaussian_mixture", {}, 2),
    ("gaussian_mixture", {"components": 3, "weights": [0.2, 0.3, 0.5], "covariance": FULL}, 3),
    ("gaussian_mixture", {"covariances": [None, [1.0, 2.0]]}, 2),
    ("linear_regression", {}, 3),
    ("linear_regression", {"noise": "inferred"}, 3),
    ("linear_classification", {}, 2),
    ("linear_classification", {"classes": 5}, 2),
    ("linear_classification", {"classes": 2, "temperature": 1.0, "reference": True}, 3),
    ("linear_classification", {"classes": 4, "temperature": 1.0, "reference": True}, 3),
    ("neural_regression", {"hidden": 5}, 3),
    ("neural_regression", {"hidden": 5, "layers": 2, "activation": "tanh", "noise": "inferred"}, 3),
    ("neural_regression", {"hidden": 4, "layers": 2, "noise": 0.04}, 1),
    ("neural_classification", {"hidden": 5}, 3),
    ("neural_classification", {"hidden": 4, "layers": 2, "activation": "tanh", "classes": 3}, 3),
    ("poisson_regression", {}, 4),
    ("poisson_regression", {}, 2),
    ("generalized_linear", {}, 3),
    ("generalized_linear", {"noise": "column", "intercept": False}, 3),
    ("generalized_linear", {"noise": 0.3}, 2),
    ("generalized_linear", {"family": "student_t", "degrees": 5.0}, 3),
    ("generalized_linear", {"family": "bernoulli"}, 3),
    ("generalized_linear", {"family": "probit"}, 3),
    ("generalized_linear", {"family": "categorical", "classes": 4}, 3),
    ("generalized_linear", {"family": "categorical", "intercept": False}, 2),
    ("generalized_linear", {"family": "poisson"}, 3),
    ("generalized_linear", {"family": "poisson", "exposure": True}, 3),
    ("generalized_linear", {"family": "negative_binomial", "exposure": True}, 3),
    ("generalized_linear", {"family": "beta_binomial"}, 3),
    ("generalized_linear", {"family": "gamma"}, 3),
    ("generalized_linear", {"family": "survival"}, 3),
    ("hierarchical", {}, 3),
    ("hierarchical", {"groups": 3, "noise": "column", "varying_slopes": True}, 4),
    ("hierarchical", {"family": "negative_binomial", "exposure": True, "varying_slopes": True}, 4),
]
REAL_PRIORS = [{"family": "normal", "loc": 0.5, "scale": 2.0}, {"family": "cauchy", "loc": -0.5, "scale": 0.7},
               {"family": "laplace", "loc": 0.2, "scale": 0.5},
               {"family": "student_t", "df": 3.0, "loc": 0.1, "scale": 2.0}]
POSITIVE_PRIORS = [{"family": "exponential", "rate": 2.0}, {"family": "gamma", "concentration": 2.0, "rate": 3.0},
                   {"family": "half_cauchy", "scale": 0.5}, {"family": "half_normal", "scale": 0.3},
                   {"family": "inverse_gamma", "concentration": 3.0, "rate": 0.5},
                   {"family": "log_normal", "loc": -1.0, "scale": 0.4}]
# Points lie within some prior scales, where log joints reach thousands: this is about 1e-13 of them.
NATS, RELATIVE = 1e-8, 1e-9


def _datasets(model: Model, columns: int, rows: int = 9) -> Dataset:
    """Three datasets: one whole, one with fewer rows, one with fewer features too where there are several."""
    dataset, _ = SimulatedTask(model, rows=(rows, rows), columns=(columns, columns)).draw(3, generator_for(0))
    observed, features = dataset.observed.clone(), dataset.features.clone()
    observed[1:, rows - 3:] = False
    features[2, columns - 1:] = columns - len(model.extra_columns) == 1
    x = torch.where(observed[..., None] & features[:, None], dataset.x, 0.0)
    y = None if dataset.y is None else torch.where(observed, dataset.y, 0.0)
    return Dataset(x.double(), None if y is None else y.double(), observed, features)


@pytest.mark.parametrize(("name", "options", "columns"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_log_joints_and_their_gradients_agree(name: str, options: dict[str, Any], columns: int) -> None:
    model = build_model(name, **options)
    dataset = _datasets(model, columns)
    assert has_own_density(model)
    # The Gaussian models' constant is summed in torch with log 2 pi in single precision.
    constant = 1e-5 if name.startswith("gaussian") else 0.0
    assert check_density(model, dataset, num_points=4) < NATS + constant
    assert check_score(model, dataset, num_points=4) < RELATIVE


def test_every_model_has_a_density() -> None:
    assert set(DENSITIES) == set(MODELS) == {name for name, _, _ in CASES}


@pytest.mark.parametrize("prior", REAL_PRIORS, ids=lambda p: p["family"])
def test_priors_on_the_reals(prior: dict[str, Any]) -> None:
    model = build_model("linear_regression", priors={"weights": prior, "intercept": prior})
    assert has_own_density(model)
    assert check_density(model, _datasets(model, 2), num_points=4) < NATS
    assert check_score(model, _datasets(model, 2), num_points=4) < RELATIVE


@pytest.mark.parametrize("prior", POSITIVE_PRIORS, ids=lambda p: p["family"])
def test_priors_on_positives_with_their_jacobian(prior: dict[str, Any]) -> None:
    model = build_model("linear_regression", noise="inferred", priors={"noise_scale": prior})
    assert has_own_density(model)
    assert check_density(model, _datasets(model, 1), num_points=4) < NATS * 100
    assert check_score(model, _datasets(model, 1), num_points=4) < RELATIVE


def test_a_wrong_density_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("linear_regression")
    right = DENSITIES["linear_regression"]
    wrong = right._replace(row_log_prob=lambda _, params, data: right.row_log_prob({"noise": 0.26}, params, data))
    monkeypatch.setitem(DENSITIES, "linear_regression", wrong)
    assert check_density(model, _datasets(model, 2), num_points=4) > 0.1


def _own_model(name: str = "own") -> CustomModel:
    """Exponential waiting times with a rate that x scales, and a mixing share."""
    rate = Parameter("rate", support=constraints.positive, prior=d.Gamma(2.0, 1.0))
    share = Parameter("share", support=constraints.unit_interval, prior=d.Beta(2.0, 3.0))

    def predict(params: dict[str, Tensor], x: Tensor) -> d.Distribution:
        return d.Exponential(params["rate"] * (0.5 + params["share"] * x[:, 0].exp()))

    return CustomModel([rate, share], name=name, predict=predict)


def test_own_models_are_asked_through_torch() -> None:
    model = _own_model()
    assert not has_own_density(model)
    assert check_density(model, _datasets(model, 1), num_points=4) < NATS
    assert check_score(model, _datasets(model, 1), num_points=4) < RELATIVE


def test_own_models_are_not_taken_for_registered_ones_of_their_name() -> None:
    model = _own_model(name="poisson_regression")
    assert not has_own_density(model)
    assert check_density(model, _datasets(model, 1), num_points=4) < NATS


def test_unknown_priors_are_asked_through_torch() -> None:
    model = build_model("linear_regression", priors={"intercept": d.Gumbel(0.0, 1.0)})
    assert not has_own_density(model)
    assert check_density(model, _datasets(model, 2), num_points=4) < NATS


def test_simulators_have_no_density() -> None:
    model = CustomModel([Parameter("shift")], simulate=lambda params, x: x[:, 0] + params["shift"])
    with pytest.raises(UnsupportedError, match="model: got 'custom', which can only be simulated"):
        density_of(model)


def test_global_precision_is_left_alone() -> None:
    model = build_model("linear_regression")
    dataset = _datasets(model, 1)
    with double_precision():
        assert jax.jit(density_of(model))(jax.numpy.zeros(2), data_of(dataset, 0)).dtype == "float64"
    assert jax.numpy.zeros(2).dtype == "float32"
