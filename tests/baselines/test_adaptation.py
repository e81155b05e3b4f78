"""Warm-up: windows, step sizes that give the acceptance asked for, metrics that match the target."""

from __future__ import annotations

import itertools

import pytest
import torch

from posteria.baselines import hmc
from posteria.baselines.adaptation import (
    Moments,
    StepSize,
    approach,
    metric_at_mode,
    reasonable_step_size,
    windows,
)
from posteria.baselines.base import evaluate, start
from posteria.baselines.dynamics import Metric
from tests.baselines.targets import correlated


@pytest.mark.parametrize("num_warmup", [0, 1, 20, 40, 100, 500, 1000, 4000])
def test_windows_double_and_end_before_the_last_stretch(num_warmup: int) -> None:
    ends = windows(num_warmup)
    lengths = [b - a for a, b in itertools.pairwise(ends)]
    assert all(length >= 25 for length in lengths)
    assert all(b >= 2 * a for a, b in itertools.pairwise(lengths))
    assert not ends or ends[-1] == num_warmup - int(0.15 * num_warmup)
    assert bool(ends) == (num_warmup >= 40)


def test_windows_are_long_enough_for_a_full_covariance_or_are_not() -> None:
    assert windows(500, 250) == (75, 425)
    assert windows(500, 400) == ()


def test_few_draws_leave_the_metric_of_the_mode(generator: torch.Generator) -> None:
    joint = correlated(parameters=10)
    for chains, kept in ((2, True), (16, False)):
        sampler = hmc.build(joint, num_warmup=60)
        began = state = sampler.init(joint.draws(chains, generator), generator)
        for _ in range(60):
            state, _ = sampler.update(state, generator)
        assert torch.equal(began.tuning.metric.root, state.tuning.metric.root) == kept


def test_dual_averaging_finds_the_step_of_a_known_curve() -> None:
    best = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)  # the acceptance is exp(-(step / best)^2 / 4)
    step = StepSize.at(torch.ones(3, dtype=torch.float64))
    for _ in range(1000):
        step = step.learn((-(step.log_step.exp() / best).square() / 4).exp(), 0.8)
    expected = best * 2 * torch.tensor(0.8, dtype=torch.float64).log().neg().sqrt()
    torch.testing.assert_close(step.log_average.exp(), expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("target", [0.8, 0.9, 0.95])
def test_warmed_up_chains_accept_as_often_as_asked(target: float, generator: torch.Generator) -> None:
    joint = correlated(parameters=10)
    sampler = hmc.build(joint, num_warmup=300, target_accept=target)
    state, accepts = sampler.init(joint.draws(16, generator), generator), []
    for _ in range(500):
        state, info = sampler.update(state, generator)
        accepts.append(info.accept.mean(1))
    assert (torch.stack(accepts[300:]).mean(0) - target).abs().max() < 0.08


@pytest.mark.parametrize("dense", [True, False])
def test_moments_are_those_of_the_draws_around_their_chain(dense: bool, generator: torch.Generator) -> None:
    joint, z = correlated(), torch.randn(2, 4, 30, 3, generator=generator, dtype=torch.float64)
    moments = Moments.empty(z[:, :, 0], dense)
    for i in range(30):
        moments = moments.add(z[:, :, i] + 1e4)
    away = z - z.mean(2, keepdim=True)
    scatter = torch.einsum("bcsp,bcsq->bpq", away, away)
    torch.testing.assert_close(moments.scatter, scatter if dense else scatter.diagonal(dim1=-2, dim2=-1),
                               rtol=1e-6, atol=1e-6)
    root = moments.metric(joint.active).root
    weight, num_draws = 116 / 121, 116
    covariance = weight * scatter / num_draws + (1 - weight) * 1e-3 * torch.eye(3)
    found = root @ root.mT if dense else root.square()
    expected = covariance if dense else covariance.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-9)
    assert (found[1][..., -1] == (torch.tensor([0.0, 0.0, 1.0]) if dense else 1.0)).all()  # padding


@pytest.mark.parametrize("dense_up_to", [10, 0])
def test_the_first_metric_is_the_curvature_at_the_mode(dense_up_to: int) -> None:
    joint = correlated()
    metric = metric_at_mode(joint, start(joint, 3 * torch.ones(2, 4, 3, dtype=torch.float64)), dense_up_to)
    if dense_up_to:
        torch.testing.assert_close(metric.root @ metric.root.mT, joint.covariance)
    else:
        given_others = joint.curvature(joint.mean[:, None], 0).diagonal().rsqrt()
        torch.testing.assert_close(metric.root, given_others)


def test_the_last_metric_is_the_covariance(generator: torch.Generator) -> None:
    joint = correlated()
    sampler = hmc.build(joint, num_warmup=400)
    state = sampler.init(joint.draws(16, generator), generator)
    for _ in range(400):
        state, _ = sampler.update(state, generator)
    whitened = state.tuning.metric.whiten(joint.draws(5000, generator))[0]
    torch.testing.assert_close(torch.cov(whitened.mT), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.3)


def test_reasonable_steps_scale_with_the_target(generator: torch.Generator) -> None:
    joint = correlated()
    point, metric = evaluate(joint, joint.draws(64, generator)), Metric(torch.linalg.cholesky(joint.covariance))
    about = reasonable_step_size(joint, metric, point, generator)
    small = reasonable_step_size(joint, Metric(1000 * metric.root), point, generator)
    assert ((about >= 0.5) & (about <= 4)).all()
    torch.testing.assert_close(small, about / 1024)  # steps are powers of two


def test_far_chains_are_led_to_where_the_others_are(generator: torch.Generator) -> None:
    joint = correlated()
    z = joint.draws(8, generator)
    z[:, 0] += 1000.0
    point, near = start(joint, z), evaluate(joint, z[:, 1:])
    led = approach(joint, Metric(torch.linalg.cholesky(joint.covariance)), point)
    assert (led.log_density[:, 0] > near.log_density.amax(1) - 20).all()
    torch.testing.assert_close(led.z[:, 1:], point.z[:, 1:], rtol=0, atol=0)
