"""DeepSets: a network per row, a pool over rows, a network on the pool (Zaheer et al. 2017, arXiv 1703.06114)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from posteria.encoders.base import Encoder, EncoderSpec, rows_of, sizes_of
from posteria.errors import InputError
from posteria.types import Context, Dataset, LogJoint

Pooling = Literal["mean", "sum", "max", "moments"]


class DeepSetsEncoder(Encoder):
    """One network on every row, pooled over the real rows, then one network on the pool and the dataset's size.

    Args:
        spec: what the rows look like.
        layers: linear layers of each of the two networks.
        width: of every hidden and output layer.
        pooling: "mean", "sum" or "max" over the real rows, or "moments": the mean, and the mean squared distance
            from it.
        normalise: layer normalisation (Ba et al. 2016, arXiv 1607.06450) before every rectifier.
        dropout: on hidden units, in training mode. It draws from torch's global random state.
        sizes: the second network is told the number of rows and of features. For ablations only: without it a mean
            or a maximum cannot tell much data from little.

    Raises:
        InputError: a size below one, a pooling that does not exist, a dropout outside [0, 1).

    Examples:
        >>> DeepSetsEncoder(EncoderSpec(num_columns=2), width=64, pooling="max").summary_dim
        64
    """

    def __init__(self, spec: EncoderSpec, layers: int = 4, width: int = 627, pooling: Pooling = "mean",
                 normalise: bool = False, dropout: float = 0.0, sizes: bool = True):
        super().__init__()
        for name, size in {"layers": layers, "width": width}.items():
            if size < 1:
                raise InputError.of(name, size, "a positive integer")
        if pooling not in _POOLS:
            raise InputError.of("pooling", repr(pooling), f"one of {sorted(_POOLS)}")
        if not 0.0 <= dropout < 1.0:
            raise InputError.of("dropout", dropout, "a probability in [0, 1)")
        self.spec, self.sizes = spec, sizes
        self.summary_dim = width
        self.pool, parts = _POOLS[pooling]
        hidden = [width] * (layers - 1)
        self.rows = _network([spec.row_dim, *hidden], normalise, dropout)
        self.project = nn.Linear(width if hidden else spec.row_dim, width)
        last = [parts * width + 2, *hidden]
        self.summarise = _network(last, normalise, dropout).append(nn.Linear(last[-1], width))

    def forward(self, dataset: Dataset, log_joint: LogJoint) -> Context:
        pooled = self.pool(self.rows(rows_of(dataset, self.spec)), dataset.observed, self.project)
        summary = self.summarise(torch.cat([pooled, sizes_of(dataset, self.sizes)], -1))
        return Context(summary.to(dataset.x.dtype), log_joint.active)  # whatever autocast made of it


def _network(widths: list[int], normalise: bool, dropout: float) -> nn.Sequential:
    """Hidden layers; a part that is off takes no place, so that the names of the weights stay the same."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), *([nn.LayerNorm(fan_out)] if normalise else []),
                   nn.ReLU(inplace=True), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers)


# The row network ends in a linear map, which commutes with sums: applied after them it gives the same
# result at the cost of one row. A maximum or a square needs it row by row.


def _mean(rows: Tensor, observed: Tensor, project: nn.Linear) -> Tensor:
    counts = observed.sum(-1, keepdim=True).clamp(min=1)
    return project(_total(rows, observed) / counts)


def _sum(rows: Tensor, observed: Tensor, project: nn.Linear) -> Tensor:
    counts = observed.sum(-1, keepdim=True)
    return project(_total(rows, observed)) + (counts - 1) * project.bias


def _max(rows: Tensor, observed: Tensor, project: nn.Linear) -> Tensor:
    return project(rows).masked_fill(~observed[..., None], -torch.inf).amax(1)


def _moments(rows: Tensor, observed: Tensor, project: nn.Linear) -> Tensor:
    """(B, 2 width): the squares are of distances from the mean, which lose no digits to a large mean."""
    rows = project(rows)
    counts = observed.sum(-1, keepdim=True).clamp(min=1)
    mean = _total(rows, observed) / counts
    return torch.cat([mean, _total((rows - mean[:, None]).square(), observed) / counts], -1)


def _total(rows: Tensor, observed: Tensor) -> Tensor:
    """(B, width) sum of the real rows, accumulated in full precision by the matrix product."""
    return (observed[:, None].to(rows.dtype) @ rows)[:, 0]


class _Pool(NamedTuple):
    """How rows are pooled, and how many widths the result has."""

    reduce: Callable[[Tensor, Tensor, nn.Linear], Tensor]
    parts: int = 1


_POOLS: dict[str, _Pool] = {"mean": _Pool(_mean), "sum": _Pool(_sum), "max": _Pool(_max), "moments": _Pool(_moments, 2)}
