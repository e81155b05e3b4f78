"""Every registered encoder keeps the contract of ``posteria.testing.encoders``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posteria.encoders import ENCODERS
from posteria.encoders.base import Encoder, EncoderSpec, rows_of, sizes_of
from posteria.testing.encoders import (
    LinearLogJoint,
    check_batching,
    check_column_padding,
    check_context,
    check_encoder,
    check_gradients,
    check_order,
    check_row_padding,
    check_single_row,
    check_size_is_visible,
    random_dataset,
)
from posteria.types import Context, Dataset, LogJoint

SPECS = {
    "real": EncoderSpec(num_columns=4, num_blocks=2),
    "classes": EncoderSpec(num_columns=4, num_classes=3, num_blocks=2),
    "inputs_only": EncoderSpec(num_columns=4, has_y=False, num_blocks=2),
    "exchangeable": EncoderSpec(num_columns=4, num_blocks=2, exchangeable=True),
}
SMALL: list[tuple[str, Mapping[str, Any]]] = [
    ("iterative", {"width": 16, "widenings": 2}),
    ("iterative", {"width": 16, "widenings": 2, "dense_up_to": 0}),
    ("transformer", {"layers": 2, "width": 16}),
    ("transformer", {"layers": 1, "width": 16, "pre_norm": False, "dropout": 0.1}),
    ("transformer", {"layers": 2, "width": 16, "positions": "sinusoidal"}),
    ("deepsets", {"layers": 2, "width": 16}),
    ("deepsets", {"layers": 1, "width": 16, "pooling": "sum"}),
    ("deepsets", {"layers": 2, "width": 16, "pooling": "max"}),
    ("deepsets", {"layers": 2, "width": 16, "pooling": "moments"}),
    ("deepsets", {"layers": 2, "width": 16, "normalise": True, "dropout": 0.1}),
    # These count the rows themselves.
    ("deepsets", {"layers": 2, "width": 16, "pooling": "sum", "sizes": False}),
    ("gru", {"layers": 2, "width": 16, "sizes": False}),
    ("gru", {"layers": 2, "width": 16}),
]
# Their summaries do not say how many rows there are: they are for ablations, and keep the rest of the contract.
SIZELESS: list[Mapping[str, Any]] = [
    {"layers": 2, "width": 16, "pooling": pooling, "sizes": False} for pooling in ("mean", "max", "moments")
]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("name", "options"), SMALL, ids=lambda v: v if isinstance(v, str) else str(dict(v)))
def test_contract(name: str, options: Mapping[str, Any], spec: EncoderSpec) -> None:
    check_encoder(lambda s: ENCODERS[name](s, **options), spec)


@pytest.mark.parametrize("check", [
    check_context, check_row_padding, check_column_padding, check_batching, check_order, check_single_row,
    check_gradients,
])
@pytest.mark.parametrize("options", SIZELESS, ids=lambda options: options["pooling"])
def test_without_sizes_the_rest_of_the_contract_holds(options: Mapping[str, Any], check: Callable[..., None]) -> None:
    check(ENCODERS["deepsets"](SPECS["real"], **options).eval(), random_dataset())


@pytest.mark.parametrize("options", SIZELESS, ids=lambda options: options["pooling"])
def test_without_sizes_rows_given_twice_say_nothing_new(options: Mapping[str, Any]) -> None:
    encoder = ENCODERS["deepsets"](SPECS["real"], **options).eval()
    with pytest.raises(AssertionError, match="invisible"):
        check_size_is_visible(encoder, random_dataset())


@pytest.mark.parametrize("name", ["deepsets", "gru"])
def test_hiding_sizes_changes_no_weight(name: str) -> None:
    """So that an ablation compares networks that start alike."""
    states = []
    for sizes in (True, False):
        torch.manual_seed(0)
        states.append(ENCODERS[name](SPECS["real"], width=16, sizes=sizes).state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_order_invariance_is_the_instance_s_answer() -> None:
    with_positions = ENCODERS["transformer"](SPECS["real"], width=16, positions="sinusoidal")
    assert not with_positions.order_invariant
    assert ENCODERS["transformer"](SPECS["real"], width=16).order_invariant


def test_every_encoder_is_covered() -> None:
    assert {name for name, _ in SMALL} == set(ENCODERS)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_defaults_build_and_run(name: str) -> None:
    dataset = random_dataset(num_datasets=2)
    encoder = ENCODERS[name](SPECS["real"])
    assert encoder(dataset, LinearLogJoint(dataset)).summary.shape == (2, encoder.summary_dim)


@pytest.mark.parametrize(("name", "options"), [s for s in SMALL if s[0] != "iterative"], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_bfloat16_is_close_to_float32(name: str, options: Mapping[str, Any], padded: bool) -> None:
    dataset = random_dataset(num_datasets=2, rows=9)
    dataset = dataset.padded(12, 4) if padded else dataset
    encoder = ENCODERS[name](SPECS["real"], **options).eval()
    exact = encoder(dataset, LinearLogJoint(dataset)).summary
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(dataset, LinearLogJoint(dataset)).summary
    rough.sum().backward()
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05 * float(exact.detach().abs().max()))


class _Mean(Encoder):
    """A mean of rows that, one promise at a time, can be broken."""

    def __init__(self, spec: EncoderSpec, broken: str = ""):
        super().__init__()
        self.spec, self.broken = spec, broken
        self.summary_dim = spec.row_dim + 2
        self.scale = nn.Parameter(torch.randn(self.summary_dim))

    def forward(self, dataset: Dataset, log_joint: LogJoint) -> Context:
        rows = rows_of(dataset, self.spec)
        count = dataset.observed.sum(-1, keepdim=True)
        sizes = sizes_of(dataset)
        pooled = rows.sum(1) / count
        summary = torch.cat([self._break(pooled, rows, dataset), sizes * (self.broken != "size")], -1)
        return Context(summary * self.scale, log_joint.active)

    def _break(self, pooled: Tensor, rows: Tensor, dataset: Dataset) -> Tensor:
        first = dataset.observed.long().argmax(-1)
        changed = {
            "padding": rows.sum(1) / rows.shape[1],
            "columns": pooled + torch.nn.functional.pad(dataset.x.mean(1), (0, 1)),
            "batch": pooled - pooled.mean(0),
            "order": pooled + rows[torch.arange(len(rows)), first],
            "random": pooled + torch.randn_like(pooled),
        }
        return changed.get(self.broken, pooled)


def test_the_contract_holds_for_a_third_party() -> None:
    check_encoder(_Mean)


@pytest.mark.parametrize("broken", ["padding", "columns", "batch", "order", "random", "size"])
def test_the_contract_finds_what_is_broken(broken: str) -> None:
    with pytest.raises(AssertionError):
        check_encoder(lambda spec: _Mean(spec, broken))
