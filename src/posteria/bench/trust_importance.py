"""References for models of which some parameters integrate out: importance sampling from the prior of the others.

What is left of the likelihood is bounded, and so are the weights: their mean has a finite variance whatever the data,
and draws that cover the prior leave no mode out. It takes data that say little about the parameters that are left, such
as the hidden weights of a network of one feature; elsewhere effective draws are too few, and the dataset goes without.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.bench.samplers import Moments, Quantities
from posteria.models import Model
from posteria.models.collapsed import CollapsedLogJoint
from posteria.randomness import generator_for
from posteria.types import Dataset

# Draws of the prior come so many at a time, up to so many; and stop where the first let hope for less than that.
_TOGETHER, _FIRST, _MOST = 2_000, 8_000, 1_000_000


def importance_moments(model: Model, dataset: Dataset, quantities: Quantities, min_ess: float, seed: int = 0) -> (
        tuple[Moments, Tensor, Tensor]):
    """Means and sds (B, Q) of quantities of theta, whether (B,) they rest on enough effective draws, and infinity (B,):
    no mode is left out, however high.

    Effective draws of a mean are variance over squared standard error, of a sd half its square over the same.

    Args:
        model: names parameters that integrate out, see :meth:`posteria.models.Model.conjugate`; the prior of the
            others is normal.
        dataset: B datasets.
        quantities: functions of theta.
        min_ess: effective draws of every mean and every sd at which a dataset has enough.
        seed: of the draws; a dataset's own are the same in every batch, but for its place there.

    Raises:
        UnsupportedError: a model without such parameters.
    """
    found = [_of_one(model, dataset[torch.tensor([i])].double(), quantities, min_ess, seed + i)
             for i in range(len(dataset))]
    moments = Moments(*(torch.cat([getattr(one, name) for one, _ in found]) for name in Moments.__dataclass_fields__))
    return moments, torch.tensor([enough for _, enough in found]), torch.full((len(found),), torch.inf)


@torch.no_grad()
def _of_one(model: Model, dataset: Dataset, quantities: Quantities, min_ess: float, seed: int) -> tuple[Moments, bool]:
    joint, generator = CollapsedLogJoint(model, dataset), generator_for(seed)
    heights, values, wanted = [], [], _FIRST
    while True:
        while len(heights) * _TOGETHER < wanted:
            height, theta = _drawn(joint, generator)
            heights.append(height)
            values.append(quantities(model, dataset, theta[None, None])[0, 0])
        moments, least = weighted_moments(torch.cat(heights), torch.cat(values))
        # What it will take, with some to spare.
        wanted = int(1.1 * min_ess / least * len(heights) * _TOGETHER)
        if least >= min_ess or wanted > _MOST:
            return moments, least >= min_ess


def _drawn(joint: CollapsedLogJoint, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Log weights (S,) of draws of the prior of what is left, and theta (S, P) with the rest from its conditional."""
    z = torch.randn(1, _TOGETHER, len(joint.rest), dtype=torch.double, generator=generator)
    z = torch.where(joint.active[:, None], z, 0.0)
    density, theta, factor = joint.density_and_conditional(z)
    within = joint.whole.active[0, joint.places]
    noise = torch.randn(_TOGETHER, len(within), 1, dtype=z.dtype, generator=generator)
    apart = torch.linalg.solve_triangular(factor[0].mT, noise, upper=True)[..., 0]
    theta[..., joint.places] += torch.where(within, apart, 0.0)
    return (density + 0.5 * z.square().sum(-1))[0], theta[0]


def weighted_moments(height: Tensor, values: Tensor) -> tuple[Moments, float]:
    """Moments (1, Q) by draws with log weights (S,) of values (S, Q), and the least effective number of draws."""
    w = height.softmax(0)[:, None]
    mean = (w * values).sum(0)
    away = values - mean
    variance = (w * away.square()).sum(0)
    sd = variance.sqrt()
    mean_error = (w * away).square().sum(0).sqrt()
    sd_error = (w * (away.square() - variance)).square().sum(0).sqrt() / (2.0 * sd)
    least = torch.minimum((sd / mean_error).square(), 0.5 * (sd / sd_error).square()).amin()
    return Moments(*(part[None] for part in (mean, sd, mean_error, sd_error))), float(least)
