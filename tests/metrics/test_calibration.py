"""Ranks, coverage and TARP of normal posteriors whose calibration is known."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.metrics.calibration import (
    binomial_band,
    expected_coverage,
    leaning,
    rank_ecdf,
    rank_test,
    sbc,
    sbc_ranks,
    tarp,
    tarp_ranks,
)

_B, _S, _P = 1000, 99, 2


def normal(correlation: float = 0.0, assumed: float | None = None, scale: float = 1.0, shift: float = 0.0,
           seed: int = 0) -> tuple[Tensor, Tensor]:
    """theta (B, P) and draws (B, S, P): both bivariate normal around a random centre, the draws as assumed."""
    generator = torch.Generator().manual_seed(seed)
    assumed = correlation if assumed is None else assumed
    centre = 5 * torch.randn(_B, 1, _P, generator=generator)
    noise = torch.randn(_B, 1 + _S, _P, generator=generator)
    first = _correlated(noise[:, :1], correlation)
    rest = shift + scale * _correlated(noise[:, 1:], assumed)
    return (centre + first)[:, 0], centre + rest


def _correlated(noise: Tensor, correlation: float) -> Tensor:
    second = correlation * noise[..., 0] + (1 - correlation**2) ** 0.5 * noise[..., 1]
    return torch.stack([noise[..., 0], second], -1)


def log_density(value: Tensor, centre: Tensor, correlation: float) -> Tensor:
    x, y = (value - centre).unbind(-1)
    return -0.5 * (x**2 - 2 * correlation * x * y + y**2) / (1 - correlation**2)


def test_ranks_by_hand_and_ties_at_random() -> None:
    theta, draws = torch.tensor([[0.5, 2.0]]), torch.tensor([[[0.0, 3.0], [1.0, 4.0], [0.2, 5.0]]])
    assert sbc_ranks(theta, draws).tolist() == [[2, 0]]
    generator = torch.Generator().manual_seed(0)
    ranks = sbc_ranks(torch.zeros(8000), torch.zeros(8000, 3), generator)
    counts = torch.bincount(ranks, minlength=4)
    assert ((counts - 2000).abs() < 4 * (8000 * 0.25 * 0.75) ** 0.5).all()
    assert rank_test("x", ranks, 3).p_value > 0.001


def test_exact_posteriors_pass_about_as_often_as_stated() -> None:
    """80 runs at level 80%: 16 false alarms at most on average, and Holm's correction makes fewer."""
    failing = sum(not sbc(*normal(0.5, seed=seed), level=0.8).passes for seed in range(80))
    assert 4 <= failing <= 30


@pytest.mark.parametrize(("fault", "where"), [
    ({"scale": 0.8}, "too narrow"), ({"scale": 1.25}, "too wide"),
    ({"shift": 0.3}, "too high"), ({"shift": -0.3}, "too low"),
])
def test_faults_of_marginals_fail_and_are_named(fault: dict[str, float], where: str) -> None:
    for seed in range(3):
        found = sbc(*normal(seed=seed, **fault), level=0.99)
        assert {leaning(verdict.test) for verdict in found.failing} == {where}
        assert len(found.failing) == _P


def test_a_wrong_sign_of_correlation_needs_a_joint_quantity() -> None:
    theta, draws = normal(0.6, assumed=-0.6)
    centre = draws.mean(1)
    joint = {"log joint": (log_density(theta, centre, 0.6), log_density(draws, centre[:, None], 0.6))}
    found = sbc(theta, draws, joint, level=0.99)
    assert [verdict.test.name for verdict in found.failing] == ["log joint"]
    own = log_density(theta, centre, -0.6), log_density(draws, centre[:, None], -0.6)
    covered = expected_coverage(theta, draws, log_q=own)
    assert [test.p_value < 1e-6 for test in covered.tests] == [False, False, True]
    assert covered.hpd is not None
    assert float(covered.hpd[1]) < 0.7


def test_coverage_of_narrow_posteriors_is_the_known_one() -> None:
    """Central intervals of level c from N(0, 0.8²) hold a fraction 2 Φ(0.8 z_c) - 1 of N(0, 1)."""
    theta, draws = normal(scale=0.8)
    found = expected_coverage(theta, draws, [0.5, 0.8, 0.9])
    torch.testing.assert_close(found.levels, torch.tensor([0.5, 0.8, 0.9], dtype=torch.float64))
    for level, measured in zip(found.levels.tolist(), found.central.mean(1).tolist(), strict=True):
        expected = 2 * NormalDist().cdf(0.8 * NormalDist().inv_cdf((1 + level) / 2)) - 1
        assert abs(measured - expected) < 4 * (0.25 / (_P * _B)) ** 0.5
    low, _ = found.band(0.99)
    assert (found.central < low).all()


def test_coverage_of_exact_posteriors_lies_in_its_binomial_band() -> None:
    found = expected_coverage(*normal(0.3), torch.linspace(0.1, 0.9, 9).tolist())
    low, high = found.band(0.9999)
    assert ((found.central >= low) & (found.central <= high)).all()
    assert all(test.p_value > 0.001 for test in found.tests)


def test_binomial_band_by_hand() -> None:
    low, high = binomial_band(torch.tensor([0.5]), torch.tensor([10]), 0.95)
    assert (float(low), float(high)) == (0.2, 0.8)


def test_tarp_sees_wrong_spread_and_wrong_correlation() -> None:
    generator = torch.Generator().manual_seed(3)
    for fault, fails in (({}, False), ({"scale": 0.8}, True), ({"scale": 1.25}, True), ({"assumed": -0.8}, True)):
        theta, draws = normal(0.8, **fault)
        found = tarp(theta, draws[:, 1:], draws[:, 0], generator)
        assert (found.p_value < 1e-3) == fails
        assert (found.kind, found.num_datasets) == ("tarp", _B)
    theta, draws = normal()
    assert tarp(theta, draws, generator=generator).p_value > 1e-3


def test_tarp_ranks_by_hand() -> None:
    theta, draws = torch.tensor([[0.0, 9.0]]), torch.tensor([[[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0]]])
    active = torch.tensor([[True, False]])
    assert tarp_ranks(theta, draws, torch.tensor([[2.0, 0.0]]), active=active).tolist() == [2]


def test_padding_batching_and_order_change_nothing() -> None:
    theta, draws = normal(0.5, scale=0.9)
    active = torch.ones(_B, _P, dtype=torch.bool)
    active[::3, 1] = False
    padded = torch.nn.functional.pad(theta, (0, 1)), torch.nn.functional.pad(draws, (0, 1))
    wide = torch.nn.functional.pad(active, (0, 1))
    first, second = sbc(theta, draws, active=active), sbc(*padded, active=wide)
    assert [v.test.p_value for v in first.verdicts] == [v.test.p_value for v in second.verdicts]
    assert first.verdicts[1].test.num_datasets == int(active[:, 1].sum())
    turned = torch.randperm(_B, generator=torch.Generator().manual_seed(0))
    ours, others = (expected_coverage(theta[i], draws[i], active=active[i]) for i in (torch.arange(_B), turned))
    torch.testing.assert_close(ours.central, others.central)
    assert [t.p_value for t in ours.tests] == [t.p_value for t in others.tests]
    assert expected_coverage(*padded, active=wide).central[:, 2].isnan().all()
    references = draws[:, 0] + 1
    ranks = tarp_ranks(theta, draws, references, active=active)
    torch.testing.assert_close(tarp_ranks(*padded, torch.nn.functional.pad(references, (0, 1)), active=wide), ranks)
    torch.testing.assert_close(tarp_ranks(theta[5:9], draws[5:9], references[5:9], active=active[5:9]), ranks[5:9])


def test_rank_ecdf_and_names() -> None:
    points, fractions = rank_ecdf(torch.tensor([0, 3, 3, 1]), 3)
    assert points.tolist() == [0.25, 0.5, 0.75]
    assert fractions.tolist() == [0.25, 0.5, 0.5]
    found = sbc(*normal(), names=["a", "b"])
    assert [verdict.test.name for verdict in found.of_kind("rank")] == ["a", "b"]


@pytest.mark.parametrize(("theta", "draws", "message"), [
    (torch.zeros(5, 2), torch.zeros(5, 2), "draws: got shape"),
    (torch.zeros(5, 2), torch.zeros(4, 9, 2), "draws: got shape"),
    (torch.zeros(5, 2), torch.full((5, 9, 2), torch.nan), "theta: got NaN"),
    (torch.zeros(5), torch.zeros(5, 9), r"theta: got shape \(5,\)"),
])
def test_shapes_and_nan_are_refused(theta: Tensor, draws: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sbc(theta, draws)


def test_other_arguments_are_refused() -> None:
    theta, draws = normal()
    with pytest.raises(InputError, match="names: got 1 names"):
        sbc(theta, draws, names=["a"])
    with pytest.raises(InputError, match="active"):
        sbc(theta, draws, active=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="levels"):
        expected_coverage(theta, draws, [0.5, 1.0])
    with pytest.raises(InputError, match="references"):
        tarp(theta, draws, theta[:3])
    with pytest.raises(InputError, match="two datasets or more"):
        tarp(theta[:1], draws[:1])
    with pytest.raises(InputError, match="ranks"):
        rank_test("x", torch.tensor([0, 11]), 10)
