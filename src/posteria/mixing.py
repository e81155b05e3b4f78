"""A mixture of what several searches found, with shares by its evidence lower bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from posteria.densities.mixed import MixedTheta
from posteria.models import Model
from posteria.randomness import generator_for
from posteria.types import Dataset, ThetaDistribution

# Draws of every part by which shares are chosen.
_DRAWS = 64


@torch.no_grad()
def mixed(parts: Sequence[ThetaDistribution], model: Model, dataset: Dataset) -> MixedTheta:
    """A mixture of K distributions with shares that raise its evidence lower bound, and leave none out for little.

    One step of mirror ascent from even shares on the stratified bound, the sum over k of share_k times the mean over
    the k-th part of log p(theta, D) - log q(theta), with q the mixture (Morningstar et al. 2021, arXiv 2003.01687):
    a share is in proportion to the exponential of that mean. Where parts do not overlap these are the best shares, in
    proportion to the exponentials of the parts' own bounds; where they do, the best would do without wide parts, whose
    tails importance weights want.
    """
    # Of the same noise for all, so that parts which are alike get the same share.
    theta = torch.stack([part.rsample(_DRAWS, generator_for(0, device=dataset.device)) for part in parts], 1)
    flat = theta.flatten(1, 2)
    each = torch.stack([part.log_prob(flat) for part in parts], -1).nan_to_num(-torch.inf, -torch.inf)
    log_q = each.logsumexp(-1) - math.log(len(parts))
    worth = (model.log_joint(flat, dataset) - log_q).unflatten(1, theta.shape[1:3]).mean(-1)
    worth = worth.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    worth = torch.where(worth.isfinite().any(-1, keepdim=True), worth, 0.0)
    return MixedTheta(tuple(parts), worth.log_softmax(-1))
