"""Draws out of given noise: their density is the distribution's, and no dataset's hang on those beside it."""

from __future__ import annotations

import pytest
import torch

from posteria.densities.changed import ChangedTheta
from posteria.densities.gaussian import GaussianTheta
from posteria.densities.mixed import MixedTheta
from posteria.densities.noise import from_noise
from posteria.densities.skewed import SkewedTheta
from posteria.types import ThetaDistribution

ACTIVE = torch.tensor([[True, True], [True, False]])
NOISE = torch.randn(2, 4_000, 2, generator=torch.Generator().manual_seed(0))


def gaussian(mean: float = 0.5) -> GaussianTheta:
    return GaussianTheta(torch.full((2, 2), mean), torch.tensor([[1.0, 2.0], [0.5, 1.0]]), ACTIVE)


def skewed() -> SkewedTheta:
    base = gaussian()
    return SkewedTheta(base, base.scale, torch.full((2, 2), 0.3), torch.full((2, 2), 0.9))


class WithoutNoise:
    """A distribution that does not say how its draws come about."""

    def __init__(self, base: GaussianTheta):
        for name in ("active", "rsample", "log_prob", "rsample_and_log_prob", "detach", "kl_to_normal"):
            setattr(self, name, getattr(base, name))


def changed(base: ThetaDistribution) -> ChangedTheta:
    return ChangedTheta(base, torch.exp, lambda theta: theta.clamp(min=1e-30).log(), lambda u: u)


EVERY = {
    "gaussian": gaussian(), "skewed": skewed(), "changed": changed(gaussian()),
    "mixed": MixedTheta((gaussian(-3.0), changed(gaussian(1.0))), torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()),
    "without": WithoutNoise(gaussian()), "changed without": changed(WithoutNoise(gaussian())),
}


@pytest.mark.parametrize("name", EVERY)
def test_draws_have_the_density_of_the_distribution(name: str) -> None:
    theta, log_prob = from_noise(EVERY[name], NOISE)
    torch.testing.assert_close(log_prob, EVERY[name].log_prob(theta), rtol=1e-4, atol=1e-4)
    assert (theta[1, :, 1] == 0).all()
    own = EVERY[name].rsample(4_000, torch.Generator().manual_seed(1))
    apart = (theta.mean(1) - own.mean(1)).abs() / ((theta.var(1) + own.var(1)) / 4_000).sqrt().clamp(min=1e-9)
    assert (apart < 4.0).all()
    again = from_noise(EVERY[name], NOISE)[0]
    assert torch.equal(theta, again)


def test_a_mixture_has_the_coins_of_a_dataset_alone() -> None:
    shares = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    both = MixedTheta((gaussian(-3.0), gaussian(1.0)), shares)
    alone = [GaussianTheta(g.mean[1:], g.scale[1:], ACTIVE[1:]) for g in (gaussian(-3.0), gaussian(1.0))]
    one = MixedTheta(tuple(alone), shares[1:])
    torch.testing.assert_close(from_noise(one, NOISE[1:])[0], from_noise(both, NOISE)[0][1:])
