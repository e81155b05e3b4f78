"""Mixtures of densities, against the mixture of normals that they are."""

from __future__ import annotations

import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from posteria.densities.gaussian import GaussianTheta
from posteria.densities.mixed import MixedTheta
from posteria.randomness import generator_for

SHARES = torch.tensor([[0.25, 0.75], [0.9, 0.1]])


def mixture() -> MixedTheta:
    active = torch.ones(2, 1, dtype=torch.bool)
    parts = tuple(GaussianTheta(torch.full((2, 1), mean), torch.full((2, 1), sd), active)
                  for mean, sd in ((-3.0, 0.5), (2.0, 1.0)))
    return MixedTheta(parts, SHARES.log())


def test_density() -> None:
    theta = torch.linspace(-6.0, 6.0, 50).expand(2, 50)
    parts = Normal(torch.tensor([-3.0, 2.0]), torch.tensor([0.5, 1.0]))
    known = torch.stack([MixtureSameFamily(Categorical(share), parts).log_prob(row)
                         for share, row in zip(SHARES, theta, strict=True)])
    torch.testing.assert_close(mixture().log_prob(theta[..., None]), known)


def test_draws_have_their_shares_and_their_density() -> None:
    theta, log_prob = mixture().rsample_and_log_prob(10_000, generator_for(0))
    torch.testing.assert_close(mixture().log_prob(theta), log_prob)
    low = (theta[..., 0] < -1.0).double().mean(1)
    expected = Normal(-3.0, 0.5).cdf(torch.tensor(-1.0)), Normal(2.0, 1.0).cdf(torch.tensor(-1.0))
    exact = SHARES.double() @ torch.stack(expected).double()
    assert ((low - exact).abs() <= 4 * (exact * (1 - exact) / 10_000).sqrt() + 1e-3).all()
    torch.testing.assert_close(mixture().rsample(10_000, generator_for(0)), theta)


def test_cut_from_the_graph() -> None:
    shares = SHARES.log().requires_grad_()
    made = MixedTheta(mixture().parts, shares).detach()
    assert not made.log_prob(torch.zeros(2, 3, 1)).requires_grad
