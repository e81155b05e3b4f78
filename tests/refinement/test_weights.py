"""Importance weights against what is known of normal proposals for a normal target."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from posteria.errors import InputError
from posteria.randomness import generator_for
from posteria.refinement import Accuracy, Change, Moments, Weights
from posteria.refinement.weights import resample

LOG_EVIDENCE = -3.7


def of_scale(scale: float, shift: float = 0.0, num: int = 4000, batch: int = 1) -> tuple[torch.Tensor, Weights]:
    """Draws of N(shift, scale²) and their weights towards N(0, 1) with a known evidence."""
    x = shift + scale * torch.randn(batch, num, generator=generator_for(1), dtype=torch.double)
    return x, Weights.of(Normal(0.0, 1.0).log_prob(x) + LOG_EVIDENCE, Normal(shift, scale).log_prob(x))


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.2, 2.0])
def test_effective_size_and_evidence(scale: float) -> None:
    """E[w²] = s² / sqrt(2 s² - 1) for w = N(0, 1) / N(0, s²)."""
    weights = of_scale(scale, batch=20)[1]
    expected = math.sqrt(2 * scale**2 - 1) / scale**2
    spread = float(weights.relative_ess.std()) / math.sqrt(20)
    assert abs(float(weights.relative_ess.mean()) - expected) < 4 * spread + 0.01
    error = (weights.log_evidence - LOG_EVIDENCE) / weights.log_evidence_error.clamp(min=1e-9)
    assert error.abs().max() < 4
    assert (weights.pareto_k < 0.6).all()
    assert weights.reliable.all()


def test_consistency_variance_of_a_shift() -> None:
    """log p - log q = m x + const over x ~ N(m, 1) has variance m²."""
    weights = of_scale(1.0, shift=0.5)[1]
    assert abs(float(weights.consistency_variance) - 0.25) < 4 * 0.25 * math.sqrt(2 / 4000)


@pytest.mark.parametrize(("scale", "k"), [(0.5, 0.75), (0.3, 0.91), (0.8, 0.36)])
def test_k_hat_of_narrow_proposals(scale: float, k: float) -> None:
    """w = exp(a x²) over N(0, s²) has a Pareto tail with k = 1 - s²."""
    found = of_scale(scale, num=20_000, batch=8)[1].pareto_k
    assert abs(float(found.mean()) - k) < 0.12


def test_equal_weights_have_no_tail() -> None:
    weights = Weights.of(torch.full((2, 100), 1.5), torch.full((2, 100), 1.0))
    assert weights.pareto_k.tolist() == [0.0, 0.0]
    assert torch.allclose(weights.ess, torch.tensor(100.0, dtype=torch.double))
    assert weights.reliable.all()


def test_what_is_not_finite_is_counted_and_not_reliable() -> None:
    x, _ = of_scale(1.1, batch=4)
    log_joint, log_q = Normal(0.0, 1.0).log_prob(x), Normal(0.0, 1.1).log_prob(x)
    log_joint[1, :3], log_joint[2] = torch.nan, torch.nan
    log_joint[3, 0] = -torch.inf  # no density: not an error
    weights = Weights.of(log_joint, log_q)
    assert weights.bad.tolist() == [0, 3, 4000, 0]
    assert weights.reliable.tolist() == [True, False, False, True]
    assert torch.isinf(weights.pareto_k[2])
    assert torch.isfinite(weights.weights).all()


def test_log_densities_beyond_rounding_are_not_equal_weights() -> None:
    x, _ = of_scale(1.1, batch=2)
    log_joint, log_q = Normal(0.0, 1.0).log_prob(x), Normal(0.0, 1.1).log_prob(x)
    log_joint[0] -= 1e20  # what q says is lost in rounding: all weights look alike
    log_joint[1, :3] = -1e20  # some draws far out are none of that
    found = Weights.of(log_joint, log_q)
    assert found.reliable.tolist() == [False, True]
    assert found.bad.tolist() == [4000, 0]


def test_one_dataset_is_as_in_the_batch() -> None:
    x, weights = of_scale(1.3, batch=5)
    alone = Weights.of(Normal(0.0, 1.0).log_prob(x[3:4]) + LOG_EVIDENCE, Normal(0.0, 1.3).log_prob(x[3:4]))
    torch.testing.assert_close(alone.weights, weights.weights[3:4])
    torch.testing.assert_close(alone.pareto_k, weights.pareto_k[3:4])


def test_thousand_datasets_take_seconds() -> None:
    of_scale(1.2)
    began = time.process_time()
    of_scale(1.2, num=1000, batch=1000)
    assert time.process_time() - began < 8


def test_wrong_shapes() -> None:
    with pytest.raises(InputError, match=r"log_q: got shape \(2, 30\)"):
        Weights.of(torch.zeros(2, 40), torch.zeros(2, 30))
    with pytest.raises(InputError, match="25 draws or more"):
        Weights.of(torch.zeros(2, 10), torch.zeros(2, 10))


# -- moments -------------------------------------------------------------------------------------
def test_an_exact_q_needs_no_margin() -> None:
    x = torch.randn(1, 100, 3, generator=generator_for(2))
    change = Change.of(x, torch.full((1, 100), 0.01))
    assert change.shift_error.max() < 1e-6
    assert change.passes(Accuracy(), torch.ones(1, 3, dtype=torch.bool)).all()


@pytest.mark.parametrize(("scale", "shift", "passes"), [(1.0, 0.03, True), (1.0, 0.2, False), (0.8, 0.0, False),
                                                        (1.03, 0.0, True), (1.2, 0.0, False)])
def test_bias_of_q_is_seen(scale: float, shift: float, passes: bool) -> None:
    x, weights = of_scale(scale, shift, batch=20)
    change = Change.of(x[..., None], weights.weights)
    error = (change.shift[:, 0] - shift) / change.shift_error[:, 0].clamp(min=1e-9)
    assert error.square().mean() < 3
    error = (change.narrowing[:, 0] - math.log(scale)) / change.narrowing_error[:, 0].clamp(min=1e-9)
    assert error.square().mean() < 3
    assert change.passes(Accuracy(), torch.ones(20, 1, dtype=torch.bool)).all() == passes


def test_effort_is_the_number_of_draws_the_target_takes() -> None:
    x = torch.randn(1, 1000, 1, generator=generator_for(2))
    counted = torch.ones(1, 1, dtype=torch.bool)
    target = Accuracy(mean=0.1, sd=0.5)
    effort = float(Moments.of(x, torch.full((1, 1000), 1e-3)).effort(target, counted))
    assert effort == pytest.approx((float(target.margin(counted)) / 0.1) ** 2 / 1000, rel=0.01)
    with pytest.raises(InputError, match=r"target.mean: got 0.0"):
        Accuracy(mean=0.0)


def test_errors_are_those_of_other_draws() -> None:
    """Means and sds of weighted draws of 400 datasets spread as their standard errors say, within a tenth."""
    x, weights = of_scale(1.3, num=500, batch=400)
    moments = Moments.of(x[..., None], weights.weights)
    mean, log_sd = moments.mean[:, 0], moments.sd[:, 0].log()
    assert float(mean.std() / moments.mean_error.mean()) == pytest.approx(1.0, abs=0.1)
    assert float(log_sd.std() / moments.sd_error.mean()) == pytest.approx(1.0, abs=0.1)


def test_weights_that_are_nearly_equal_have_no_tail() -> None:
    """Whatever the shape of differences of a hundredth; but not where one draw weighs much."""
    noise = torch.zeros(2, 1000).log_normal_(0.0, 2.0, generator=generator_for(4)).clamp(max=30.0)
    log_joint = 0.01 * noise
    log_joint[1, 0] = 1.0
    found = Weights.of(log_joint, torch.zeros(2, 1000))
    assert float(found.pareto_k[0]) == 0.0
    assert float(found.pareto_k[1]) != 0.0
    assert (found.relative_ess > 0.99).all()


def test_resampling_keeps_the_weights() -> None:
    weights = torch.tensor([[0.1, 0.2, 0.0, 0.7]])
    counts = resample(weights, 1000, generator_for(0))[0].bincount(minlength=4)
    assert (counts - 1000 * weights[0]).abs().max() <= 1


@pytest.mark.parametrize("degrees", [3.0, 5.0])
def test_the_tail_of_weighted_squares(degrees: float) -> None:
    """Squares of Student's t have the tail index 2 / degrees, whatever their light weights; those of a normal none."""
    num, generator = 40_000, np.random.default_rng(0)
    heavy, light = generator.standard_t(degrees, num), generator.standard_normal(num)
    values = torch.from_numpy(np.stack([light, heavy, 1e6 * generator.standard_t(1.0, num)], -1))[None]
    weights = Weights.of(torch.from_numpy(0.1 * generator.standard_normal(num))[None], torch.zeros(1, num))
    k = weights.spread_k(values, torch.tensor([[True, True, False]]))
    error = (1.0 + 2.0 / degrees) / (3.0 * num**0.5) ** 0.5
    assert abs(float(k) - 2.0 / degrees) < 4.0 * error
    assert weights.spread_k(values, torch.tensor([[True, False, False]])) < 0.3
    equal = Weights.of(torch.zeros(1, num), torch.zeros(1, num))
    assert equal.spread_k(values, torch.ones(1, 3, dtype=torch.bool)) == 0.0
    assert weights.spread_k(torch.ones(1, num, 1), torch.ones(1, 1, dtype=torch.bool)) == 0.0
