"""The exact band and p-values of the uniformity test against simulation and hand calculation, and Holm's correction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.metrics.uniformity import (
    UniformityTest,
    central_lattice,
    central_points,
    holm,
    rank_points,
    simultaneous_band,
    simultaneous_band_at,
    uniformity_test,
)


def curves(num_datasets: int, points: Tensor, num: int, seed: int = 0) -> np.ndarray:
    """(num, K) counts below the points of uniform samples."""
    cells = np.diff(np.concatenate([[0.0], points.numpy(), [1.0]]))
    return np.random.default_rng(seed).multinomial(num_datasets, cells, size=num).cumsum(1)[:, :-1]


@pytest.mark.parametrize(("num_datasets", "num_draws"), [(20, 10), (500, 199), (1000, 999)])
def test_the_band_holds_whole_curves_as_often_as_it_says(num_datasets: int, num_draws: int) -> None:
    band = simultaneous_band(num_datasets, num_draws, 0.9)
    counts = curves(num_datasets, band.points, 40_000)
    low, high = ((end * num_datasets).round().numpy() for end in (band.lower, band.upper))
    held = ((counts >= low) & (counts <= high)).all(1).mean()
    error = (0.9 * 0.1 / 40_000) ** 0.5
    slack = 0.03 if num_datasets == 20 else 0.004  # counts are whole: the band may hold a little more
    assert 0.9 - 4 * error < held < 0.9 + slack + 4 * error


def test_one_point_is_a_binomial_interval() -> None:
    """N = 10, z = 1/2: the counts 2 to 8 hold 1 - 2 (1 + 10) / 1024 = 0.9785, and 3 to 7 hold 0.8906."""
    band = simultaneous_band_at(10, (0.5,), 0.95)
    assert (float(band.lower), float(band.upper)) == (0.2, 0.8)
    at_eight = uniformity_test("x", "rank", torch.tensor([0.25] * 8 + [0.75] * 2), (0.5,))
    assert at_eight.p_value == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_p_values_are_uniform_or_more_cautious() -> None:
    points = torch.tensor(rank_points(199), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(400, 100, generator=generator)
    found = np.array([uniformity_test("x", "rank", row, rank_points(199)).p_value for row in values])
    for level in (0.05, 0.2, 0.5):
        assert abs((found <= level).mean() - level) < 4 * (level * (1 - level) / 400) ** 0.5
    assert len(points) == 50


def test_a_curve_leaves_the_band_exactly_where_its_p_value_says_so() -> None:
    generator = torch.Generator().manual_seed(2)
    for row in torch.rand(60, 150, generator=generator) ** 1.1:
        test = uniformity_test("x", "rank", row, rank_points(99))
        band = test.band(0.8)
        inside = bool(((test.fractions >= band.lower - 1e-9) & (test.fractions <= band.upper + 1e-9)).all())
        assert inside == (test.p_value > 0.2)


def test_tiny_p_values_are_small_and_positive() -> None:
    test = uniformity_test("x", "rank", torch.full((5000,), 0.01), rank_points(199))
    assert 0 < test.p_value < 1e-12


def test_points_are_levels_that_ranks_have() -> None:
    assert rank_points(3) == (0.25, 0.5, 0.75)
    points = rank_points(999)
    assert (len(points), points[0], points[-1]) == (50, 0.001, 0.999)
    torch.testing.assert_close(central_lattice(4), torch.tensor([0.2, 0.6], dtype=torch.float64))
    torch.testing.assert_close(central_lattice(5), torch.tensor([1, 2], dtype=torch.float64) / 3)
    assert len(central_points(4000)) == 50


@pytest.mark.parametrize("num_draws", [3, 4, 9, 10])
def test_central_levels_of_uniform_ranks_hit_the_lattice(num_draws: int) -> None:
    ranks = torch.arange(num_draws + 1)
    levels = (2 * (ranks + 0.5) / (num_draws + 1) - 1).abs()
    for level in central_lattice(num_draws):
        assert float((levels < level).double().mean()) == pytest.approx(float(level))


def _with(p_value: float) -> UniformityTest:
    empty = torch.zeros(0)
    return UniformityTest("x", "rank", empty, empty, 10, p_value)


def test_holm_by_hand() -> None:
    verdicts = holm([_with(p) for p in (0.01, 0.04, 0.03, 0.005)], 0.95)
    assert [v.adjusted_p_value for v in verdicts] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [v.passes for v in verdicts] == [False, True, True, False]
    assert holm([], 0.95) == ()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"level: got 1\.0"):
        simultaneous_band(10, 9, 1.0)
    with pytest.raises(InputError, match="num_datasets: got 0"):
        simultaneous_band(0, 9)
    with pytest.raises(InputError, match="num_draws: got 2"):
        simultaneous_band(10, 2)
    with pytest.raises(InputError, match="points"):
        uniformity_test("x", "rank", torch.rand(5), (0.5, 0.5))
    with pytest.raises(InputError, match="values"):
        uniformity_test("x", "rank", torch.tensor([1.5]), (0.5,))
