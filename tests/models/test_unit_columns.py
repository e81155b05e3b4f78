"""Columns of hidden units: rectified lines and columns written out are the same, and sweeps over them are exact."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from posteria.models import NeuralRegression, neural
from posteria.models.rectified import Rectified
from posteria.models.unit_columns import DenseColumns, LineColumns
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


def _chains() -> Chains:
    generator = generator_for(2)

    def normal(*shape: int) -> np.ndarray:
        return torch.randn(shape, dtype=torch.double, generator=generator).numpy()

    place = torch.randint(PLACES, (CHAINS, UNITS), generator=generator).numpy()
    luck, prior, white = normal(CHAINS, UNITS, PLACES), normal(CHAINS, UNITS), normal(CHAINS, UNITS)
    return Chains(luck, place, prior, white, place.copy(), np.full_like(white, np.nan), np.full(CHAINS, np.nan))


def _products(columns: DenseColumns, picked: np.ndarray) -> tuple[Tensor, Tensor]:
    current = columns.values[torch.arange(CHAINS)[:, None], torch.from_numpy(picked), torch.arange(UNITS)]
    return current @ current.mT, (current @ columns.target[..., None])[..., 0]


def _precision(columns: DenseColumns, picked: np.ndarray, prior: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of the output weights (C, H, H), and times their mean (C, H)."""
    products, pulls = _products(columns, picked)
    return products + torch.eye(UNITS, dtype=torch.double), pulls + torch.from_numpy(prior)


def _evidence(columns: DenseColumns, picked: np.ndarray, prior: np.ndarray) -> Tensor:
    precision, pulled = _precision(columns, picked, prior)
    return 0.5 * (pulled * torch.linalg.solve(precision, pulled)).sum(-1) - 0.5 * torch.logdet(precision)


ORDER = torch.tensor([3, 0, 4, 1, 2])


def test_lines_are_columns() -> None:
    lines, dense = _both()
    assert lines is not None
    first = np.zeros((CHAINS, UNITS), dtype=int)
    for mine, written_out in zip(lines.products(), _products(dense, first), strict=True):
        torch.testing.assert_close(mine, written_out, rtol=1e-10, atol=1e-10)
    one, other = _chains(), _chains()
    lines.sweep(ORDER, one)
    dense.sweep(ORDER, other)
    assert (one.picked == other.picked).all()
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("which", [0, 1], ids=["lines", "columns"])
def test_choices_gain_what_the_evidence_does(which: int) -> None:
    columns, chains = _both()[which], _chains()
    assert columns is not None
    columns.sweep(ORDER, chains)
    assert (chains.picked != chains.place).any()
    np.testing.assert_allclose(chains.rounding, 0.0, atol=1e-8)


@pytest.mark.parametrize("which", [0, 1], ids=["lines", "columns"])
def test_output_weights_are_their_mean_and_noise_of_their_covariance(which: int) -> None:
    columns, chains = _both()[which], _chains()
    assert columns is not None
    columns.sweep(ORDER, chains)
    precision, pulled = _precision(_both()[1], chains.picked, chains.prior)
    factor = torch.linalg.cholesky(precision)
    noise = torch.linalg.solve(factor.mT, torch.from_numpy(chains.white))
    np.testing.assert_allclose(chains.weights, torch.linalg.solve(precision, pulled) + noise, rtol=1e-8, atol=1e-8)


def test_every_choice_is_the_best_of_evidence_and_luck() -> None:
    """One unit's, against the evidence with each of its places, computed from nothing."""
    _, dense = _both()
    chains = _chains()
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
    alone, shared = _chains(), _chains()
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
