"""What chains have left to go, against series whose way is known."""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.refinement.transient import left_to_go

CHAINS, TIMES = 64, torch.arange(1, 1_793).double()


def left(series: Tensor, length: int) -> Tensor:
    """Of series (B, C, T) of one parameter."""
    return left_to_go(lambda z: z[..., 0], list(series.movedim(2, 0)[..., None]), length)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def relaxing(rate: float) -> Tensor:
    """(100, 64, T) of two states, an sd apart, of half the mass each: chains start in one, and change at a rate."""
    chance = torch.Generator().manual_seed(1)
    state = torch.zeros(100, CHAINS, dtype=torch.bool)
    found = []
    for _ in TIMES:
        state = state ^ (torch.rand(state.shape, generator=chance) < rate)
        found.append(state)
    return torch.stack(found, 2).double() + noise(100, CHAINS, len(TIMES))


def test_chains_that_are_there_have_nothing_left() -> None:
    found = left(noise(200, CHAINS, len(TIMES)), 1_280)
    error = found.std() / len(found)**0.5
    assert found.mean().abs() < 4 * error
    assert found.std() < 0.025  # half of what the ladder allows


def test_what_is_left_of_a_slow_way_is_found() -> None:
    way = -6.0 * TIMES.rsqrt()
    truth = way[-640:].mean()
    found = left(way + noise(200, CHAINS, len(TIMES)), 640)
    assert (found.mean() - truth).abs() < 4 * found.std() / len(found)**0.5
    assert truth < -0.15
    assert (found < -0.05).all()


def test_a_state_that_chains_enter_slowly_is_seen_until_all_have_been_there() -> None:
    slow, fast = relaxing(1 / 1_500), relaxing(1 / 50)
    off = 0.5 - slow[..., -1_280:].mean((1, 2))
    assert off.mean() > 0.1
    assert (left(slow, 1_280) < -0.05).float().mean() > 0.9
    assert (left(fast, 1_280).abs() < 0.05).float().mean() > 0.9


def test_units_of_measurement_do_not_matter() -> None:
    series = noise(5, CHAINS, 200)
    torch.testing.assert_close(left(1e3 * series + 7.0, 100), left(series, 100))
    torch.testing.assert_close(left(-series, 100), -left(series, 100))


def test_chains_that_stand_still_say_nothing() -> None:
    assert left(torch.ones(1, CHAINS, 200, dtype=torch.double), 100).isinf().all()
    assert left(noise(1, CHAINS, 200).fill_(torch.nan), 100).isinf().all()
