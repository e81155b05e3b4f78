"""A mixture of what several searches found: the shares that are best for its evidence lower bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from posteria.densities.mixed import MixedTheta
from posteria.models import Model
from posteria.randomness import generator_for
from posteria.types import Dataset, ThetaDistribution

# Draws of every part by which shares are chosen, and steps of that.
_DRAWS, _ROUNDS, _STEP = 64, 50, 0.5


@torch.no_grad()
def mixed(parts: Sequence[ThetaDistribution], model: Model, dataset: Dataset) -> MixedTheta:
    """A mixture of K distributions with the shares that are best for them.

    They maximise the stratified evidence lower bound sum_k share_k E_k[log p(theta, D) - log q(theta)], with q the
    mixture and the mean over its k-th part (Morningstar et al. 2021, arXiv 2003.01687), on some draws. Where parts do
    not overlap they are in proportion to the exponentials of the parts' own bounds.
    """
    # Of the same noise for all, so that parts which are alike get the same share.
    theta = torch.stack([part.rsample(_DRAWS, generator_for(0, device=dataset.device)) for part in parts], 1)
    flat = theta.flatten(1, 2)
    height = model.log_joint(flat, dataset).unflatten(1, theta.shape[1:3])
    each = torch.stack([part.log_prob(flat) for part in parts], -1).unflatten(1, theta.shape[1:3])
    return MixedTheta(tuple(parts), _best_shares(height, each.nan_to_num(-torch.inf, -torch.inf)))


def _best_shares(height: Tensor, each: Tensor) -> Tensor:
    """(B, K) logs of shares, from log joints (B, K, S) at draws of the parts, and log densities (B, K, S, K) of all.

    Mirror ascent: where a part is worth more than the others, per draw, its share grows.
    """
    level = height.new_full(height.shape[:2], -math.log(height.shape[1]))
    share = level
    for _ in range(_ROUNDS):
        worth = (height - (each + share[:, None, None]).logsumexp(-1)).mean(-1)
        worth = worth.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        share = (share + _STEP * worth).log_softmax(-1)
    return torch.where(share.isnan().any(-1, keepdim=True), level, share)
