"""Mixtures over hyperparameters: densities by quadrature, fits to points of known densities, padding; normal units."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from posteria.randomness import generator_for
from posteria.refinement.marginal import Marginal, Study, first_guess
from posteria.refinement.proposal import flip
from posteria.refinement.units import NormalUnits


def banana(u: Tensor) -> Tensor:
    """Log density of (a, b) with a ~ N(0, 1), b given a ~ N(a² / 2, 0.3²)."""
    a, b = u.unbind(-1)
    return -0.5 * (a**2 + ((b - 0.5 * a**2) / 0.3) ** 2) - math.log(0.3 * 2 * math.pi)


def studied(active: Tensor, rounds: int = 4) -> Study:
    """Of the banana, in the first two entries."""
    size = active.shape[1]
    nothing = torch.zeros(1, size, dtype=torch.double)
    proposal, study = first_guess(nothing, torch.ones_like(nothing), active), Study.empty(active)
    for number in range(rounds):
        noise = torch.randn(400, 2, generator=generator_for(number), dtype=torch.double)
        points = proposal.draw(torch.nn.functional.pad(noise, (0, size - 2)), flip(400, generator_for(10 + number)))
        study = study.more(proposal, points, banana(points[..., :2]))
        proposal = study.exploring()
    return study


def both() -> Tensor:
    return torch.ones(1, 2, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["first", "exploring", "following"])
def test_densities_integrate_to_one_and_draws_follow_them(kind: str) -> None:
    nothing = torch.zeros(1, 2, dtype=torch.double)
    study = studied(both(), 1)
    mixtures = {"first": first_guess(nothing + 0.3, nothing + 0.5, both()), "exploring": study.exploring(),
                "following": study.following()}
    mixture: Marginal = mixtures[kind]
    line = torch.linspace(-20, 20, 251, dtype=torch.double)
    grid = torch.cartesian_prod(line, line)
    density = torch.cat([mixture.log_prob(part[None])[0] for part in grid.split(50_000)]).exp() * 0.0256
    assert float(density.sum()) == pytest.approx(1.0, abs=5e-3)
    noise = torch.randn(20_000, 2, generator=generator_for(0), dtype=torch.double)
    drawn = mixture.draw(noise, flip(20_000, generator_for(1)))[0]
    for statistic in (lambda u: u[:, 0].tanh(), lambda u: u[:, 1].sin(), lambda u: (-0.1 * u.square().sum(-1)).exp()):
        sample = statistic(drawn)
        assert abs(sample.mean() - (statistic(grid) * density).sum()) < 4 * sample.std() / 141 + 5e-3


def test_a_mixture_follows_a_banana() -> None:
    mixture = studied(both()).following()
    noise = torch.randn(4000, 2, generator=generator_for(5), dtype=torch.double)
    u = mixture.draw(noise, flip(4000, generator_for(6)))
    weights = (banana(u) - mixture.log_prob(u))[0].exp()
    assert float(weights.mean()) == pytest.approx(1.0, abs=4 * float(weights.std()) / 63)
    assert float(weights.sum() ** 2 / weights.square().sum()) > 0.4 * 4000


def test_few_effective_points_are_flattened() -> None:
    study = studied(both(), 1)
    sharp = Study(study.points, 500.0 * study.values, study.past, study.active)
    assert float(1.0 / sharp.weights().square().sum()) >= 12.0
    lost = Study(study.points, torch.full_like(study.values, -torch.inf), study.past, study.active)
    assert lost.weights().isfinite().all()


def test_inactive_entries_change_nothing() -> None:
    wide = torch.tensor([[True, True, False]])
    plain, padded = studied(both()).following(), studied(wide).following()
    u = torch.randn(1, 50, 2, generator=generator_for(7), dtype=torch.double)
    torch.testing.assert_close(padded.log_prob(torch.nn.functional.pad(u, (0, 1))), plain.log_prob(u))


def test_units_make_priors_normal() -> None:
    knots = torch.linspace(-40, 40, 4001, dtype=torch.double)
    log_scale = torch.from_numpy(stats.halfnorm.logpdf(knots.exp().clamp(max=1e9).numpy())) + knots
    units = NormalUnits.of(knots, torch.stack([log_scale, -0.5 * knots**2]))
    h = torch.tensor([[-20.0, -3.0], [-5.0, 0.0], [0.1, 0.4], [1.2, 3.0]], dtype=torch.double)
    u, log_slope = units.units(h)
    expected = torch.from_numpy(stats.norm.ppf(stats.halfnorm.cdf(h[:, 0].exp().numpy())))
    torch.testing.assert_close(u, torch.stack([expected, h[:, 1]], -1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(units.back(u), h)
    density = torch.stack([torch.from_numpy(stats.halfnorm.logpdf(h[:, 0].exp().numpy())) + h[:, 0],
                           -0.5 * h[:, 1] ** 2 - 0.5 * math.log(2 * math.pi)], -1)
    normal = -0.5 * u**2 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(normal + log_slope, density, rtol=0.0, atol=0.02)
    far = torch.tensor([[-300.0, 300.0], [9.0, -70.0]], dtype=torch.double)
    torch.testing.assert_close(units.back(units.units(far)[0]), far)
