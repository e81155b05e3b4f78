"""Every sampler on targets with known answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posteria.baselines import (
    BASELINES,
    Budget,
    Draws,
    Sampler,
    chees,
    hmc,
    langevin,
    laplace,
    optimization,
    prior,
    run,
)
from posteria.baselines.chees import halton
from posteria.baselines.dynamics import Metric
from posteria.baselines.schedule import Falling
from posteria.errors import InputError
from posteria.metrics.convergence import ess_bulk
from posteria.types import LogJoint
from tests.baselines.targets import GaussianJoint, correlated

Build = Callable[[LogJoint], Sampler]
# Step sizes that suit the target, in place of the paper's, so that there is something to converge.
EXACT: dict[str, Build] = {
    "hmc": lambda joint: hmc.build(joint, num_warmup=150),
    "hmc, diagonal": lambda joint: hmc.build(joint, num_warmup=300, dense_up_to=0),
    "chees": lambda joint: chees.build(joint, num_warmup=300),
    "mala": lambda joint: langevin.build(joint, num_warmup=300),
    "fixed steps": lambda joint: hmc.build_paper(joint, 100, first=0.15, last=0.15),
    "laplace": laplace.build,
}


def drawn(build: Build, joint: GaussianJoint, chains: int = 16, samples: int = 250, seed: int = 3,
          diagnose: bool = True) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(joint.mean), chains, joint.mean.shape[1], generator=generator, dtype=torch.float64)
    return run(lambda index, longer: build(joint[index]), z, joint.active, generator, Budget(samples),
               diagnose)


def errors_in_se(draws: Draws, joint: GaussianJoint) -> Tensor:
    """Errors of means and variances in Monte Carlo standard errors, over the active parameters."""
    variance = joint.covariance.diagonal(dim1=-2, dim2=-1)
    away = draws.z - joint.mean[:, None, None]
    shares = away.square() / variance[:, None, None]
    mean = away.mean((1, 2)) / (variance / ess_bulk(draws.z)).sqrt()
    second = (shares.mean((1, 2)) - 1) / (2 / ess_bulk(shares)).sqrt()
    return torch.cat([mean[joint.active], second[joint.active]]).abs()


@pytest.mark.parametrize("name", sorted(set(EXACT) - {"fixed steps"}))  # which comes back to where it was
def test_draws_are_of_the_target(name: str) -> None:
    joint = correlated()
    draws = drawn(EXACT[name], joint)
    assert draws.convergence is not None
    assert (draws.convergence.worst["r_hat"] < 1.05).all()
    assert errors_in_se(draws, joint).max() < 4.0
    assert draws.divergences.sum() == 0
    assert (draws.z[~joint.active[:, None, None].expand_as(draws.z)] == 0).all()


@pytest.mark.parametrize("name", [*EXACT, "unadjusted"])
def test_seeds_repeat(name: str) -> None:
    build = {**EXACT, "unadjusted": lambda joint: langevin.build_paper(joint, 5)}[name]
    first, again, other = (drawn(build, correlated(), 4, 8, seed).z for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().amax() > 0


@pytest.mark.parametrize("name", ["hmc", "chees", "mala"])
def test_a_dataset_alone_has_the_same_posterior(name: str) -> None:
    joint = correlated()
    alone = joint[torch.tensor([1])]
    together, single = drawn(EXACT[name], joint), drawn(EXACT[name], alone, seed=5)
    assert errors_in_se(together, joint).max() < 4.0
    assert errors_in_se(single, alone).max() < 4.0
    assert 0.5 < float(together.step_size[1] / single.step_size[0]) < 2.0


@pytest.mark.parametrize("name", ["hmc", "chees", "mala", "fixed steps"])
def test_a_wall_truncates_the_target(name: str) -> None:
    wall = 0.5
    joint = GaussianJoint(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64), wall=wall)
    z = drawn(EXACT[name], joint, samples=150).z[..., 0]
    assert (z.abs() <= wall).all()
    edge = torch.tensor(wall, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    variance = float(1 - 2 * edge * normal.log_prob(edge).exp() / (2 * normal.cdf(edge) - 1))
    size = float(ess_bulk((z**2)[..., None])[0, 0])
    assert abs(float((z**2).mean()) - variance) < 4 * float((z**2).std()) / size**0.5


def test_unadjusted_langevin_has_its_known_bias(generator: torch.Generator) -> None:
    step = 0.4
    joint = GaussianJoint(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64))
    draws = drawn(lambda j: langevin.build_paper(j, 50, first=step, last=step), joint, 64, 500)
    ess = ess_bulk(draws.z.square())[0, 0]
    expected = 1 / (1 - step / 4)
    assert abs(float(draws.z.square().mean()) - expected) < 4 * expected * float((2 / ess).sqrt())
    assert (draws.accept == 1).all()


def test_the_paper_s_step_sizes_hardly_move() -> None:
    joint = correlated()
    for build in (langevin.build_paper, hmc.build_paper):
        draws = drawn(lambda j, build=build: build(j, num_warmup=50), joint, 4, 50)
        assert not draws.converged.any()
        assert float(draws.step_size.max()) <= 1e-3


def test_falling_steps_are_geometric() -> None:
    falling = Falling(1e-3, 1e-5, 101)
    assert [round(falling(i), 10) for i in (0, 50, 100, 1000)] == [1e-3, 1e-4, 1e-5, 1e-5]


def test_the_prior_is_where_chains_start(generator: torch.Generator) -> None:
    joint = correlated()
    z = joint.draws(7, generator)
    draws = run(lambda index, longer: prior.build(joint[index]), z, joint.active, generator, Budget(1), False)
    torch.testing.assert_close(draws.z[:, :, 0], z, rtol=0, atol=0)
    assert draws.convergence is None


def test_adam_picks_a_rate_per_dataset_and_reaches_the_mode() -> None:
    joint = correlated()
    joint.mean[1] += 4.0  # further away than the smaller rates go
    draws = drawn(lambda j: optimization.build(j, 1500), joint, 5, 1, diagnose=False)
    assert draws.z.shape == (2, 5, 1, 3)
    torch.testing.assert_close(draws.z[:, :, 0][joint.active[:, None].expand(2, 5, 3)],
                               joint.mean[:, None].expand(2, 5, 3)[joint.active[:, None].expand(2, 5, 3)],
                               rtol=0, atol=0.02)
    assert float(draws.step_size[1]) == pytest.approx(0.01)


def test_adam_is_torch_s() -> None:
    joint = correlated(datasets=1)
    draws = drawn(lambda j: optimization.build(j, 30, rates=[0.05]), joint, 3, 1, diagnose=False)
    z = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([z], 0.05)
    for _ in range(30):
        z.grad = -joint.score(z.detach())[1]
        optimizer.step()
    torch.testing.assert_close(draws.z[:, :, 0], z.detach())


def test_laplace_takes_the_highest_mode_of_its_starts() -> None:
    joint = correlated()
    sampler = laplace.build(joint)
    state = sampler.init(torch.full((2, 3, 3), 5.0, dtype=torch.float64), torch.Generator())
    error = (state.mode - joint.mean) / joint.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert error[joint.active].abs().max() < 0.01
    assert (state.mode[~joint.active] == 0).all()


def test_trajectory_lengths_reach_across_the_target(generator: torch.Generator) -> None:
    """Without a metric, on scales from 0.05 to 1: lengths grow until the widest direction is crossed, no further."""
    variance = torch.linspace(0.05, 1.0, 8, dtype=torch.float64).square()
    joint = GaussianJoint(torch.zeros(1, 8, dtype=torch.float64), torch.diag_embed(variance)[None])
    sampler = chees.build(joint, num_warmup=400)
    state = sampler.init(joint.draws(64, generator), generator)
    unit = Metric(torch.ones(1, 8, dtype=torch.float64))
    state = replace(state, tuning=replace(state.tuning, metric=unit, ends=()))
    for _ in range(400):
        state, _ = sampler.update(state, generator)
    assert 0.8 < float(state.length.log_average.exp()) < 4.0


def test_halton_fills_the_interval() -> None:
    assert [halton(i) for i in range(1, 8)] == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


@pytest.mark.parametrize(("build", "settings", "argument"), [
    (hmc.build, {"num_warmup": -1}, "num_warmup"), (hmc.build, {"target_accept": 1.0}, "target_accept"),
    (hmc.build, {"max_steps": 0}, "max_steps"), (hmc.build, {"trajectory": -1.0}, "trajectory"),
    (chees.build, {"target_accept": 0.0}, "target_accept"), (hmc.build_paper, {"num_steps": 0}, "num_steps"),
    (langevin.build_paper, {"first": 0.0}, "step sizes"), (langevin.build_paper, {"iterations": 1}, "iterations"),
    (optimization.build, {"rates": ()}, "rates"), (optimization.build, {"iterations": 0}, "iterations"),
    (laplace.build, {"num_starts": 0}, "num_starts"),
])
def test_settings_are_checked(build: Callable[..., Sampler], settings: dict[str, float], argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        build(correlated(), **settings)


def test_chees_wants_two_chains(generator: torch.Generator) -> None:
    with pytest.raises(InputError, match="num_chains: got 1"):
        chees.build(correlated()).init(torch.zeros(2, 1, 3, dtype=torch.float64), generator)


def test_baselines_are_a_closed_registry() -> None:
    assert set(BASELINES) == {"prior", "optimization", "laplace", "mala", "hmc", "chees", "paper_langevin",
                              "paper_hmc"}
