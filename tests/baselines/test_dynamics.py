"""Hamiltonian moves: reversible, of second order, invariant for the target, and never to where there is no density."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posteria.baselines.base import Point, evaluate, start
from posteria.baselines.dynamics import Metric, acceptance, leapfrog, transition
from posteria.errors import InputError
from tests.baselines.targets import GaussianJoint, correlated


def _metric(joint: GaussianJoint, dense: bool) -> Metric:
    scale = joint.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return Metric(torch.linalg.cholesky(joint.covariance) if dense else scale)


def _sizes(joint: GaussianJoint, step: float, steps: int) -> tuple[Tensor, Tensor]:
    datasets = torch.arange(len(joint.mean))
    return step / (1 + datasets.double()), steps + datasets


def _moments_in_se(draws: Tensor, joint: GaussianJoint) -> Tensor:
    """Errors of means and covariances in standard errors, over the active parameters of independent draws (B, C, P)."""
    away = draws - joint.mean[:, None]
    both = joint.active[:, :, None] & joint.active[:, None, :]
    variance = joint.covariance.diagonal(dim1=-2, dim2=-1)
    mean = (away.mean(1) / (variance / draws.shape[1]).sqrt())[joint.active]
    product = variance[:, :, None] * variance[:, None, :] + joint.covariance**2
    second = (away.mT @ away / draws.shape[1] - joint.covariance) / (product / draws.shape[1]).sqrt()
    return torch.cat([mean, second[both]]).abs()


@pytest.mark.parametrize("dense", [True, False])
def test_trajectories_run_backwards(dense: bool, generator: torch.Generator) -> None:
    joint = correlated()
    point, sizes = evaluate(joint, joint.draws(5, generator)), _sizes(joint, 0.2, 7)
    momentum = torch.randn(point.z.shape, generator=generator, dtype=torch.float64)
    end, last = leapfrog(joint, _metric(joint, dense), point, momentum, *sizes)
    back, first = leapfrog(joint, _metric(joint, dense), end, -last, *sizes)
    assert (end.z - point.z).abs().amax() > 0.1
    torch.testing.assert_close(back.z, point.z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(-first, momentum, rtol=1e-10, atol=1e-10)


def test_the_energy_error_is_of_second_order(generator: torch.Generator) -> None:
    joint = correlated()
    point = evaluate(joint, joint.draws(50, generator))
    momentum = torch.randn(point.z.shape, generator=generator, dtype=torch.float64)

    def error(step: float) -> float:
        sizes = torch.full((2,), step, dtype=torch.float64), torch.full((2,), round(1 / step))
        end, last = leapfrog(joint, _metric(joint, True), point, momentum, *sizes)
        energy = [0.5 * p.square().sum(-1) - q.log_density for p, q in ((momentum, point), (last, end))]
        return float((energy[1] - energy[0]).abs().mean())

    assert 3.5 < error(0.1) / error(0.05) < 4.5


@pytest.mark.parametrize(("dense", "step", "steps"), [(True, 1.2, 1), (True, 0.7, 3), (False, 0.6, 2)])
def test_a_move_leaves_the_target_as_it_is(dense: bool, step: float, steps: int, generator: torch.Generator) -> None:
    joint = correlated()
    point = evaluate(joint, joint.draws(20_000, generator))
    move = transition(joint, _metric(joint, dense), point, *_sizes(joint, step, steps), generator)
    assert 0.2 < float(move.info.accept.mean()) < 0.99
    assert _moments_in_se(move.point.z, joint).max() < 4.0


@pytest.mark.parametrize("factor", [0.8, 1.1])
def test_steered_trajectories_leave_the_target_as_it_is(factor: float, generator: torch.Generator) -> None:
    """Steered by gradients that are wrong by so much, and do not know how the parameters are correlated."""
    joint = correlated()
    variance = joint.covariance.diagonal(dim1=-2, dim2=-1)

    def steer(z: Tensor) -> Tensor:
        return torch.where(joint.active[:, None], factor * (joint.mean[:, None] - z) / variance[:, None], 0.0)

    metric, sizes = _metric(joint, False), _sizes(joint, 0.3, 3)
    point = evaluate(joint, joint.draws(20_000, generator))
    point = replace(point, score=steer(point.z))
    asked = joint.asked
    move = transition(joint, metric, point, *sizes, generator, steer)
    assert joint.asked == asked + 1
    assert 0.2 < float(move.info.accept.mean()) < 0.99
    assert _moments_in_se(move.point.z, joint).max() < 4.0
    momentum = torch.randn(point.z.shape, generator=generator, dtype=torch.float64)
    end, last = leapfrog(joint, metric, point, momentum, *sizes, steer)
    back, first = leapfrog(joint, metric, end, -last, *sizes, steer)
    torch.testing.assert_close(back.z, point.z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(-first, momentum, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(end.log_density, joint.score(end.z)[0])


def test_wrong_accept_steps_would_be_noticed(generator: torch.Generator) -> None:
    joint = correlated()
    point = evaluate(joint, joint.draws(20_000, generator))
    move = transition(joint, _metric(joint, True), point, *_sizes(joint, 1.2, 1), generator)
    assert _moments_in_se(move.proposal.z, joint).max() > 6.0


def test_datasets_with_fewer_steps_stop_early(generator: torch.Generator) -> None:
    joint = correlated()
    point = evaluate(joint, joint.draws(4, generator))
    momentum = torch.randn(point.z.shape, generator=generator, dtype=torch.float64)
    step = torch.full((2,), 0.3, dtype=torch.float64)
    both, _ = leapfrog(joint, _metric(joint, True), point, momentum, step, torch.tensor([2, 6]))
    for i, steps in enumerate((2, 6)):
        alone = joint[torch.tensor([i])]
        place = Point(*(t[i:i + 1] for t in (point.z, point.log_density, point.score)))
        end, _ = leapfrog(alone, _metric(alone, True), place, momentum[i:i + 1], step[:1], torch.tensor([steps]))
        torch.testing.assert_close(both.z[i], end.z[0])


def test_places_without_density_are_never_taken(generator: torch.Generator) -> None:
    joint = correlated(wall=1.0)
    joint.mean[:, 0] = 0.0
    point = start(joint, torch.zeros(2, 200, 3, dtype=torch.float64))
    seen, step, steps = 0, torch.full((2,), 2.0, dtype=torch.float64), torch.full((2,), 2)
    for _ in range(30):
        move = transition(joint, Metric.identity(point.z), point, step, steps, generator)
        lost = ~torch.isfinite(move.proposal.log_density)
        seen += int(lost.sum())
        assert (move.info.accept[lost] == 0).all()
        assert move.info.divergent[lost].all()
        point = move.point
        assert torch.isfinite(point.log_density).all()
        assert (point.z[..., 0].abs() <= 1.0).all()
    assert seen > 0


def test_a_chain_leaves_a_place_without_density() -> None:
    joint, momentum = correlated(), torch.zeros(2, 4, 3, dtype=torch.float64)
    inside = evaluate(joint, momentum)
    outside = Point(inside.z, torch.full_like(inside.log_density, -torch.inf), inside.score)
    accept, divergent = acceptance(outside, momentum, inside, momentum)
    assert (accept == 1).all()
    assert not divergent.any()


def test_energy_errors_past_a_thousand_are_divergences() -> None:
    joint, momentum = correlated(), torch.zeros(2, 1, 3, dtype=torch.float64)
    point = evaluate(joint, momentum)
    for fall, expected in ((999.0, False), (1001.0, True)):
        worse = Point(point.z, point.log_density - fall, point.score)
        assert acceptance(point, momentum, worse, momentum)[1].all() == expected


def test_padding_stands_still(generator: torch.Generator) -> None:
    joint = correlated()
    began = point = start(joint, torch.ones(2, 6, 3, dtype=torch.float64))
    for _ in range(5):
        point = transition(joint, Metric.identity(point.z), point, *_sizes(joint, 0.05, 3), generator).point
    still = ~joint.active[:, None].expand_as(point.z)
    assert (point.z[still] == 0).all()
    assert (point.z != began.z)[~still].all()


@pytest.mark.parametrize(("z", "argument"), [
    (torch.zeros(2, 3), "z: got shape"), (torch.zeros(2, 0, 3), "one chain or more"),
    (torch.zeros(2, 4, 2), "z: got shape"), (torch.full((2, 4, 3), torch.nan), "not finite"),
])
def test_starts_are_checked(z: Tensor, argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        start(correlated(), z.double())
