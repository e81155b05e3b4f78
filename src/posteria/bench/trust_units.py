"""References for networks that chains of gradients do not get through: chains of the network's own moves, unit by unit.

The ladder's last rung makes the same moves (:mod:`posteria.models.hidden_units`); chains here are all from the prior,
longer, and share no random number with it. That the moves leave posteriors as they are is tested apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posteria.bench.samplers import Moments, Quantities, moments_of
from posteria.bench.trust_chains import MAX_R_HAT, usable_chains
from posteria.errors import UnsupportedError
from posteria.metrics.convergence import r_hat
from posteria.models import Model
from posteria.randomness import generator_for
from posteria.trust.posing import problem_of, to_theta
from posteria.types import Dataset

_CHAINS = 64
# Draws of a chain, until there are enough, after as many that are forgotten: slow chains leave the prior all in one
# direction, by which means of 256 sweeps were off by several times what effective draws made of it.
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
# What R-hat is above one falls in proportion to the length, up to this factor, once chains are everywhere.
_LONG, _HOPE = 256, 1.25
_SEED = 3_004_177


def unit_moments(model: Model, dataset: Dataset, quantities: Quantities, min_ess: float, seed: int = 0,
                 lengths: Sequence[int] = LENGTHS) -> tuple[Moments, Tensor, Tensor]:
    """Means and sds (B, Q) of quantities of theta, whether (B,) chains agree and have enough effective draws, and
    infinity (B,): chains from the prior are everywhere; NaN where they do not agree, and others would not either.

    Args:
        model: a network with one hidden layer and normal noise, see :attr:`posteria.models.Model.separate_units`.
        dataset: B datasets.
        quantities: functions of theta.
        min_ess: bulk and tail effective draws of every quantity at which a dataset has enough.
        seed: of the draws; a dataset's own are the same in every batch, but for its place there.
        lengths: draws of a chain that are kept, until they are enough, in ascending order; as many are forgotten.

    Raises:
        UnsupportedError: another model.
    """
    found = [_of_one(model, dataset[torch.tensor([i])], quantities, min_ess, seed + i, lengths)
             for i in range(len(dataset))]
    moments = Moments(*(torch.cat([getattr(one, name) for one, _ in found]) for name in Moments.__dataclass_fields__))
    usable = torch.cat([enough for _, enough in found])
    return moments, usable, torch.where(usable, torch.inf, torch.nan)


@torch.no_grad()
def _of_one(model: Model, dataset: Dataset, quantities: Quantities, min_ess: float, seed: int,
            lengths: Sequence[int]) -> tuple[Moments, Tensor]:
    problem, generator = problem_of(model, dataset), generator_for(_SEED, seed)
    if problem.moves is None:
        raise UnsupportedError.of("model", repr(model.name), "a network with one hidden layer and normal noise")
    shape = (1, _CHAINS, problem.active.shape[1])
    z = torch.randn(shape, dtype=torch.double, generator=generator) * problem.active[:, None]
    drawn: list[Tensor] = []
    for length in lengths:
        while len(drawn) < 2 * length:
            z = problem.moves(z, generator)
            theta = to_theta(problem, z)
            drawn.append(quantities(model, dataset.double(), theta[:, None])[:, 0])
        values = torch.stack(drawn[length:], 2)
        usable = usable_chains(values, min_ess)
        if usable.all() or _hopeless(values, lengths[-1]):
            break
    return moments_of(values), usable


def _hopeless(values: Tensor, longest: int) -> bool:
    """Chains (B, C, S, Q) are far enough apart that the longest would not agree either."""
    length = values.shape[2]
    most = _HOPE * (MAX_R_HAT - 1.0) * longest / length
    return length >= _LONG and not bool((r_hat(values) - 1.0 < most).all())
