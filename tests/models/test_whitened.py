"""Models in parameters with normal priors: the chain rule, and averages against Monte Carlo."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, distributions

from posteria.models import Model, build_model
from posteria.models.log_joint import ModelLogJoint
from posteria.models.repriored import repriored
from posteria.models.whitened import Whitened, whitened
from posteria.randomness import generator_for
from posteria.testing.models import check_model, example
from posteria.types import Dataset

LAPLACE = {"family": "laplace", "loc": 0.3, "scale": 0.7}
STUDENT = {"family": "student_t", "df": 4.0, "loc": 0.0, "scale": 0.5}
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("linear_regression", {}, 3),
    ("linear_regression", {"noise": "inferred"}, 3),
    ("generalized_linear", {"family": "bernoulli"}, 3),
    ("generalized_linear", {"family": "gamma"}, 3),
    ("linear_classification", {"classes": 3}, 3),
    ("hierarchical", {"groups": 3, "varying_slopes": True}, 3),
    ("hierarchical", {"family": "bernoulli", "groups": 3}, 3),
]
IDS = [f"{name}-{i}" for i, (name, _, _) in enumerate(CASES)]


def made(name: str, options: dict[str, Any], weights: dict[str, Any] = LAPLACE) -> Whitened:
    model = build_model(name, priors={"weights": weights, "intercept": STUDENT}, **options)
    found = whitened(model)
    assert isinstance(found, Whitened)
    return found


@pytest.mark.parametrize(("name", "options", "columns"), CASES, ids=IDS)
def test_contract(name: str, options: dict[str, Any], columns: int) -> None:
    check_model(made(name, options), columns)


@pytest.mark.parametrize(("name", "options", "columns"), CASES, ids=IDS)
def test_log_joint_is_the_models_with_the_jacobian(name: str, options: dict[str, Any], columns: int) -> None:
    model = made(name, options)
    dataset, u = example(model, columns)
    theta = model.theta(u, dataset)
    torch.testing.assert_close(model.units(theta, dataset), u, rtol=0, atol=1e-6)
    volume = torch.where(model.active(dataset)[:, None], model.log_slopes(u, dataset), 0.0).sum(-1)
    torch.testing.assert_close(model.log_joint(u, dataset), model.model.log_joint(theta, dataset) + volume)
    # Searches and chains take priors as normal, which they are but for the rounding of the maps.
    joint = ModelLogJoint(model, dataset)
    assert model.layout_of(dataset).has_normal_prior
    z = (u - joint.location) / joint.scale
    height = joint.score(z)[0] - model.log_joint(u, dataset)
    torch.testing.assert_close(height, height[:, :1].expand_as(height), rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [{"varying_slopes": True}, {"family": "bernoulli"}], ids=["slopes", "bernoulli"])
def test_blocks_are_those_of_the_whole_curvature(options: dict[str, Any]) -> None:
    model = made("hierarchical", {"groups": 3, **options})
    dataset, u = example(model, 3, rows=60)
    found = model.likelihood_blocks(u, dataset)
    assert found is not None
    score, (common, cross, own) = found
    torch.testing.assert_close(score, model.likelihood_score(u, dataset)[1])
    outer, inner = model.block_places(dataset)
    for draw in range(u.shape[1]):
        whole = model.likelihood_precision(u[:, draw:draw + 1], dataset)
        torch.testing.assert_close(common[:, draw], whole[:, outer][:, :, outer])
        for entry, places in enumerate(inner):
            torch.testing.assert_close(own[:, draw, entry], whole[:, places][:, :, places])
            torch.testing.assert_close(cross[:, draw, entry], whole[:, places][:, :, outer])


def _guess(size: int, seed: int, width: float, correlated: bool) -> tuple[Tensor, Tensor]:
    """Centres (2, P) and a Cholesky factor (2, P, P)."""
    generator = generator_for(seed)
    centre = 0.5 * torch.randn(2, size, generator=generator).double()
    root = 0.3 * torch.randn(2, size, size, generator=generator).double() * correlated + torch.eye(size)
    return centre, width * torch.linalg.cholesky(root @ root.mT)


def _by_quadrature(model: Model, centre: Tensor, factor: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Score (B, P) and negative Hessian (B, P, P) averaged over all of u, the latter by Stein's identity."""
    nodes, weights = (torch.from_numpy(part) for part in numpy.polynomial.hermite_e.hermegauss(16))
    size = centre.shape[-1]
    noise = torch.cartesian_prod(*[nodes] * size)
    weight = torch.cartesian_prod(*[weights / weights.sum()] * size).prod(-1)[:, None]
    score = model.likelihood_score(centre[:, None] + noise @ factor.mT, dataset)[1]
    hessian = -((weight * score).mT @ noise) @ torch.linalg.inv(factor)
    return (weight * score).sum(1), 0.5 * (hessian + hessian.mT)


def _errors(name: str, width: float, correlated: bool, **options: Any) -> tuple[Tensor, Tensor]:
    """Of the score and the precision, relative to the largest entry; where the precision is not floored."""
    model = made(name, options, STUDENT)  # kinks cost quadratures their digits
    dataset, _ = example(model, 2, num_datasets=2, rows=20)
    centre, factor = _guess(3, 1, width, correlated)
    found = model.likelihood_expectation(centre, lambda rows: rows @ factor, dataset)
    assert found is not None
    assert found.diagonal is not None
    score, hessian = _by_quadrature(model, centre, factor, dataset)
    kept = (found.diagonal > -0.25)[..., None] | ~torch.eye(3, dtype=torch.bool)
    away = torch.where(kept, found.rows.mT @ found.rows + torch.diag_embed(found.diagonal) - hessian, 0.0)
    return (found.score - score).abs().max() / score.abs().max(), away.abs().max() / hessian.abs().max()


def test_averages_over_a_linear_gaussian_likelihood_are_exact() -> None:
    """There the average depends on the outputs' means and variances alone."""
    assert all(error < 1e-4 for error in _errors("linear_regression", 0.3, correlated=False))


@pytest.mark.parametrize(("name", "options"), [("linear_regression", {}), ("generalized_linear", {"family": "poisson"}),
                                               ("generalized_linear", {"family": "bernoulli"})])
def test_averages_are_exact_to_second_order_in_the_width(name: str, options: dict[str, Any]) -> None:
    narrow, wide = (_errors(name, width, True, **options) for width in (0.05, 0.2))
    assert all(error < 0.1 for error in wide)
    assert all(small < 0.25 * large + 1e-3 for small, large in zip(narrow, wide, strict=True))


def test_models_with_normal_priors_are_left_alone() -> None:
    model = build_model("linear_regression")
    assert whitened(model) is model
    other = repriored(model, {"weights": LAPLACE})
    assert isinstance(whitened(other), Whitened)
    assert whitened(other) is whitened(other) is whitened(whitened(other))
    assert whitened(repriored(other, {"weights": distributions.Normal(0.0, 1.0)})) is not whitened(other)


def test_positive_parameters_are_changed_too() -> None:
    model = whitened(build_model("linear_regression", noise="inferred"))
    assert isinstance(model, Whitened)
    assert list(model.maps) == ["noise_scale"]
    draws = model.sample_prior(example(model, 2)[0], 20_000, generator_for(0)).double()
    theta = model.theta(draws, example(model, 2)[0])
    scales = theta[..., -1].exp().flatten()
    known = distributions.HalfNormal(1.0).cdf(scales).sort().values
    even = (torch.arange(len(known)) + 0.5) / len(known)
    assert (known - even).abs().max() < 1.95 / len(known) ** 0.5  # Kolmogorov, level 1e-3
