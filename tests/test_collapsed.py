"""Estimators with the option ``collapse``: draws, densities, padding, saving, and the posterior of quadrature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posteria.densities.selective import Selective
from posteria.errors import UnsupportedError
from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import build_model
from posteria.parts import Part, exact_distribution
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from tests.test_estimator import SMALL, make, outputs, regression_data, simulated

COLLAPSED = Part("gaussian", {"collapse": True})


@pytest.mark.parametrize("encoder", list(SMALL))
def test_collapsed_density_is_that_of_its_draws(encoder: str) -> None:
    model = build_model("neural_regression", hidden=3)
    made = make(model, encoder, COLLAPSED)
    posterior = made.posterior(simulated(model, 2))
    theta, log_prob = posterior.distribution.rsample_and_log_prob(500, generator_for(0))
    torch.testing.assert_close(posterior.log_prob(theta), log_prob.detach(), rtol=1e-4, atol=1e-3)
    # A perfect q has one height of log p - log q; in the parameters integrated out this one is perfect.
    places = model.conjugate(posterior.layout)
    once, again = theta.clone(), theta.clone()
    again[..., places] += 0.3
    excess = [model.log_joint(t, posterior.dataset) - posterior.log_prob(t) for t in (once, again)]
    torch.testing.assert_close(*excess, rtol=1e-4, atol=1e-2)


def test_collapsed_regression_has_the_posterior_of_quadrature() -> None:
    """Noise inferred: one parameter is left, so that the whole posterior can be had by quadrature over it."""
    model, dataset = build_model("linear_regression", noise="inferred"), regression_data(rows=8)
    made = Estimator(model, "iterative", COLLAPSED, EstimatorInfo((2, 2)))
    refined = made.posterior(dataset).refine(num_draws=20_000)
    exact = Posterior(model, dataset, exact_distribution(model, dataset))
    assert (exact.diagnose().ess > 995).all()  # of 1,000
    grid = torch.linspace(-6.0, 4.0, 4001, dtype=torch.float64)
    theta = torch.zeros(2, len(grid), 4, dtype=torch.float64)
    theta[..., 3] = grid
    mean, factor = model.conditional(theta, dataset.double())
    theta[..., :3] = mean
    height = model.log_joint(theta, dataset.double()) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weight = height.softmax(-1)[..., None]
    centre = (weight * mean).sum(1)
    inner = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
    variance = (weight * (inner + (mean - centre[:, None]) ** 2)).sum(1)
    assert set(refined.status) <= {"amortized", "reweighted", "refined"}
    # What the ladder promises, and four standard errors of 20,000 draws.
    for answer, most in ((refined.posterior, 0.1), (exact, 0.03)):
        draws = answer.sample_theta(20_000, seed=0).double()[..., :3]
        assert ((draws.mean(1) - centre).abs() / variance.sqrt() < most).all()
        assert ((draws.std(1) / variance.sqrt() - 1).abs() < most).all()


def test_draws_of_some_datasets_are_those_among_all() -> None:
    model = build_model("neural_regression", hidden=3)
    distribution = make(model, "iterative", COLLAPSED).posterior(simulated(model, 2)).distribution
    index = torch.tensor([1])
    assert isinstance(distribution, Selective)
    with torch.no_grad():
        whole = distribution.rsample_and_log_prob(5, generator_for(0))
        part = distribution.draws_of(index, 5, generator_for(0))
    for all_of_them, some in zip(whole, part, strict=True):
        torch.testing.assert_close(some, all_of_them[index], rtol=1e-4, atol=1e-4)


def test_features_that_a_dataset_lacks_do_not_change_a_collapsed_posterior() -> None:
    model = build_model("linear_regression", noise="inferred")
    made = make(model, "iterative", Part("full", {"collapse": True}), (1, 4))
    dataset = regression_data(columns=2)
    narrow, wide = made.posterior(dataset), made.posterior(dataset.padded(12, 4))
    theta = narrow.sample_theta(5, seed=0)
    spread = theta.new_zeros(2, 5, 6)
    spread[..., [0, 1, 4, 5]] = theta
    torch.testing.assert_close(wide.log_prob(spread), narrow.log_prob(theta), rtol=1e-4, atol=1e-3)
    assert (wide.sample_theta(5, seed=0)[..., 2:4] == 0).all()


def test_collapsed_estimator_comes_back_and_trains(tmp_path: Path) -> None:
    first = make(build_model("neural_regression", hidden=3), "iterative", COLLAPSED)
    first.save(tmp_path)
    dataset = simulated(first.model, 2)
    second = Estimator.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(outputs(first, dataset), outputs(second, dataset), strict=True))
    draws, log_prob = first.distribution(dataset).rsample_and_log_prob(3)
    (first.model.log_joint(draws, dataset) - log_prob).sum().backward()
    assert all(torch.isfinite(w.grad).all() for w in first.density.parameters() if w.grad is not None)
    assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in first.density.parameters())


def test_collapse_needs_a_part_that_can_be_integrated_out() -> None:
    with pytest.raises(UnsupportedError, match=r"^collapse: linear_regression has no part"):
        make(density=COLLAPSED)
