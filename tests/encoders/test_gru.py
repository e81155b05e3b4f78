"""GRU: padding, equal and unequal lengths."""

from __future__ import annotations

import pytest
import torch

from posteria.encoders.base import EncoderSpec, rows_of
from posteria.encoders.gru import GRUEncoder
from posteria.errors import InputError
from posteria.testing.encoders import LinearLogJoint, random_dataset
from posteria.types import Dataset

SPEC = EncoderSpec(num_columns=4)


def test_summary_is_the_state_after_the_last_real_row() -> None:
    dataset = random_dataset(num_datasets=3, rows=6)
    lengths = torch.tensor([6, 1, 4])
    padded = Dataset(dataset.x, dataset.y, torch.arange(6) < lengths[:, None], dataset.features)
    encoder = GRUEncoder(SPEC, layers=2, width=8)
    outputs, _ = encoder.recur(rows_of(dataset, SPEC))
    expected = outputs[torch.arange(3), lengths - 1]
    torch.testing.assert_close(encoder(padded, LinearLogJoint(padded)).summary[:, :8], expected)


def test_a_dataset_without_rows_stays_finite() -> None:
    dataset = random_dataset(num_datasets=2, rows=3)
    observed = torch.tensor([[True, True, True], [False, False, False]])
    empty = Dataset(dataset.x, dataset.y, observed, dataset.features)
    assert GRUEncoder(SPEC, width=8)(empty, LinearLogJoint(empty)).summary.isfinite().all()


def test_without_sizes_their_places_hold_zeros() -> None:
    dataset = random_dataset(num_datasets=2, rows=5)
    encoder = GRUEncoder(SPEC, layers=1, width=8, sizes=False)
    assert (encoder(dataset, LinearLogJoint(dataset)).summary[:, 8:] == 0).all()


@pytest.mark.parametrize("option", ["layers", "width"])
def test_errors_name_the_argument(option: str) -> None:
    with pytest.raises(InputError, match=f"^{option}: got 0"):
        GRUEncoder(SPEC, **{option: 0})
