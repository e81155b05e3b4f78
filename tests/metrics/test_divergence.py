"""Divergences against torch.distributions, and Monte Carlo against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from posteria.errors import InputError
from posteria.metrics import elbo, eubo, gaussian_kl, gaussian_symmetric_kl, monte_carlo_symmetric_kl
from posteria.randomness import seeded

B, P = 5, 4


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def moments(generator: torch.Generator, batch: int = B, size: int = P) -> tuple[Tensor, Tensor]:
    root = torch.randn(batch, size, size, dtype=torch.double, generator=generator)
    mean = torch.randn(batch, size, dtype=torch.double, generator=generator)
    return mean, root @ root.mT + 0.5 * torch.eye(size)


def normal(mean: Tensor, covariance: Tensor) -> MultivariateNormal:
    return MultivariateNormal(mean, covariance)


def test_gaussian_kl_is_that_of_torch(generator: torch.Generator) -> None:
    p, q = moments(generator), moments(generator)
    torch.testing.assert_close(gaussian_kl(*p, *q), kl_divergence(normal(*p), normal(*q)))


def test_symmetric_kl_is_half_the_sum_per_parameter(generator: torch.Generator) -> None:
    p, q = moments(generator), moments(generator)
    both = kl_divergence(normal(*p), normal(*q)) + kl_divergence(normal(*q), normal(*p))
    torch.testing.assert_close(gaussian_symmetric_kl(*p, *q), both / (2 * P))
    torch.testing.assert_close(gaussian_symmetric_kl(*q, *p), both / (2 * P))


def test_shift_by_hand() -> None:
    """Unit variances s apart in every parameter: either divergence is s² / 2 per parameter."""
    mean, covariance = torch.zeros(1, 3), torch.eye(3)[None]
    assert gaussian_symmetric_kl(mean + 0.5, covariance, mean, covariance).item() == pytest.approx(0.125)
    assert gaussian_kl(mean + 0.5, covariance, mean, covariance).item() == pytest.approx(0.375)


def test_no_divergence_from_itself(generator: torch.Generator) -> None:
    """Zero, also where variances span ten orders of magnitude."""
    mean, covariance = moments(generator, size=6)
    scale = torch.logspace(-5, 5, 6, dtype=torch.double)
    covariance = scale[:, None] * covariance * scale
    assert (gaussian_kl(mean, covariance, mean, covariance).abs() < 1e-24).all()
    assert (gaussian_symmetric_kl(mean, covariance, mean, covariance) < 1e-24).all()
    assert (gaussian_symmetric_kl(mean, covariance, mean, covariance) >= 0).all()


def test_tiny_divergences_are_precise() -> None:
    """A mean off by e sds costs e² / 2: 5e-21 for e = 1e-10, where a difference of traces has lost all digits."""
    mean, covariance = torch.zeros(1, 1).double(), torch.eye(1).double()[None]
    assert gaussian_symmetric_kl(mean + 1e-10, covariance, mean, covariance).item() == pytest.approx(5e-21)
    wider = gaussian_symmetric_kl(mean, covariance * (1 + 1e-6), mean, covariance).item()
    assert wider == pytest.approx(0.25e-12, rel=1e-3)  # (v + 1 / v - 2) / 4 for a ratio v of variances


def test_inactive_parameters_are_dropped(generator: torch.Generator) -> None:
    active = torch.tensor([[True, False, True, True], [True, True, True, True], [False, False, False, True]])
    (mean_p, covariance_p), (mean_q, covariance_q) = moments(generator, 3), moments(generator, 3)
    expected = torch.cat([
        gaussian_symmetric_kl(mean_p[b:b + 1, kept], covariance_p[b:b + 1, kept][:, :, kept],
                              mean_q[b:b + 1, kept], covariance_q[b:b + 1, kept][:, :, kept])
        for b, kept in enumerate(active)])
    mean_p = torch.where(active, mean_p, torch.nan)  # whatever stands there
    covariance_q = torch.where(active[:, None], covariance_q, -3.0)
    torch.testing.assert_close(gaussian_symmetric_kl(mean_p, covariance_p, mean_q, covariance_q, active), expected)


def test_alone_as_in_a_batch_and_in_any_order_of_parameters(generator: torch.Generator) -> None:
    p, q = moments(generator), moments(generator)
    together = gaussian_symmetric_kl(*p, *q)
    alone = [gaussian_symmetric_kl(*(m[b:b + 1] for m in (*p, *q))) for b in range(B)]
    torch.testing.assert_close(together, torch.cat(alone))
    order = torch.tensor([2, 0, 3, 1])
    (mean_p, covariance_p), (mean_q, covariance_q) = p, q
    moved = gaussian_symmetric_kl(mean_p[:, order], covariance_p[:, order][:, :, order],
                                  mean_q[:, order], covariance_q[:, order][:, :, order])
    torch.testing.assert_close(moved, together)


def test_monte_carlo_is_within_its_standard_error(generator: torch.Generator) -> None:
    """Over 200 pairs: unbiased, and as far off as the standard errors say."""
    p, q = moments(generator, 200, 2), moments(generator, 200, 2)
    exact, (normal_p, normal_q) = gaussian_symmetric_kl(*p, *q), (normal(*p), normal(*q))
    with seeded(generator):
        draws_p, draws_q = normal_p.sample(torch.Size((4000,))), normal_q.sample(torch.Size((3000,)))
    estimate = monte_carlo_symmetric_kl(normal_q.log_prob(draws_q).T, normal_p.log_prob(draws_q).T,
                                        normal_p.log_prob(draws_p).T, normal_q.log_prob(draws_p).T, 2)
    z = (estimate.value - exact) / estimate.standard_error
    assert abs(z.mean()) < 4 / math.sqrt(200)
    assert 0.8 < z.std() < 1.2


def test_number_of_parameters_may_differ_between_datasets(generator: torch.Generator) -> None:
    densities = [torch.randn(2, 10, generator=generator) for _ in range(4)]
    one, many = (monte_carlo_symmetric_kl(densities[0], densities[1], densities[2], densities[3], size)
                 for size in (1, torch.tensor([1, 5])))
    torch.testing.assert_close(many.value, one.value / torch.tensor([1, 5]))
    torch.testing.assert_close(many.standard_error, one.standard_error / torch.tensor([1, 5]))


def test_bounds_bracket_the_evidence(generator: torch.Generator) -> None:
    """log Z = 3: the gaps are the two divergences."""
    p, q = moments(generator, 100, 2), moments(generator, 100, 2)
    normal_p, normal_q = normal(*p), normal(*q)
    with seeded(generator):
        draws_p, draws_q = normal_p.sample(torch.Size((4000,))), normal_q.sample(torch.Size((4000,)))
    lower = elbo(normal_p.log_prob(draws_q).T + 3, normal_q.log_prob(draws_q).T)
    upper = eubo(normal_p.log_prob(draws_p).T + 3, normal_q.log_prob(draws_p).T)
    for estimate, expected in ((lower, 3 - gaussian_kl(*q, *p)), (upper, 3 + gaussian_kl(*p, *q))):
        z = (estimate.value - expected) / estimate.standard_error
        assert abs(z.mean()) < 4 / math.sqrt(100)
        assert 0.75 < z.std() < 1.25


def test_bounds_are_tight_at_the_posterior() -> None:
    log_q = torch.tensor([[0.1, -2.0, 3.0]])
    estimate = elbo(log_q + 7, log_q)
    assert estimate.value.item() == pytest.approx(7, rel=1e-6)
    assert estimate.standard_error.item() == pytest.approx(0, abs=1e-6)


def test_infinite_log_densities_stay_with_their_dataset() -> None:
    estimate = elbo(torch.tensor([[-torch.inf, 0.0], [1.0, 1.0]]), torch.zeros(2, 2))
    assert estimate.value.tolist() == [-torch.inf, 1.0]


def test_wrong_inputs_are_named(generator: torch.Generator) -> None:
    mean, covariance = moments(generator)
    with pytest.raises(InputError, match="covariance_q: got dataset 0 not positive definite"):
        gaussian_kl(mean, covariance, mean, -covariance)
    with pytest.raises(InputError, match=r"covariance_p: got shape \(5, 3, 3\)"):
        gaussian_kl(mean, covariance[:, :3, :3], mean, covariance)
    with pytest.raises(InputError, match="mean_q: got shape"):
        gaussian_symmetric_kl(mean, covariance, mean[:, :3], covariance[:, :3, :3])
    with pytest.raises(InputError, match="mean_p: got 20 NaN or infinite values"):
        gaussian_kl(mean + torch.nan, covariance, mean, covariance)
    with pytest.raises(InputError, match="covariance_p: got 80 NaN or infinite values"):
        gaussian_kl(mean, covariance + torch.nan, mean, covariance)
    with pytest.raises(InputError, match="active: got no parameter in dataset 0"):
        gaussian_symmetric_kl(mean, covariance, mean, covariance, torch.zeros(B, P, dtype=torch.bool))


def test_wrong_log_densities_are_named() -> None:
    ones = torch.ones(2, 3)
    with pytest.raises(InputError, match="log_joint: got 1 draw; takes 2 draws or more"):
        elbo(ones[:, :1], ones[:, :1])
    with pytest.raises(InputError, match=r"log_q: got shape \(2, 2\)"):
        eubo(ones, ones[:, :2])
    with pytest.raises(InputError, match="log_p_of_p: got shape"):
        monte_carlo_symmetric_kl(ones, ones, ones[:1], ones[:1], 2)
    for size in (0, torch.tensor([1, 2, 3])):
        with pytest.raises(InputError, match="num_parameters: got"):
            monte_carlo_symmetric_kl(ones, ones, ones, ones, size)
