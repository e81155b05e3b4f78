"""References for networks that chains of gradients do not get through: chains of the network's own moves, unit by unit.

The ladder's last rung makes the same moves (:mod:`posteria.models.hidden_units`); chains here are all from the prior,
longer, and share no random number with it. That the moves leave posteriors as they are is tested apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posteria.bench.samplers import Moments, Quantities, moments_of
from posteria.bench.trust_chains import steady
from posteria.errors import UnsupportedError
from posteria.metrics.convergence import Convergence
from posteria.models import Model
from posteria.randomness import generator_for
from posteria.refinement.chains import MAX_R_HAT, nested_r_hat
from posteria.trust.posing import problem_of, to_theta
from posteria.types import Dataset

_GROUPS, _CHAINS, _WARMUP = 8, 64, 40
# Draws of a chain, until there are enough. Of shorter chains effective draws are overestimated.
_LENGTHS = (256, 512, 1024)
_SEED = 3_004_177


def unit_moments(model: Model, dataset: Dataset, quantities: Quantities, min_ess: float, seed: int = 0) -> (
        tuple[Moments, Tensor, Tensor]):
    """Means and sds (B, Q) of quantities of theta, whether (B,) chains agree and have enough effective draws, and
    infinity (B,): chains from the prior are everywhere; NaN where they do not agree, and others would not either.

    Args:
        model: a network with one hidden layer and normal noise, see :attr:`posteria.models.Model.separate_units`.
        dataset: B datasets.
        quantities: functions of theta.
        min_ess: bulk and tail effective draws of every quantity at which a dataset has enough.
        seed: of the draws; a dataset's own are the same in every batch, but for its place there.

    Raises:
        UnsupportedError: another model.
    """
    found = [_of_one(model, dataset[torch.tensor([i])], quantities, min_ess, seed + i) for i in range(len(dataset))]
    moments = Moments(*(torch.cat([getattr(one, name) for one, _ in found]) for name in Moments.__dataclass_fields__))
    usable = torch.cat([enough for _, enough in found])
    return moments, usable, torch.where(usable, torch.inf, torch.nan)


@torch.no_grad()
def _of_one(model: Model, dataset: Dataset, quantities: Quantities, min_ess: float, seed: int) -> (
        tuple[Moments, Tensor]):
    problem, generator = problem_of(model, dataset), generator_for(_SEED, seed)
    if problem.moves is None:
        raise UnsupportedError.of("model", repr(model.name), "a network with one hidden layer and normal noise")
    shape = (1, _CHAINS, problem.active.shape[1])
    z = torch.randn(shape, dtype=torch.double, generator=generator) * problem.active[:, None]
    for _ in range(_WARMUP):
        z = problem.moves(z, generator)
    kept: list[Tensor] = []
    for length in _LENGTHS:
        while len(kept) < length:
            z = problem.moves(z, generator)
            theta = to_theta(problem, z)
            kept.append(quantities(model, dataset.double(), theta[:, None])[:, 0])
        values = torch.stack(kept, 2)
        usable = _enough(values, min_ess)
        if usable.all():
            break
    return moments_of(values), usable


def _enough(values: Tensor, min_ess: float) -> Tensor:
    """(B,) bool: chains (B, C, S, Q) agree, are steady and have so many effective draws.

    Chains are compared in groups. R-hat of single ones is above 1.01, agree as they may, until each has a hundred
    effective draws (its square is 1 + C / ESS or so), and with 64 of them that is much more than is asked for.
    """
    agree = (nested_r_hat(values.unflatten(1, (_GROUPS, -1))) < MAX_R_HAT).all(-1)
    return agree & Convergence.of(values).converged(math.inf, min_ess) & steady(values, min_ess)
