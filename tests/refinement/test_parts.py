"""The proposal against quadrature, nested R-hat against its formula, and cost."""

from __future__ import annotations

import math

import pytest
import torch

from posteria.models import GaussianMean, ModelLogJoint
from posteria.randomness import generator_for
from posteria.refinement import Proposal, nested_r_hat
from posteria.refinement.problem import Counted
from posteria.refinement.proposal import flip
from posteria.types import Dataset

SWAP = torch.tensor([[0, 1], [1, 0]])


def proposal(permutations: torch.Tensor | None = None) -> Proposal:
    """Two components over two parameters."""
    factor = torch.tensor([[[[2.0, 0.0], [0.5, 1.0]], [[1.0, 0.0], [-0.3, 3.0]]]], dtype=torch.double)
    centre = torch.tensor([[[0.5, -1.0], [2.0, 1.0]]], dtype=torch.double)
    share = torch.tensor([[0.3, 0.7]], dtype=torch.double)
    return Proposal(centre, factor, share, torch.ones(1, 2, dtype=torch.bool), permutations)


@pytest.mark.parametrize("permutations", [None, SWAP])
def test_density_integrates_to_one_and_draws_follow_it(permutations: torch.Tensor | None) -> None:
    one = proposal(permutations)
    line = torch.linspace(-40, 40, 801, dtype=torch.double)
    grid = torch.cartesian_prod(line, line)
    density = one.log_prob(grid[None])[0].exp() * 0.01
    assert float(density.sum()) == pytest.approx(1.0, abs=2e-3)
    noise = torch.randn(40_000, 2, generator=generator_for(0), dtype=torch.double)
    drawn = one.draw(noise, flip(40_000, generator_for(1)))[0][0]
    for statistic in (lambda z: z[:, 0], lambda z: z[:, 1].sin(), lambda z: (-0.1 * z.square().sum(-1)).exp()):
        sample = statistic(drawn)
        assert abs(sample.mean() - (statistic(grid) * density).sum()) < 4 * sample.std() / 200 + 5e-3


def test_inactive_parameters_change_nothing() -> None:
    one = proposal()
    wide = Proposal(torch.nn.functional.pad(one.centre, (0, 1)),
                    torch.nn.functional.pad(one.factor, (0, 1, 0, 1)) + torch.diag(torch.tensor([0.0, 0.0, 1.0])),
                    one.share, torch.tensor([[True, True, False]]))
    noise, coins = torch.randn(50, 3, generator=generator_for(0), dtype=torch.double), flip(50, generator_for(1))
    z = wide.draw(noise, coins)[0]
    assert (z[..., 2] == 0).all()
    torch.testing.assert_close(z[..., :2], one.draw(noise[:, :2], coins)[0])
    torch.testing.assert_close(wide.log_prob(z), one.log_prob(z[..., :2]))


def test_nested_r_hat_is_its_formula() -> None:
    draws = torch.randn(2, 3, 4, 5, 1, generator=generator_for(0), dtype=torch.double)
    draws[0, 0] += 1.0
    mean = draws[0, ..., 0].mean(-1)
    between = mean.mean(-1).var()
    within = (mean.var(-1) + draws[0, ..., 0].var(-1).mean(-1)).mean()
    assert float(nested_r_hat(draws)[0]) == pytest.approx(float((1 + between / within).sqrt()))
    assert nested_r_hat(draws)[0] > 1.05


def test_superchains_that_stand_apart_do_not_pass() -> None:
    draws = 0.01 * torch.randn(1, 8, 8, 40, 1, generator=generator_for(0))
    assert nested_r_hat(draws) < 1.01
    draws[:, :2] += 5.0
    assert nested_r_hat(draws) > 10


def test_evaluations_are_counted() -> None:
    joint = Counted(ModelLogJoint(GaussianMean(), Dataset.of(torch.zeros(4, 2))))
    z = torch.zeros(1, 3, 2)
    joint.score(z)
    joint.geometry(z)
    joint.curvature(z, 10)
    assert joint.evaluations == 9
    assert math.isfinite(float(joint.fixed_noise(2, 0).sum()))
