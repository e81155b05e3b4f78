"""Generalized linear models: simulations against formulas, ordinary models as special cases, exact averages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from posteria.models import Model, ModelLogJoint, build_model
from posteria.models.generalized_linear import GeneralizedLinear
from posteria.randomness import generator_for
from posteria.types import Dataset
from tests.problems import climbed, simulated

THETA = {"weights": [0.4, -0.3], "intercept": 0.5}
OPTIONS: dict[str, dict[str, Any]] = {
    "gaussian": {}, "student_t": {"degrees": 9.0}, "bernoulli": {}, "probit": {}, "categorical": {"classes": 3},
    "poisson": {"exposure": True}, "negative_binomial": {"exposure": True}, "beta_binomial": {}, "gamma": {},
    "survival": {},
}
OWN = {"noise_scale": 0.7, "concentration": 3.0, "shape": 2.5}


def glm(family: str) -> GeneralizedLinear:
    return GeneralizedLinear(family, **OPTIONS[family])


def formula(family: str, output: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of y, written out."""
    mean, share = output.exp(), torch.sigmoid(output)
    phi = torch.special.ndtr(output)
    seen = -torch.expm1(-mean * column)  # survival: the hazard is the mean of the log link
    second = 2 / mean**2 * (1 - (1 + mean * column) * (1 - seen))
    known = {
        "gaussian": (output, torch.full_like(output, 0.49)),
        "student_t": (output, torch.full_like(output, 0.49 * 9 / 7)),
        "bernoulli": (share, share * (1 - share)),
        "probit": (phi, phi * (1 - phi)),
        "poisson": (column * mean, column * mean),
        "negative_binomial": (column * mean, column * mean + (column * mean) ** 2 / 3.0),
        "beta_binomial": (column * share, column * share * (1 - share) * (3.0 + column) / 4.0),
        "gamma": (mean, mean**2 / 2.5),
        "survival": (seen / mean, second - (seen / mean) ** 2),
    }
    return known[family]


def inputs_of(model: Model, batch: int) -> Dataset:
    x = model.draw_inputs(1, 6, 2 + len(model.extra_columns), generator_for(0)).double().expand(batch, -1, -1)
    return Dataset(x, None, torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(batch, x.shape[2], dtype=torch.bool))


@pytest.mark.parametrize("family", [family for family in OPTIONS if family != "categorical"])
def test_simulations_have_the_mean_and_variance_of_the_formula(family: str) -> None:
    model, batch = glm(family), 20_000
    inputs = inputs_of(model, batch)
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in THETA.items()}
    own = {p.name: torch.tensor(OWN[p.name], dtype=torch.float64) for p in model.head.parameters}
    theta = model.layout_of(inputs).unconstrain(values | own)
    y = model.simulate(theta.expand(batch, -1), inputs, generator_for(1)).y
    assert y is not None
    features = inputs.x[0, :, -2:]
    mean, variance = formula(family, features @ values["weights"] + 0.5, inputs.x[0, :, 0])
    _check_mean(y, mean)
    _check_mean((y - mean) ** 2, variance)


def _check_mean(values: Tensor, expected: Tensor) -> None:
    assert ((values.mean(0) - expected).abs() < 5 * values.std(0) / len(values) ** 0.5).all()


SAME: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("gaussian", {"noise": 0.25}, "linear_regression", {}),
    ("gaussian", {}, "linear_regression", {"noise": "inferred"}),
    ("bernoulli", {}, "linear_classification", {"temperature": 1.0, "reference": True}),
    ("categorical", {"classes": 4}, "linear_classification", {"classes": 4, "temperature": 1.0, "reference": True}),
]


@pytest.mark.parametrize(("family", "options", "name", "others"), SAME)
def test_ordinary_models_are_special_cases(family: str, options: dict[str, Any], name: str,
                                           others: dict[str, Any]) -> None:
    ours, other = GeneralizedLinear(family, **options), build_model(name, **others)
    dataset = simulated(other, 3)
    theta = other.sample_prior(dataset, 5, generator_for(2))
    for one, same in ((ours.log_joint(theta, dataset), other.log_joint(theta, dataset)),
                      (ours.likelihood_geometry(theta, dataset).score, other.likelihood_geometry(theta, dataset).score),
                      (ours.likelihood_precision(theta, dataset), other.likelihood_precision(theta, dataset))):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-3)


def test_the_negative_binomial_is_the_older_poisson_regression() -> None:
    old, ours = build_model("poisson_regression"), glm("negative_binomial")
    dataset = simulated(old, 4)
    theta = old.sample_prior(dataset, 5, generator_for(2))
    torch.testing.assert_close(ours.log_likelihood(theta, dataset), old.log_likelihood(theta, dataset), rtol=1e-4,
                               atol=1e-2)


@pytest.mark.parametrize("family", OPTIONS)
def test_expectations_are_those_over_draws(family: str) -> None:
    """The averages that widening uses, against a Monte Carlo mean of the score over a normal around theta."""
    model = glm(family)
    dataset = simulated(model, 2 + len(model.extra_columns), rows=15, batch=2)
    joint = ModelLogJoint(model, dataset)
    guess = climbed(joint)
    factor = guess.curvature.factor()
    assert factor is not None
    averages = joint.expectation(guess.z, guess.spread, factor, 256)
    assert averages is not None
    noise = torch.randn(2, 20_000, guess.z.shape[1], generator=generator_for(3))
    points = guess.z[:, None] + torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
    scores = joint.score(points)[1]
    off = (averages[0] - scores.mean(1)).abs() / (scores.std(1) / noise.shape[1] ** 0.5 + 0.03 * scores.std(1))
    assert float(off.max()) < 4.0


@pytest.mark.parametrize("family", OPTIONS)
def test_the_climb_ends_where_the_score_vanishes(family: str) -> None:
    model = glm(family)
    dataset = simulated(model, 3 + len(model.extra_columns), rows=60, batch=8)
    guess = climbed(ModelLogJoint(model, dataset), iterations=30)
    assert float((guess.score.abs() * guess.spread).max()) < 0.1


def test_draws_in_the_units_of_the_data() -> None:
    model = glm("gamma")
    draws = {"weights": torch.tensor([[2.0, 3.0]]), "intercept": torch.tensor([1.0]), "shape": torch.tensor([4.0])}
    x_location, x_scale = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.5])
    own = model.in_units(draws, x_location, x_scale, 0.0, 1.0)
    assert own is not None
    assert torch.equal(own["weights"], torch.tensor([[1.0, 6.0]]))
    assert torch.equal(own["intercept"], torch.tensor([1.0 - 1.0 - 12.0]))
    assert torch.equal(own["shape"], draws["shape"])
    noise = glm("gaussian").in_units({**draws, "noise_scale": torch.tensor([0.5])}, x_location, x_scale, 10.0, 4.0)
    assert noise is not None
    assert float(noise["noise_scale"]) == 2.0
    assert GeneralizedLinear("gamma", intercept=False).in_units(draws, x_location, x_scale, 0.0, 1.0) is None


def test_without_an_intercept_there_is_none() -> None:
    model = GeneralizedLinear("probit", intercept=False)
    assert model.layout(2).scalar_names == ("weights[0]", "weights[1]")
    dataset = Dataset.of([[0.0, 0.0]], [1.0])
    assert float(model.log_likelihood(torch.ones(1, 1, 2), dataset)) == pytest.approx(-0.6931472)
