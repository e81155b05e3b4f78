"""When chains are a reference."""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.metrics.convergence import Convergence

MAX_R_HAT = 1.01


def usable_chains(values: Tensor, min_ess: float) -> Tensor:
    """(B,) bool: chains (B, C, S, Q) agree, are steady and have as many effective draws of every quantity."""
    return Convergence.of(values).converged(MAX_R_HAT, min_ess) & steady(values, min_ess)


def steady(values: Tensor, min_ess: float) -> Tensor:
    """(B,) bool: the halves of chains (B, C, S, Q) agree, up to four standard errors of as many draws as are asked for.

    Ranks, which R-hat and effective sizes go by, do not see a few draws far away that chains left on their way in.
    """
    half = values.shape[2] // 2
    early, late = values[:, :, :half].flatten(1, 2), values[:, :, half:].flatten(1, 2)
    apart = torch.maximum((early.mean(1) - late.mean(1)).abs() / late.std(1), (early.std(1) / late.std(1)).log().abs())
    return (apart.nan_to_num(0.0) < 4.0 * (4.0 / min_ess) ** 0.5).all(-1)
