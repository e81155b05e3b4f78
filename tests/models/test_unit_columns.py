"""Columns of hidden units: rectified lines and columns written out are the same, and sweeps over them are exact."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from posteria.models import NeuralRegression, neural
from posteria.models.rectified import Rectified
from posteria.models.unit_columns import Columns, DenseColumns, LineColumns
from posteria.models.unit_sweeps import Chains
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.types import Dataset

CHAINS, PLACES, UNITS, ROWS = 7, 3, 5, 40


def _both(scale_of_x: float = 1.0) -> tuple[LineColumns | None, DenseColumns]:
    """The same units, some flat and some without a row above zero, with another noise in every chain."""
    generator = generator_for(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.double, generator=generator)

    x, y = scale_of_x * (3.0 + normal(ROWS)), 2.0 * normal(ROWS)
    x[:4] = x[4]  # ties
    slope, offset = normal(1, CHAINS * PLACES, UNITS), 3.0 * normal(1, CHAINS * PLACES, UNITS)
    slope[..., 0] = 0.0
    offset[:, 1, 1], slope[:, 1, 1] = -1e3, 0.1
    strength = normal(CHAINS).exp().repeat_interleave(PLACES)[None]
    scale = normal(UNITS).exp()
    lines = LineColumns.of(Rectified(x, y, slope, offset, strength), PLACES, scale)
    root = strength[0, ::PLACES].sqrt()
    values = (slope[0, :, :, None] * x + offset[0, :, :, None]).relu() * scale[:, None]
    values = values.unflatten(0, (CHAINS, PLACES)) * root[:, None, None, None]
    return lines, DenseColumns(values.contiguous(), root[:, None] * y)


def _chains(columns: Columns) -> Chains:
    generator = generator_for(2)
    place = torch.randint(PLACES, (CHAINS, UNITS), generator=generator)
    luck = torch.randn(CHAINS, UNITS, PLACES, dtype=torch.double, generator=generator)
    prior = torch.randn(CHAINS, UNITS, dtype=torch.double, generator=generator)
    products, pulls = columns.products(place)
    inverse = (products + torch.eye(UNITS, dtype=torch.double)).inverse().contiguous()
    state = (luck, place, prior, inverse, pulls + prior, torch.zeros(CHAINS, dtype=torch.double), place.clone())
    return Chains(*(values.numpy() for values in state))


def _evidence(columns: Columns, picked: np.ndarray, prior: np.ndarray) -> Tensor:
    products, pulls = columns.products(torch.from_numpy(picked))
    precision, pulled = products + torch.eye(UNITS, dtype=torch.double), pulls + torch.from_numpy(prior)
    return 0.5 * (pulled * torch.linalg.solve(precision, pulled)).sum(-1) - 0.5 * torch.logdet(precision)


ORDER = torch.tensor([3, 0, 4, 1, 2])


def test_lines_are_columns() -> None:
    lines, dense = _both()
    assert lines is not None
    picked = torch.randint(PLACES, (CHAINS, UNITS), generator=generator_for(3))
    for mine, written_out in zip(lines.products(picked), dense.products(picked), strict=True):
        torch.testing.assert_close(mine, written_out, rtol=1e-10, atol=1e-10)
    one, other = _chains(lines), _chains(dense)
    lines.sweep(ORDER, one)
    dense.sweep(ORDER, other)
    assert (one.picked == other.picked).all()
    np.testing.assert_allclose(one.gained, other.gained, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("which", [0, 1], ids=["lines", "columns"])
def test_sweeps_keep_what_they_know_up_to_date(which: int) -> None:
    columns = _both()[which]
    assert columns is not None
    chains = _chains(columns)
    columns.sweep(ORDER, chains)
    assert (chains.picked != chains.place).any()
    gained = _evidence(columns, chains.picked, chains.prior) - _evidence(columns, chains.place, chains.prior)
    np.testing.assert_allclose(chains.gained, gained, rtol=1e-8, atol=1e-8)
    products, pulls = columns.products(torch.from_numpy(chains.picked))
    np.testing.assert_allclose(chains.inverse, (products + torch.eye(UNITS)).inverse(), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(chains.pulled, pulls + torch.from_numpy(chains.prior), rtol=1e-10, atol=1e-10)


def test_every_choice_is_the_best_of_evidence_and_luck() -> None:
    """One unit's, against the evidence with each of its places, computed from nothing."""
    _, dense = _both()
    chains = _chains(dense)
    unit = 2
    expected = []
    for place in range(PLACES):
        picked = chains.place.copy()
        picked[:, unit] = place
        expected.append(_evidence(dense, picked, chains.prior) + torch.from_numpy(chains.luck[:, unit, place]))
    dense.sweep(torch.tensor([unit]), chains)
    assert (torch.stack(expected, -1).argmax(-1).numpy() == chains.picked[:, unit]).all()


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("which", [0, 1], ids=["lines", "columns"])
def test_threads_change_nothing(which: int) -> None:
    columns = _both()[which]
    assert columns is not None
    alone, shared = _chains(columns), _chains(columns)
    columns.sweep(ORDER, alone)
    columns.sweep_all(ORDER, shared)
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


def test_columns_are_written_out_where_sums_would_round() -> None:
    assert _both(1e6)[0] is None
    assert _both(float("inf"))[0] is None


@pytest.mark.parametrize("noise", [0.25, "inferred"])
def test_conditionals_are_the_same_with_and_without_sums(noise: str | float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets of different sizes, padded, and output weights with a prior of their own."""
    model = NeuralRegression(hidden=4, noise=noise, priors={"output_weights": Normal(0.7, 2.0)})
    parts = [SimulatedTask(model, (rows, rows), (1, 1)).draw(1, generator_for(rows))[0] for rows in (9, 12)]
    dataset = Dataset(*(torch.cat([getattr(part.padded(14, 1), name) for part in parts])
                        for name in ("x", "y", "observed", "features"))).double()
    theta = model.sample_prior(dataset, 50, generator_for(0)).double()
    monkeypatch.setattr(neural, "_MANY_ROWS", 1)
    by_sums = model._products_of_lines(theta, dataset)
    assert by_sums is not None
    mean, factor = model.conditional(theta, dataset)
    monkeypatch.setattr(neural, "_MANY_ROWS", 2**40)
    expected_mean, expected_factor = model.conditional(theta, dataset)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(factor, expected_factor, rtol=1e-8, atol=1e-8)
