"""DeepSets: a network per row, a pool over rows, a network on the pool (Zaheer et al. 2017, arXiv 1703.06114)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from posteria.encoders.base import Encoder, EncoderSpec, rows_of, sizes_of
from posteria.errors import InputError
from posteria.types import Context, Dataset, LogJoint

Pooling = Literal["mean", "sum", "max"]


class DeepSetsEncoder(Encoder):
    """One network on every row, pooled over the real rows, then one network on the pool and the dataset's size.

    Args:
        spec: what the rows look like.
        layers: linear layers of each of the two networks.
        width: of every hidden and output layer.
        pooling: "mean", "sum" or "max" over the real rows.

    Raises:
        InputError: a size below one, or a pooling that does not exist.

    Examples:
        >>> DeepSetsEncoder(EncoderSpec(num_columns=2), width=64, pooling="max").summary_dim
        64
    """

    def __init__(self, spec: EncoderSpec, layers: int = 4, width: int = 627, pooling: Pooling = "mean"):
        super().__init__()
        for name, size in {"layers": layers, "width": width}.items():
            if size < 1:
                raise InputError.of(name, size, "a positive integer")
        if pooling not in _POOLS:
            raise InputError.of("pooling", repr(pooling), f"one of {sorted(_POOLS)}")
        self.spec = spec
        self.summary_dim = width
        self.pool = _POOLS[pooling]
        hidden = [width] * (layers - 1)
        self.rows = _network([spec.row_dim, *hidden], last_relu=True)
        self.project = nn.Linear(width if hidden else spec.row_dim, width)
        self.summarise = _network([width + 2, *hidden, width])

    def forward(self, dataset: Dataset, log_joint: LogJoint) -> Context:
        pooled = self.pool(self.rows(rows_of(dataset, self.spec)), dataset.observed, self.project)
        summary = self.summarise(torch.cat([pooled, sizes_of(dataset)], -1))
        return Context(summary.to(dataset.x.dtype), log_joint.active)  # whatever autocast made of it


def _network(widths: list[int], last_relu: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


# The row network ends in a linear map, which commutes with sums: applied after them it gives the same
# result at the cost of one row. A maximum needs it row by row.


def _mean(rows: Tensor, observed: Tensor, project: nn.Linear) -> Tensor:
    counts = observed.sum(-1, keepdim=True).clamp(min=1)
    return project(_total(rows, observed) / counts)


def _sum(rows: Tensor, observed: Tensor, project: nn.Linear) -> Tensor:
    counts = observed.sum(-1, keepdim=True)
    return project(_total(rows, observed)) + (counts - 1) * project.bias


def _max(rows: Tensor, observed: Tensor, project: nn.Linear) -> Tensor:
    return project(rows).masked_fill(~observed[..., None], -torch.inf).amax(1)


def _total(rows: Tensor, observed: Tensor) -> Tensor:
    """(B, width) sum of the real rows, accumulated in full precision by the matrix product."""
    return (observed[:, None].to(rows.dtype) @ rows)[:, 0]


_POOLS: dict[str, Callable[[Tensor, Tensor, nn.Linear], Tensor]] = {"mean": _mean, "sum": _sum, "max": _max}
