"""Where a few observations alone would lead: modes that no climb on all of them finds from the prior."""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.ascent import climb
from posteria.models.base import Model
from posteria.models.log_joint import ModelLogJoint
from posteria.types import Dataset

# Observations that lie far apart, from the middle outwards, and which of them a climb sees: the middle with each of the
# others, the outermost together, and ever more of them; four in all, some of them more than once.
_FAR = 9
_TOGETHER = [(0, i) for i in range(1, _FAR)] + [(1, 2), (1, 3), (2, 3), (0, 1, 2), (1, 2, 3), (0, 1, 2, 3)]
_SIZE = 4
# Subsets that are evenly spread from the middle outwards: of two observations, twice each, and of four.
_PAIRS, _FOURS = 8, 4
_CLIMBS, _DAMPING, _DENSE_UP_TO, _SEED = 30, 1.0, 512, 6_211
# Fractional parts of multiples of it are spread evenly (Weyl's sequence).
_GOLDEN = 0.5 * (5.0**0.5 - 1.0)


def led_by_few(model: Model, dataset: Dataset) -> Tensor:
    """Points z (B, M, P) at modes of posteriors given a few observations only, in double precision.

    A mixture may have a component around a few outliers, and most of its mass there, where no climb on all observations
    leads from a draw of the prior. Some subsets are evenly spread (elemental sets; Rousseeuw 1984); the others are of
    observations far apart: the one in the middle, then always the one furthest from those before (Gonzalez 1985). The
    choice depends neither on the order of observations, but for ties, nor on other datasets.

    Args:
        model: whose z it is; with a likelihood.
        dataset: B datasets.
    """
    rows = subsets(dataset)
    joint = ModelLogJoint(model, _seeing(dataset, rows).double())
    prior = joint.fixed_noise(rows.shape[1], _SEED).double()
    starts = torch.where(joint.active.unflatten(0, (len(dataset), -1)), prior, 0.0)
    return climb(joint, starts.flatten(0, 1), _CLIMBS, _DAMPING, _DENSE_UP_TO).z.view(starts.shape)


def subsets(dataset: Dataset) -> Tensor:
    """(B, M, 4) long: the observations of every subset; the same ones over and over where there are fewer."""
    place = _places(dataset)
    size = torch.where(dataset.observed, place.square().sum(-1), torch.inf)
    far = [size.argmin(-1)]
    nearest = torch.where(dataset.observed, torch.inf, -1.0).to(place)
    for _ in range(_FAR - 1):
        there = place[torch.arange(len(place)), far[-1]][:, None]
        nearest = torch.minimum(nearest, (place - there).square().sum(-1))
        far.append(nearest.argmax(-1))
    outlying = torch.tensor([[which[i % len(which)] for i in range(_SIZE)] for which in _TOGETHER])
    levels = (torch.arange(1, 2 * _PAIRS + _SIZE * _FOURS + 1, dtype=torch.double) * _GOLDEN) % 1.0
    even = size.argsort(-1).gather(1, (levels * dataset.num_observations[:, None]).long())
    pairs, fours = even[:, :2 * _PAIRS].unflatten(1, (-1, 2)), even[:, 2 * _PAIRS:].unflatten(1, (-1, _SIZE))
    return torch.cat([torch.stack(far, -1)[:, outlying], torch.cat([pairs, pairs], -1), fours], 1)


def _places(dataset: Dataset) -> Tensor:
    """(B, N, D + 1) x, and y where there is one, less their median, in units of their mean distance from it."""
    columns = dataset.x if dataset.y is None else torch.cat([dataset.x, dataset.y[..., None].to(dataset.x)], -1)
    real = torch.where(dataset.observed[..., None], columns.double(), torch.nan)
    away = real - real.nanmedian(1, keepdim=True).values
    # Without y, columns are of a kind.
    scale = away.abs().nanmean((1, 2) if dataset.y is None else 1, keepdim=True).clamp(min=1e-12)
    return (away / scale).nan_to_num(0.0)


def _seeing(dataset: Dataset, rows: Tensor) -> Dataset:
    """Datasets (B M) of the rows (B, M, R) each."""
    index = torch.arange(len(dataset)).repeat_interleave(rows.shape[1])
    rows = rows.flatten(0, 1)
    x = dataset.x[index].gather(1, rows[..., None].expand(-1, -1, dataset.x.shape[-1]))
    y = None if dataset.y is None else dataset.y[index].gather(1, rows)
    return Dataset(x, y, torch.ones_like(rows, dtype=torch.bool), dataset.features[index])
