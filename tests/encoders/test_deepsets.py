"""DeepSets: pooling before the last row layer is pooling after it."""

from __future__ import annotations

import pytest
import torch

from posteria.encoders.base import EncoderSpec, rows_of, sizes_of
from posteria.encoders.deepsets import DeepSetsEncoder, Pooling, _moments
from posteria.errors import InputError
from posteria.randomness import generator_for
from posteria.testing.encoders import LinearLogJoint, random_dataset

SPEC = EncoderSpec(num_columns=4)


@pytest.mark.parametrize("pooling", ["mean", "sum", "max", "moments"])
def test_pooling_equals_a_loop_over_datasets(pooling: Pooling) -> None:
    dataset = random_dataset(rows=9).padded(11, 4)
    encoder = DeepSetsEncoder(SPEC, layers=3, width=16, pooling=pooling).double()
    rows = encoder.project(encoder.rows(rows_of(dataset, SPEC).double()))[:, :9]
    moments = torch.cat([rows.mean(1), rows.var(1, correction=0)], -1)
    pooled = {"mean": rows.mean(1), "sum": rows.sum(1), "max": rows.amax(1), "moments": moments}[pooling]
    expected = encoder.summarise(torch.cat([pooled, sizes_of(dataset).double()], -1))
    assert dataset.y is not None
    double = type(dataset)(dataset.x.double(), dataset.y.double(), dataset.observed, dataset.features)
    torch.testing.assert_close(encoder(double, LinearLogJoint(double)).summary, expected, rtol=1e-5, atol=1e-6)


def test_moments_of_rows_far_from_zero_keep_their_digits() -> None:
    """In single precision the mean of squares around 1,000 would lose a variance of 1e-2 to rounding."""
    rows = 1000.0 + 0.1 * torch.randn(2, 50, 3, generator=generator_for(0))
    identity = torch.nn.Linear(3, 3)
    torch.nn.init.eye_(identity.weight)
    torch.nn.init.zeros_(identity.bias)
    observed = torch.arange(50) < torch.tensor([[50], [30]])
    pooled = _moments(rows, observed, identity)
    for i, count in enumerate((50, 30)):
        expected = rows[i, :count].double().var(0, correction=0)
        torch.testing.assert_close(pooled[i, 3:].double(), expected, rtol=2e-3, atol=0)


def test_normalisation_and_dropout_are_in_hidden_layers_only() -> None:
    encoder = DeepSetsEncoder(SPEC, layers=3, width=16, normalise=True, dropout=0.2)
    kinds = [type(m).__name__ for m in encoder.summarise]
    assert kinds == 2 * ["Linear", "LayerNorm", "ReLU", "Dropout"] + ["Linear"]
    assert [type(m).__name__ for m in encoder.rows] == 2 * ["Linear", "LayerNorm", "ReLU", "Dropout"]


def test_weights_keep_the_names_they_were_saved_under() -> None:
    names = {name.rpartition(".")[0] for name in DeepSetsEncoder(SPEC, layers=3, width=16).state_dict()}
    assert names == {"rows.0", "rows.2", "project", "summarise.0", "summarise.2", "summarise.4"}


def test_dropout_acts_in_training_mode_only() -> None:
    dataset = random_dataset()
    encoder = DeepSetsEncoder(SPEC, layers=2, width=16, dropout=0.5)
    first, second = (encoder(dataset, LinearLogJoint(dataset)).summary for _ in range(2))
    assert not torch.equal(first, second)
    encoder.eval()
    first, second = (encoder(dataset, LinearLogJoint(dataset)).summary for _ in range(2))
    assert torch.equal(first, second)


def test_layers_count_linear_maps_on_each_side() -> None:
    encoder = DeepSetsEncoder(SPEC)
    linear = [m for m in encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 8
    assert {m.out_features for m in linear} == {627}


@pytest.mark.parametrize(("options", "named"), [({"pooling": "median"}, "pooling"), ({"width": 0}, "width"),
                                                ({"layers": 0}, "layers"), ({"dropout": 1.0}, "dropout")])
def test_errors_name_the_argument(options: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: got"):
        DeepSetsEncoder(SPEC, **options)  # type: ignore[arg-type]
