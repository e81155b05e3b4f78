"""Where a few observations alone would lead: modes that no climb on all of them finds from the prior."""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.ascent import climb
from posteria.models.base import Model
from posteria.models.log_joint import ModelLogJoint
from posteria.types import Dataset

# Starting points, and observations that each of them sees.
_STARTS, _FEW = 18, (2, 3, 4)
_CLIMBS, _DAMPING, _DENSE_UP_TO, _SEED = 30, 1.0, 512, 6_211
# Squared distance at which observations are as good as the same.
_LEAST = 1e-12
# Fractional parts of multiples of it are spread evenly (Weyl's sequence).
_GOLDEN = 0.5 * (5.0**0.5 - 1.0)


def led_by_few(model: Model, dataset: Dataset) -> Tensor:
    """Points z (B, M, P) at modes of posteriors given 2 to 4 observations only, in double precision.

    A mixture may have a component around a few outliers, and most of its mass there, where no climb on all observations
    leads from a draw of the prior. Half of the subsets are evenly spread (elemental sets; Rousseeuw 1984); in the
    others observations are far from each other, chosen one after the other as if with probabilities like their squared
    distance from those chosen before (k-means++; Arthur & Vassilvitskii 2007). The choice depends neither on the order
    of observations, but for ties, nor on other datasets.

    Args:
        model: whose z it is; with a likelihood.
        dataset: B datasets.
    """
    prior = ModelLogJoint(model, dataset).fixed_noise(_STARTS, _SEED).double()
    points = []
    for few in _FEW:
        mine = torch.arange(_FEW.index(few), _STARTS, len(_FEW))
        rows = subsets(dataset, mine, few)
        subset = _subset(dataset, rows.flatten(0, 1), len(mine))
        joint = ModelLogJoint(model, subset.double())
        starts = torch.where(joint.active.view(len(dataset), len(mine), -1), prior[mine], 0.0)
        points.append(climb(joint, starts.flatten(0, 1), _CLIMBS, _DAMPING, _DENSE_UP_TO).z.view(starts.shape))
    return torch.cat(points, 1)


def subsets(dataset: Dataset, numbers: Tensor, few: int) -> Tensor:
    """(B, M, few) long: a subset of the observations for each of some numbers (M,), far apart for those that are odd.

    The same one over and over where there are fewer.
    """
    place, real, odd = _places(dataset), dataset.observed[:, None], (numbers % 2 == 1)[:, None]
    order = place.square().sum(-1)[:, None].expand(-1, len(numbers), -1)
    weight, chosen = real.to(place).expand_as(order), []
    for step in range(few):
        level = ((numbers + 1) * _GOLDEN * (step + 1)) % 1.0
        chosen.append(_at_level(weight, order, level))
        there = place.gather(1, chosen[-1][..., None].expand(-1, -1, place.shape[-1]))
        distance = torch.cdist(there, place).square()
        order = distance if step == 0 else torch.minimum(order, distance)
        weight = torch.where(real, torch.where(odd, order.clamp(min=_LEAST), 1.0), 0.0)
    return torch.stack(chosen, -1)


def _at_level(weight: Tensor, order: Tensor, level: Tensor) -> Tensor:
    """(B, M) long: where the weights (B, M, N), summed up in ascending order, reach a share (M,) of their sum."""
    by = order.argsort(-1)
    sums = weight.gather(-1, by).cumsum(-1)
    which = (sums <= level[:, None] * sums[..., -1:]).sum(-1, keepdim=True).clamp(max=weight.shape[-1] - 1)
    return by.gather(-1, which)[..., 0]


def _places(dataset: Dataset) -> Tensor:
    """(B, N, D + 1) x, and y where it is a number, less their median, in units of their mean distance from it."""
    columns = dataset.x if dataset.y is None else torch.cat([dataset.x, dataset.y[..., None].to(dataset.x)], -1)
    real = torch.where(dataset.observed[..., None], columns.double(), torch.nan)
    away = real - real.nanmedian(1, keepdim=True).values
    scale = away.abs().nanmean((1, 2) if dataset.y is None else 1, keepdim=True).clamp(min=1e-12)
    return (away / scale).nan_to_num(0.0)


def _subset(dataset: Dataset, rows: Tensor, copies: int) -> Dataset:
    """Datasets (B copies) of the given rows (B copies, R) each."""
    index = torch.arange(len(dataset)).repeat_interleave(copies)
    x = dataset.x[index].gather(1, rows[..., None].expand(-1, -1, dataset.x.shape[-1]))
    y = None if dataset.y is None else dataset.y[index].gather(1, rows)
    return Dataset(x, y, torch.ones_like(rows, dtype=torch.bool), dataset.features[index])
