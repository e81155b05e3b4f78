"""Functions of many draws and their datasets, a few at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posteria.types import Dataset

# Numbers that a processor computes together: what its cache holds from one step to the next. Beyond, memory that is new
# for every step takes most of the time.
_CACHED = 2**17

Function = Callable[[Tensor, Dataset], tuple[Tensor, ...]]


def in_blocks(function: Function, theta: Tensor, dataset: Dataset, width: int = 1) -> tuple[Tensor, ...]:
    """What a function of every draw theta (B, S, P) and its own dataset returns, (B, S, ...) each.

    Args:
        function: see above; what it says of a draw must not depend on the others.
        theta: draws; on an accelerator all go through together.
        dataset: B datasets.
        width: numbers that each row of data takes, such as hidden units.
    """
    draws, size = theta.shape[1], dataset.x.shape[1] * width
    if theta.device.type != "cpu" or len(theta) * draws * size <= _CACHED:
        return function(theta, dataset)
    some, few = max(1, _CACHED // (draws * size)), max(1, _CACHED // size)
    return _joined([_joined([function(part, dataset[i:i + some]) for part in theta[i:i + some].split(few, 1)], 1)
                    for i in range(0, len(theta), some)], 0)


def _joined(parts: list[tuple[Tensor, ...]], axis: int) -> tuple[Tensor, ...]:
    return tuple(torch.cat(each, axis) for each in zip(*parts, strict=True))
