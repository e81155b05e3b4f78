"""Evidence lower bounds of densities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posteria.randomness import generator_for
from posteria.types import ThetaDistribution


@torch.no_grad()
def bound_of(distribution: ThetaDistribution, log_joint: Callable[[Tensor], Tensor], num_samples: int = 1000,
             seed: int = 0) -> Tensor:
    """(B,) evidence lower bound, by draws that are the same for densities of one kind."""
    theta, log_q = distribution.rsample_and_log_prob(num_samples, generator_for(seed))
    return (log_joint(theta).double() - log_q.double()).mean(-1)
