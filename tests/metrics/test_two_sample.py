"""Distances between draws against closed forms and against what equal distributions must give."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.metrics import c2st, mmd_squared, sliced_wasserstein2_squared, wasserstein2, wasserstein2_squared

Distance = Callable[..., Tensor]
DISTANCES: list[Distance] = [wasserstein2_squared, wasserstein2, sliced_wasserstein2_squared, mmd_squared, c2st]
every_distance = pytest.mark.parametrize("distance", DISTANCES, ids=lambda distance: distance.__name__)


@pytest.fixture
def draws() -> tuple[Tensor, Tensor]:
    """Three datasets, two parameters, 40 draws of each of two distributions."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 40, 2, generator=generator)
    return a, 1.5 * b + 0.7


# -- what must not matter ---------------------------------------------------------------------


@every_distance
def test_alone_as_in_a_batch(distance: Distance, draws: tuple[Tensor, Tensor]) -> None:
    a, b = draws
    together = distance(a, b)
    assert together.shape == (3,)
    assert together.dtype == torch.double
    alone = torch.cat([distance(a[i:i + 1], b[i:i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(distance(a.flip(0), b.flip(0)).flip(0), together)


@every_distance
def test_order_of_draws_does_not_count(distance: Distance, draws: tuple[Tensor, Tensor]) -> None:
    a, b = draws
    generator = torch.Generator().manual_seed(1)
    moved = (x[:, torch.randperm(40, generator=generator)] for x in (a, b))
    torch.testing.assert_close(distance(*moved), distance(a, b))


@every_distance
def test_inactive_parameters_do_not_count(distance: Distance, draws: tuple[Tensor, Tensor]) -> None:
    a, b = (torch.stack([x[..., 0], torch.full_like(x[..., 0], filler), x[..., 1]], -1)
            for x, filler in zip(draws, (torch.nan, 5.0), strict=True))
    active = torch.tensor([True, False, True]).expand(3, 3)
    torch.testing.assert_close(distance(a, b, active), distance(*draws))


def test_datasets_may_have_different_parameters(draws: tuple[Tensor, Tensor]) -> None:
    a, b = draws
    active = torch.tensor([[True, True], [True, False], [False, True]])
    for distance in (wasserstein2_squared, sliced_wasserstein2_squared, mmd_squared):
        expected = [distance(a[:1], b[:1]), distance(a[1:2, :, :1], b[1:2, :, :1]),
                    distance(a[2:, :, 1:], b[2:, :, 1:])]
        torch.testing.assert_close(distance(a, b, active), torch.cat(expected))


@pytest.mark.parametrize("distance", DISTANCES[:4], ids=lambda distance: distance.__name__)
def test_distances_are_symmetric(distance: Distance, draws: tuple[Tensor, Tensor]) -> None:
    a, b = draws
    torch.testing.assert_close(distance(a, b[:, :30]), distance(b[:, :30], a))


# -- Wasserstein ------------------------------------------------------------------------------


def test_one_parameter_is_by_sorting(draws: tuple[Tensor, Tensor]) -> None:
    a, b = (x[..., :1] for x in draws)
    expected = (a.double().sort(1).values - b.double().sort(1).values).square().mean((1, 2))
    torch.testing.assert_close(wasserstein2_squared(a, b), expected)
    torch.testing.assert_close(sliced_wasserstein2_squared(a, b), expected)


def test_a_shift_costs_its_square(draws: tuple[Tensor, Tensor]) -> None:
    """All draws move by (3, 4): the square is 25, and half of it for the mean over directions of a plane."""
    a, _ = draws
    b = a + torch.tensor([3.0, 4.0])
    torch.testing.assert_close(wasserstein2_squared(a, b), torch.full((3,), 25.0).double(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(wasserstein2(a, b), torch.full((3,), 5.0).double(), rtol=1e-5, atol=0.0)
    sliced = sliced_wasserstein2_squared(a, b, num_projections=4000)
    torch.testing.assert_close(sliced, torch.full((3,), 12.5).double(), rtol=0.05, atol=0.0)


def test_samples_of_normals_approach_the_closed_form() -> None:
    """N(0, 1) and N(m, s²) per parameter: m² + (s - 1)² each. From above, and nearer with more draws."""
    generator = torch.Generator().manual_seed(0)
    expected = 2 * (1.0**2 + 0.5**2)
    errors = []
    for size in (50, 200, 800):
        a, b = torch.randn(2, 6, size, 2, generator=generator)
        errors.append(float((wasserstein2_squared(a, 1.5 * b + 1.0) - expected).mean()))
    assert errors[0] > errors[2]
    assert abs(errors[2]) < 0.1 * expected


def test_a_prior_against_a_point_in_100_dimensions() -> None:
    """About √200 = 14.1, the size of the paper's entries for the prior."""
    generator = torch.Generator().manual_seed(0)
    prior, truth = torch.randn(10, 25, 100, generator=generator), torch.randn(10, 1, 100, generator=generator)
    assert float(wasserstein2(prior, truth).mean()) == pytest.approx(math.sqrt(200), rel=0.05)


def test_unequal_numbers_of_draws() -> None:
    a, b = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[0.0], [1.0], [2.0]]])
    # A third of a stays at 0, a sixth goes 0 -> 1, a sixth stays at 1, a third goes 1 -> 2.
    assert wasserstein2_squared(a, b).item() == pytest.approx(0.5)


# -- MMD --------------------------------------------------------------------------------------


def test_mmd_is_its_definition(draws: tuple[Tensor, Tensor]) -> None:
    a, b = (x[0].double().numpy() for x in draws)
    both = np.concatenate([a, b])
    square = ((both[:, None] - both[None]) ** 2).sum(-1)
    upper = np.sort(np.sqrt(square[np.triu_indices(80, 1)]))
    kernel = np.exp(-square / (2 * upper[(len(upper) - 1) // 2] ** 2))
    np.fill_diagonal(kernel, 0)
    expected = (kernel[:40, :40].sum() + kernel[40:, 40:].sum()) / (40 * 39) - 2 * kernel[:40, 40:].mean()
    assert mmd_squared(*draws)[0].item() == pytest.approx(expected)


def test_mmd_has_mean_zero_under_equality() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 500, 30, 3, generator=generator)
    values = mmd_squared(a, b)
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(500)
    assert (values < 0).any()
    assert (mmd_squared(a, b + 1.0) > values).all()


def test_chunks_do_not_change_mmd(draws: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = mmd_squared(*draws)
    monkeypatch.setattr("posteria.metrics.two_sample._CHUNK_ENTRIES", 1)
    torch.testing.assert_close(mmd_squared(*draws), expected)


def test_mmd_of_points_counts_what_is_equal() -> None:
    same = torch.zeros(1, 5, 2)
    assert mmd_squared(same, same).item() == 0
    mostly = torch.zeros(1, 5, 2)
    mostly[0, 0] = 1.0
    # Of the pairs within b, 12 of 20 are equal; across, 4 of 5.
    assert mmd_squared(same, mostly).item() == pytest.approx(1 + 0.6 - 2 * 0.8)


# -- classifiers ------------------------------------------------------------------------------


def test_classifier_is_at_chance_for_equals_and_right_for_others() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, 100, 3, generator=generator)
    accuracy = c2st(a, b)
    # 200 draws classified in each of 6 datasets.
    assert abs(accuracy.mean() - 0.5) < 4 * 0.5 / math.sqrt(200 * 6)
    assert (c2st(a[:2], b[:2] + 3.0) > 0.95).all()


def test_classifier_sees_a_wrong_spread_in_many_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 200, 50, generator=generator)
    assert c2st(a, 1.6 * b).item() > 0.9


def test_classifier_sees_a_wrong_correlation() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 300, 2, generator=generator)
    a = torch.stack([a[..., 0], 0.9 * a[..., 0] + math.sqrt(0.19) * a[..., 1]], -1)
    b = torch.stack([b[..., 0], -0.9 * b[..., 0] + math.sqrt(0.19) * b[..., 1]], -1)
    assert c2st(a, b).item() > 0.8


def test_classifier_does_not_see_units_and_repeats(draws: tuple[Tensor, Tensor]) -> None:
    a, b = (x[:1].double() for x in draws)
    scale, shift = torch.tensor([1000.0, 0.001]).double(), torch.tensor([5.0, -2.0]).double()
    torch.testing.assert_close(c2st(scale * a + shift, scale * b + shift), c2st(a, b))
    assert c2st(a, b) == c2st(a, b)


def test_classifier_takes_constant_parameters(draws: tuple[Tensor, Tensor]) -> None:
    a, b = (torch.cat([x[:1], torch.ones(1, 40, 1)], -1) for x in draws)
    assert 0.5 < c2st(a, b).item() < 1


# -- errors -----------------------------------------------------------------------------------


@every_distance
def test_wrong_inputs_are_named(distance: Distance, draws: tuple[Tensor, Tensor]) -> None:
    a, b = draws
    with pytest.raises(InputError, match=r"b: got shape \(3, 40, 1\)"):
        distance(a, b[..., :1])
    with pytest.raises(InputError, match="a: got shape"):
        distance(a[0], b[0])
    with pytest.raises(InputError, match="b: got 1 NaN or infinite values, the first at"):
        distance(a, torch.where(b == b[0, 0, 0], torch.inf, b))
    with pytest.raises(InputError, match="active: got no parameter in dataset 0"):
        distance(a, b, torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="a: got 0 draws"):
        distance(a[:, :0], b[:, :0])


def test_each_needs_its_number_of_draws(draws: tuple[Tensor, Tensor]) -> None:
    a, b = draws
    with pytest.raises(InputError, match="a: got 1 draw; takes 2 draws or more"):
        mmd_squared(a[:, :1], b)
    with pytest.raises(InputError, match="a: got 19 draws; takes 20 draws or more"):
        c2st(a[:, :19], b[:, :19])
    with pytest.raises(InputError, match="b: got 30 draws; takes 40, as many as a"):
        c2st(a, b[:, :30])
    with pytest.raises(InputError, match="num_projections: got 0"):
        sliced_wasserstein2_squared(a, b, num_projections=0)
