"""A single parameter looked up: against densities whose moments and distribution functions are known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import digamma, gammainc, polygamma
from torch import Tensor

from posteria.densities.tabulated import tabulate
from posteria.randomness import generator_for

SHAPES = torch.tensor([0.7, 5.0, 400.0], dtype=torch.double)


def log_of_gamma(x: Tensor) -> Tensor:
    """Log density of the logarithm of gamma variables, (3, S), up to a constant: skewed, very much so for the first."""
    return SHAPES[:, None] * x - x.exp()


@pytest.mark.parametrize(("centre", "scale"), [(0.0, 1.0), (7.0, 0.1), (-20.0, 30.0)])
def test_moments_and_density_are_exact_wherever_the_search_begins(centre: float, scale: float) -> None:
    found = tabulate(log_of_gamma, torch.full((3,), centre), torch.full((3,), scale))
    mean, sd = found.moments()
    known = torch.tensor(polygamma(1, SHAPES.numpy())).sqrt()
    assert ((mean - torch.tensor(digamma(SHAPES.numpy()))).abs() < 1e-3 * known).all()
    assert ((sd / known - 1).abs() < 1e-3).all()
    x = mean[:, None] + sd[:, None] * torch.linspace(-3, 2, 101, dtype=torch.double)
    exact = log_of_gamma(x) - torch.lgamma(SHAPES)[:, None]
    torch.testing.assert_close(found.log_prob(x[..., None]), exact, rtol=0, atol=3e-3)


def test_draws_follow_the_distribution_function_and_know_their_density() -> None:
    found = tabulate(log_of_gamma, torch.zeros(3), torch.ones(3))
    theta, log_prob = found.rsample_and_log_prob(20_000, generator_for(0))
    below = torch.tensor(gammainc(SHAPES.numpy()[:, None], theta[..., 0].double().exp().numpy())).sort(-1).values
    even = (torch.arange(20_000) + 0.5) / 20_000
    assert ((below - even).abs().amax(-1) < 1.95 / math.sqrt(20_000)).all()  # Kolmogorov, level 1e-3
    torch.testing.assert_close(found.log_prob(theta), log_prob, rtol=0, atol=1e-3)


def test_a_table_does_not_depend_on_those_beside_it() -> None:
    x = torch.tensor([[0.0], [1.0]])
    peaks = torch.tensor([[0.0], [50.0]])
    pair = tabulate(lambda x: -(x - peaks).square() / 2, torch.zeros(2), torch.tensor([1.0, 0.1]))
    alone = tabulate(lambda x: -x.square() / 2, torch.zeros(1), torch.ones(1))
    assert torch.equal(pair.places[:1], alone.places)
    torch.testing.assert_close(pair.log_prob(x.mT[..., None].expand(2, -1, -1))[:1], alone.log_prob(x.mT[..., None]))


def test_beyond_the_table_there_is_nothing() -> None:
    found = tabulate(log_of_gamma, torch.zeros(3), torch.ones(3))
    assert (found.log_prob(torch.full((3, 1, 1), 1e3)) == -math.inf).all()
    assert (found.log_prob(found.places[:, :1, None]) < found.density.amax(-1, keepdim=True).log() - 29).all()


def test_values_that_are_not_finite_are_no_mass() -> None:
    """A parabola whose log joint overflows on one side."""
    found = tabulate(lambda x: torch.where(x > 4, torch.nan, -x.square() / 2), torch.zeros(1), torch.ones(1))
    mean, sd = found.moments()
    assert mean.abs().item() < 1e-3
    assert sd.item() == pytest.approx(1.0, abs=2e-3)
