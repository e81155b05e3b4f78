"""How a mixture posterior's draws divide over the relabellings of the true means."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from posteria.errors import InputError

_MOST_COMPONENTS = 5


def labelling_shares(means: Tensor, truth: Tensor) -> Tensor:
    """(B, K!) share of the draws nearest to each relabelling of the true means.

    A mixture's likelihood does not know the order of its components, so under an exchangeable prior all K! labellings
    of the true means are equally likely: shares of about 1 / K! say that a posterior covers them all.

    Args:
        means: (B, S, K, D) draws of the component means.
        truth: (B, K, D).

    Raises:
        InputError: shapes that do not fit, or more than 5 components.

    Examples:
        >>> truth = torch.tensor([[[0.0], [3.0]]])
        >>> labelling_shares(torch.stack([truth, truth.flip(1)], 1), truth)
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    if means.ndim != 4 or truth.shape != (means.shape[0], *means.shape[2:]):
        raise InputError.of("truth", f"shape {tuple(truth.shape)}", f"shape {(means.shape[0], *means.shape[2:])}")
    if truth.shape[1] > _MOST_COMPONENTS:
        raise InputError.of("means", f"{truth.shape[1]} components", f"at most {_MOST_COMPONENTS}")
    orders = list(itertools.permutations(range(truth.shape[1])))
    distances = [(means - truth[:, None, list(order)]).square().sum((-1, -2)) for order in orders]
    nearest = torch.stack(distances, -1).argmin(-1)
    return torch.nn.functional.one_hot(nearest, len(orders)).double().mean(1)
