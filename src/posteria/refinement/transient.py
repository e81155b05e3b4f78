"""How far chains that leave their starting points slowly have still to go.

Where all of them leave in one direction they agree on the way, and neither R-hat nor effective draws see what is left.
But the way that lies behind them tells: slow chains relax on many time scales, so that means over all chains fall about
in proportion to one over the square root of time, and the same line goes on to where they will be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The line is fitted to means of stretches, each so many times as long as the one before, from such a share of the time
# on: what is gone by then says nothing of what is left, nor do means so many sds away. So many sweeps of each are
# looked at.
_FIRST, _LONGER, _FAR, _SWEEPS = 1 / 32, 1.5, 3.0, 8


def left_to_go(height: Callable[[Tensor], Tensor], drawn: Sequence[Tensor], length: int) -> Tensor:
    """(B,) by how much the mean over the last draws is off, in the draws' sds; infinite where nothing is known.

    Args:
        height: a function (B, S) of z (B, S, P) that all parameters enter, such as the log joint.
        drawn: T sweeps (B, C, P) of two chains or more, from the first on.
        length: so many draws, the last, are kept.

    Examples:
        >>> draws = torch.randn(960, 1, 64, 1, generator=torch.Generator().manual_seed(0))
        >>> bool(left_to_go(lambda z: z[..., 0], list(draws), 640).abs() < 0.05)
        True
    """
    total, chains = len(drawn), drawn[0].shape[1]
    slowness = torch.arange(1, total + 1, dtype=torch.double).rsqrt()
    means, errors, places, last = [], [], [], torch.empty(0)
    for first, end in _stretches(total):
        some = torch.linspace(first, end - 1, min(_SWEEPS, end - first)).round().long()
        last = height(torch.cat([drawn[i] for i in some.tolist()], 1)).unflatten(1, (len(some), chains))
        of_chains = last.mean(1)
        means.append(of_chains.mean(1))
        errors.append(of_chains.std(1) / chains**0.5)
        places.append(slowness[some].mean())
    y, sd = torch.stack(means), last.flatten(1).std(1)
    weights = torch.where((y - y[-1]).abs() < _FAR * sd, torch.stack(errors).square().reciprocal(), 0.0)
    left = _slope(torch.stack(places)[:, None], y, weights) * slowness[total - length:].mean() / sd
    return left.nan_to_num(torch.inf, torch.inf, torch.inf)


def _stretches(total: int) -> list[tuple[int, int]]:
    """First and end of each; the last ends with the draws."""
    edges = [max(int(total * _FIRST), 2)]
    while edges[-1] * _LONGER < total:
        edges.append(int(edges[-1] * _LONGER))
    return list(zip(edges, [*edges[1:-1], total], strict=False))


def _slope(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """(B,) of the line through points x (K, 1) and y (K, B) with weights (K, B)."""
    middle = (weights * x).sum(0) / weights.sum(0)
    return (weights * (x - middle) * y).sum(0) / (weights * (x - middle).square()).sum(0)
