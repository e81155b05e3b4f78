"""A user's own model: which functions give what, contract, padding, errors; and the Poisson example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import (
    Categorical,
    Dirichlet,
    Distribution,
    Exponential,
    HalfNormal,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    constraints,
)

from posteria.errors import DataError, InputError, UnsupportedError
from posteria.models import CustomModel, LinearRegression, Parameter, poisson_regression
from posteria.randomness import generator_for
from posteria.testing.models import check_model, example
from posteria.types import Dataset

Params = dict[str, Tensor]
LINE = (Parameter("weights", ("features",)), Parameter("intercept"))
SCALED = (*LINE, Parameter("noise_scale", (), constraints.positive, HalfNormal(1.0)))


def _line(params: Params, x: Tensor) -> Tensor:
    return x @ params["weights"] + params["intercept"]


def _normal(params: Params, x: Tensor) -> Distribution:
    return Normal(_line(params, x), params["noise_scale"])


def _normal_log_likelihood(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return _normal(params, x).log_prob(y)


def _normal_simulate(params: Params, x: Tensor) -> Tensor:
    return _line(params, x) + params["noise_scale"] * torch.randn(x.shape[0])


def _two_lines(params: Params, x: Tensor) -> Distribution:
    lines = Normal(torch.stack([_line(params, x), -_line(params, x)], -1), 0.5)
    return MixtureSameFamily(Categorical(params["shares"]), lines)


def _rows(params: Params, x: Tensor) -> Distribution:
    return Independent(Normal(params["center"].expand(x.shape), params["spread"]), 1)


MODELS = {
    "predict": (CustomModel(SCALED, predict=_normal), 3),
    "log_likelihood": (CustomModel(SCALED, log_likelihood=_normal_log_likelihood, simulate=_normal_simulate), 3),
    "all": (CustomModel(SCALED, predict=_normal, log_likelihood=_normal_log_likelihood, simulate=_normal_simulate), 3),
    "simulator": (CustomModel(SCALED, simulate=_normal_simulate, name="my_simulator"), 3),
    "student": (CustomModel(LINE, predict=lambda p, x: StudentT(5.0, _line(p, x), 0.5)), 2),
    "log_normal": (CustomModel(LINE, predict=lambda p, x: LogNormal(0.3 * _line(p, x), 0.5)), 2),
    "classes": (CustomModel((Parameter("weights", ("classes", "features")),), axes={"classes": 3}, target="class",
                            num_classes=3, predict=lambda p, x: Categorical(logits=x @ p["weights"].T)), 2),
    "mixture": (CustomModel((*LINE, Parameter("shares", (2,), constraints.simplex, Dirichlet(torch.ones(2)))),
                            predict=_two_lines), 2),
    "rows": (CustomModel((Parameter("center"), Parameter("spread", (), constraints.interval(0.5, 2.0),
                                                         torch.distributions.Uniform(0.5, 2.0))),
                         predict=_rows, target="none"), 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_contract(name: str) -> None:
    model, columns = MODELS[name]
    check_model(model, columns, exact_curvature=model.has_likelihood)


def test_agrees_with_the_library_s_own_model() -> None:
    own, ours = LinearRegression("inferred"), MODELS["all"][0]
    dataset, theta = example(own, 3)
    torch.testing.assert_close(ours.log_joint(theta, dataset), own.log_joint(theta, dataset))
    one, other = (m.likelihood_geometry(theta, dataset) for m in (own, ours))
    torch.testing.assert_close(other.score, one.score)


def test_a_simulator_has_no_likelihood_and_says_so() -> None:
    model = MODELS["simulator"][0]
    dataset, theta = example(model, 2)
    assert not model.has_likelihood
    for ask in (model.log_likelihood, model.log_joint, model.likelihood_geometry):
        with pytest.raises(UnsupportedError, match="'my_simulator' can only be simulated"):
            ask(theta, dataset)
    with pytest.raises(UnsupportedError, match="can only be simulated"):
        model.likelihood_precision(theta, dataset)
    with pytest.raises(UnsupportedError, match="predict: got None"):
        model.predict(theta, dataset)


def test_padding_outside_the_domain_does_not_spoil_gradients() -> None:
    dataset = Dataset.of(torch.tensor([[2.0, 1.0], [1.0, -1.0]]), torch.tensor([3.0, 1.0])).padded(5, 2)
    geometry = poisson_regression().likelihood_geometry(torch.zeros(1, 1, 3), dataset)
    assert torch.isfinite(geometry.score).all()
    assert torch.isfinite(geometry.curvature).all()


def test_many_parameters_use_row_scores() -> None:
    model = CustomModel(LINE, predict=lambda p, x: Normal(_line(p, x), 0.5))
    dataset, theta = example(model, 80, rows=20, num_datasets=2, num_draws=1)
    precision = model.likelihood_precision(theta, dataset)
    residual = (dataset.y - model.predict(theta, dataset).mean[:, 0]) / 0.25  # type: ignore[operator]
    scores = residual[..., None] * torch.cat([dataset.x, torch.ones(2, 20, 1)], -1)
    torch.testing.assert_close(precision, scores.mT @ scores)
    torch.testing.assert_close(model.likelihood_geometry(theta, dataset).curvature[:, 0],
                               precision.diagonal(dim1=-2, dim2=-1))


def test_inputs_of_the_user() -> None:
    model = CustomModel(LINE, predict=lambda p, x: Normal(_line(p, x), 0.5),
                        draw_inputs=lambda rows, columns: torch.rand(rows, columns))
    x = model.draw_inputs(3, 5, 2, generator_for(0))
    assert x.shape == (3, 5, 2)
    assert torch.equal(x, model.draw_inputs(3, 5, 2, generator_for(0)))
    assert x.min() >= 0
    assert not torch.equal(x[0], x[1])


def _bad(**functions: Any) -> CustomModel:
    return CustomModel(LINE, name="bad", **functions)


@pytest.mark.parametrize(("model", "message"), [
    (_bad(log_likelihood=lambda p, x, y: y.sum(), simulate=lambda p, x: x[:, 0]), "log_likelihood: got values"),
    (_bad(predict=lambda p, x: Normal(p["intercept"], 1.0), simulate=lambda p, x: x[:, 0]), "one distribution per row"),
    (_bad(predict=lambda p, x: x[:, 0], simulate=lambda p, x: x[:, 0]), "returns a torch Distribution"),
], ids=["sum", "scalar", "tensor"])
def test_functions_of_the_wrong_shape(model: CustomModel, message: str) -> None:
    dataset = Dataset.of(torch.zeros(2, 4, 2), torch.zeros(2, 4))
    with pytest.raises(InputError, match=message):
        model.log_likelihood(torch.zeros(2, 3, 3), dataset)


def test_simulations_and_inputs_of_the_wrong_shape() -> None:
    inputs = Dataset.of(torch.zeros(2, 4, 2))
    with pytest.raises(InputError, match=r"simulate: got shape \(\); takes shape \(4,\)"):
        _bad(simulate=lambda p, x: x.sum()).simulate(torch.zeros(2, 3), inputs)
    with pytest.raises(InputError, match="draw_inputs: got shape"):
        _bad(simulate=_line, draw_inputs=lambda rows, columns: torch.zeros(rows)).draw_inputs(2, 3, 2, None)


@pytest.mark.parametrize(("options", "message"), [
    ({}, "at least one of predict, log_likelihood and simulate"),
    ({"predict": _normal, "target": "class"}, "num_classes: got 0"),
    ({"predict": _normal, "num_classes": 3}, "num_classes: got 3 with target 'real'"),
    ({"predict": _normal, "priors": {"slope": Normal(0.0, 1.0)}}, "priors: got"),
])
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CustomModel(LINE, **options)


def test_validation_is_as_before_afterwards() -> None:
    before = Distribution._validate_args
    model, dataset = MODELS["predict"][0], Dataset.of(torch.zeros(2, 4, 2), torch.zeros(2, 4))
    model.log_likelihood(torch.zeros(2, 3, 4), dataset)
    assert Distribution._validate_args == before


def test_a_multivariate_normal_of_rows() -> None:
    center = Parameter("center", (2,))
    model = CustomModel([center], target="none", predict=lambda p, x: MultivariateNormal(
        p["center"].expand(x.shape), torch.tensor([[1.0, 0.4], [0.4, 1.0]])))
    dataset, theta = example(model, 2)
    assert model.predict(theta, dataset).event_shape == (2,)
    assert model.log_likelihood(theta, dataset).shape == theta.shape[:2]


# -- the Poisson example ----------------------------------------------------------------------------
def test_poisson_density_against_scipy() -> None:
    x = torch.tensor([[0.5, 1.0], [2.0, -0.5], [1.0, 0.3]], dtype=torch.float64)
    y = torch.tensor([0.0, 4.0, 2.0])
    theta = torch.tensor([[[0.7, 0.2, 1.1]]], dtype=torch.float64)
    mean, concentration = x[:, 0] * torch.exp(0.2 + 0.7 * x[:, 1]), torch.tensor(1.1).double().exp()
    expected = stats.nbinom.logpmf(y, concentration, concentration / (concentration + mean)).sum()
    dataset = Dataset(x[None], y[None].double(), torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool))
    assert abs(float(poisson_regression().log_likelihood(theta, dataset)) - expected) < 1e-8


@pytest.mark.parametrize("columns", [2, 6, 101])
def test_poisson_simulations_stay_finite(columns: int) -> None:
    model = poisson_regression()
    inputs = Dataset.of(model.draw_inputs(200, 30, columns, generator_for(0)))
    theta = model.sample_prior(inputs, 1, generator_for(1))[:, 0]
    dataset = model.simulate(theta, inputs, generator_for(2))
    model.check(dataset)
    assert torch.isfinite(model.log_likelihood(theta[:, None], dataset)).all()


def test_poisson_errors() -> None:
    model = poisson_regression()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(DataError, match="exposure: got 0; takes values that meet"):
        model.check(Dataset.of(x, torch.tensor([1.0, 2.0])))
    with pytest.raises(DataError, match="not whole"):
        model.check(Dataset.of(x + 1, torch.tensor([1.5, 2.0])))
    with pytest.raises(DataError, match="at least one feature"):
        model.check(Dataset.of(x[:, :1] + 1, torch.tensor([1.0, 2.0])))


def test_poisson_padded_rows_need_no_exposure() -> None:
    poisson_regression().check(Dataset.of(torch.ones(2, 2), torch.ones(2)).padded(4, 3))


def test_exponential_example_of_the_docstring() -> None:
    rate = Parameter("rate", (), constraints.positive, Exponential(1.0))
    model = CustomModel([rate], predict=lambda params, x: Exponential(params["rate"].expand(x.shape[0])))
    dataset = Dataset.of(torch.zeros(3, 1), torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(model.log_likelihood(torch.zeros(1, 1, 1), dataset), torch.tensor([[-6.0]]))
