"""DeepSets: pooling before the last row layer is pooling after it."""

from __future__ import annotations

import pytest
import torch

from posteria.encoders.base import EncoderSpec, rows_of, sizes_of
from posteria.encoders.deepsets import DeepSetsEncoder, Pooling
from posteria.errors import InputError
from posteria.testing.encoders import LinearLogJoint, random_dataset

SPEC = EncoderSpec(num_columns=4)


@pytest.mark.parametrize("pooling", ["mean", "sum", "max"])
def test_pooling_equals_a_loop_over_datasets(pooling: Pooling) -> None:
    dataset = random_dataset(rows=9).padded(11, 4)
    encoder = DeepSetsEncoder(SPEC, layers=3, width=16, pooling=pooling).double()
    rows = encoder.project(encoder.rows(rows_of(dataset, SPEC).double()))[:, :9]
    pooled = {"mean": rows.mean(1), "sum": rows.sum(1), "max": rows.amax(1)}[pooling]
    expected = encoder.summarise(torch.cat([pooled, sizes_of(dataset).double()], -1))
    assert dataset.y is not None
    double = type(dataset)(dataset.x.double(), dataset.y.double(), dataset.observed, dataset.features)
    torch.testing.assert_close(encoder(double, LinearLogJoint(double)).summary, expected, rtol=1e-5, atol=1e-6)


def test_layers_count_linear_maps_on_each_side() -> None:
    encoder = DeepSetsEncoder(SPEC)
    linear = [m for m in encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 8
    assert {m.out_features for m in linear} == {627}


@pytest.mark.parametrize(("options", "named"), [({"pooling": "median"}, "pooling"), ({"width": 0}, "width"),
                                                ({"layers": 0}, "layers")])
def test_errors_name_the_argument(options: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: got"):
        DeepSetsEncoder(SPEC, **options)  # type: ignore[arg-type]
