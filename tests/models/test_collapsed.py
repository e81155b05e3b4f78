"""Parameters integrated out: the conditional posterior, and the log joint of the rest, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, MultivariateNormal, Normal

from posteria.errors import UnsupportedError
from posteria.models import LinearRegression, Model, NeuralRegression, build_model
from posteria.models.collapsed import CollapsedLogJoint
from posteria.testing.models import example
from posteria.types import Dataset

PRIOR = {"output_weights": Normal(0.3, 0.7)}
MODELS: dict[str, Model] = {
    "relu": NeuralRegression(hidden=3, priors=PRIOR),
    "tanh": NeuralRegression(hidden=3, layers=2, activation="tanh", priors=PRIOR),
    "noise inferred": NeuralRegression(hidden=3, noise="inferred", priors=PRIOR),
    "linear": LinearRegression("inferred"),
}


def marginal(model: Model, theta: Tensor, dataset: Dataset, dataset_number: int) -> Tensor:
    """log p(rest) + log N(y; design mean, design cov designᵀ + noise), for one theta (P,) in double precision."""
    layout = model.layout_of(dataset)
    places = model.conjugate(layout)
    location, scale = (m.double()[places] for m in layout.prior_moments)
    one = dataset[dataset_number:dataset_number + 1]
    design = model.design(theta[None, None], one)[0, 0]  # type: ignore[attr-defined]
    noise = layout["noise_scale"].constrained(theta) if "noise_scale" in [b.name for b in layout.blocks] else 0.5
    covariance = design @ torch.diag(scale**2) @ design.mT + torch.eye(len(design)).double() * noise**2
    prior = layout.log_prior_terms(theta)[~places].sum()
    return MultivariateNormal(design @ location, covariance).log_prob(one.y[0]) + prior


@pytest.mark.parametrize("name", MODELS)
def test_density_and_score_are_those_of_the_marginal_likelihood(name: str) -> None:
    model = MODELS[name]
    dataset, theta = example(model, 2)
    joint = CollapsedLogJoint(model, dataset)
    location, scale = joint.location.double(), joint.scale.double()
    joint.location, joint.scale = location, scale
    joint.whole.location, joint.whole.scale = joint.whole.location.double(), joint.whole.scale.double()
    z = (theta[..., joint.rest] - location) / scale
    density, score = joint.score(z)
    for number, draw in ((0, 0), (1, 2)):
        point = theta[number, draw].detach().requires_grad_()
        expected = marginal(model, point, dataset, number)
        (gradient,) = torch.autograd.grad(expected, point)
        torch.testing.assert_close(density[number, draw], expected.detach())
        torch.testing.assert_close(score[number, draw], gradient[joint.rest] * scale)


def test_curvature_is_what_integrating_the_whole_one_leaves() -> None:
    """One point at a time, its inverse is the rest's part of the inverse of the whole curvature."""
    model = MODELS["tanh"]
    dataset, theta = example(model, 2)
    joint = CollapsedLogJoint(model, Dataset.of(dataset.x.float(), dataset.y.float()))
    z = (theta[..., joint.rest].float() - joint.location) / joint.scale
    seen = joint.curvature(z, 1000)
    completed = joint._completed(z)
    covariance = torch.stack([torch.linalg.inv(joint.whole.curvature(completed[:, [k]], 1000).matrix.double())
                              for k in range(z.shape[1])])[..., joint.rest, :][..., joint.rest]
    torch.testing.assert_close(seen.matrix.double(), torch.linalg.inv(covariance).mean(0), rtol=1e-3, atol=1e-3)
    diagonal = joint.curvature(z, 2).diagonal()
    assert diagonal.shape == z[:, 0].shape
    assert (diagonal > 0).all()


def test_linear_regression_with_known_noise_is_all_conjugate() -> None:
    model = LinearRegression(0.3)
    dataset, theta = example(model, 2)
    mean, factor = model.conditional(theta, dataset)
    exact = model.exact_posterior(dataset)
    torch.testing.assert_close(mean[:, 0], exact.mean)
    torch.testing.assert_close(torch.cholesky_inverse(factor[:, 0]), exact.covariance_matrix)


@pytest.mark.parametrize("model", [
    LinearRegression(0.3), build_model("neural_classification", hidden=3), build_model("gaussian_mean"),
    NeuralRegression(hidden=3, priors={"output_weights": Laplace(0.0, 1.0)})], ids=lambda model: model.name)
def test_what_cannot_be_collapsed_is_refused(model: Model) -> None:
    dataset, _ = example(model, 2)
    with pytest.raises(UnsupportedError, match=r"^collapse: .* has no part that can be integrated out"):
        CollapsedLogJoint(model, dataset)


def test_the_conditional_posterior_of_a_model_that_has_none_is_refused() -> None:
    for model in (build_model("gaussian_mean"), build_model("linear_classification")):
        dataset, theta = example(model, 2)
        with pytest.raises(UnsupportedError, match="no parameters whose posterior given the others is known"):
            model.conditional(theta, dataset)
