"""Polishing: what a density's own gradient steps on one dataset add to a network's answer.

Semi-amortized inference (Kim et al. 2018, arXiv 1802.02550): the network's answer is where optimization of the evidence
lower bound begins, every dataset by itself. Worth its time where a posterior is far from what the search takes it for:
networks of hidden units with few observations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from posteria.densities.changed import ChangedTheta
from posteria.densities.gaussian import GaussianTheta
from posteria.densities.mixed import MixedTheta
from posteria.densities.skewed import SkewedTheta
from posteria.errors import UnsupportedError
from posteria.mixing import mixed
from posteria.models import Model
from posteria.models.log_joint import ModelLogJoint
from posteria.models.whitened import whitened
from posteria.types import Dataset, ThetaDistribution

_LEARNING_RATE, _NUM_SAMPLES = 0.02, 8


def polished(distribution: ThetaDistribution, model: Model, dataset: Dataset, steps: int, seed: int = 0) -> (
        ThetaDistribution):
    """The density that Adam reaches on the evidence lower bound from a given one.

    Draws are reparametrised, in antithetic pairs, with the path gradient (Roeder et al. 2017); steps fall to zero along
    a cosine. All datasets see the same noise, so that none depends on those beside it. Moves are in the given density's
    own units: means in its standard deviations, its precision factor R as R (I + L). A Gaussian may become skewed.

    Of a mixture all parts move at once, on the stratified bound of the mixture (:func:`posteria.mixing.mixed`) with
    even shares: where two parts are in the same place one leaves, or they share what is there. Shares are found after.

    Args:
        distribution: where to start: Gaussian or skewed, in theta or in whitened parameters, or a mixture of such.
        model: the model.
        dataset: B datasets.
        steps: of Adam.
        seed: of the noise.

    Raises:
        UnsupportedError: a distribution of another kind.
    """
    if isinstance(distribution, MixedTheta):
        return _polished_mixture(distribution, model, dataset, steps, seed)
    return _together((distribution,), model, dataset, steps, seed)[0]


def _polished_mixture(mixture: MixedTheta, model: Model, dataset: Dataset, steps: int, seed: int) -> MixedTheta:
    """Of parts in the same units together, so that none goes where another is; with the best shares in the end."""
    in_units = [isinstance(part, ChangedTheta) for part in mixture.parts]
    groups = [[part for part, its in zip(mixture.parts, in_units, strict=True) if its == kind]
              for kind in (False, True)]
    parts = [part for group in groups if group for part in _together(group, model, dataset, steps, seed)]
    return mixed(parts, model, dataset)


def _together(parts: Sequence[ThetaDistribution], model: Model, dataset: Dataset, steps: int, seed: int) -> (
        list[ThetaDistribution]):
    """Parts in the same units, each where the bound of their even mixture leads it."""
    if isinstance(parts[0], ChangedTheta):  # bounds are the same in all parameters
        changes = [part for part in parts if isinstance(part, ChangedTheta)]
        bases = _together([change.base for change in changes], whitened(model), dataset, steps, seed)
        return [replace(change, base=base) for change, base in zip(changes, bases, strict=True)]
    starts = []
    for part in parts:
        start = _as_skewed(part) if isinstance(part, GaussianTheta) else part
        if not isinstance(start, SkewedTheta):
            raise UnsupportedError.of("polish", type(part).__name__, "a Gaussian or skewed density, or a mixture")
        starts.append(start.detach())
    with torch.enable_grad():
        return list(_climbed(starts, model, dataset, steps, seed))


def _climbed(starts: Sequence[SkewedTheta], model: Model, dataset: Dataset, steps: int, seed: int) -> list[SkewedTheta]:
    joint, moves = ModelLogJoint(model, dataset), [_no_moves(start) for start in starts]
    optimizer = torch.optim.Adam([values for own in moves for values in own], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    even = starts[0].sd.new_full((len(dataset), len(starts)), -math.log(len(starts)))
    for step in range(steps):
        current = [_moved(start, own) for start, own in zip(starts, moves, strict=True)]
        noise = joint.fixed_noise(_NUM_SAMPLES // 2, seed + step).expand(len(dataset), -1, -1)
        noise = torch.cat([noise, -noise], 1)
        theta = torch.cat([part.at_noise(noise)[0] for part in current], 1)
        # Its gradient is the bound's: the log joint's slope is known without taking it apart.
        slope = joint.gradient((theta.detach() - joint.location) / joint.scale) / joint.scale
        log_q = MixedTheta(tuple(part.detach() for part in current), even).log_prob(theta)
        bound = ((slope * theta).sum(-1) - log_q).mean(-1)
        optimizer.zero_grad()
        (-bound).sum().backward()
        for own in moves:
            for values in own:
                assert values.grad is not None
                values.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        schedule.step()
    return [_moved(start, own).detach() for start, own in zip(starts, moves, strict=True)]


def _as_skewed(gaussian: GaussianTheta) -> SkewedTheta:
    """The same density, with a factor and shapes that may move."""
    size = gaussian.mean.shape[-1]
    factor = gaussian.factor if gaussian.factor is not None else torch.eye(size).to(gaussian.mean).expand(
        len(gaussian.mean), -1, -1)
    sd = torch.where(gaussian.active, gaussian.variance.sqrt(), 1.0)
    return SkewedTheta(replace(gaussian, factor=factor), sd, torch.zeros_like(sd), torch.ones_like(sd))


def _no_moves(start: SkewedTheta) -> tuple[Tensor, ...]:
    """Of mean, log scale, factor, skew and log tail."""
    mean = start.gaussian.mean
    shapes = (mean.shape, mean.shape, (*mean.shape, mean.shape[-1]), mean.shape, mean.shape)
    return tuple(torch.zeros(shape, dtype=mean.dtype, device=mean.device, requires_grad=True) for shape in shapes)


def _moved(start: SkewedTheta, moves: tuple[Tensor, ...]) -> SkewedTheta:
    shift, log_scale, lower, skew, log_tail = moves
    gaussian, active = start.gaussian, start.active
    assert gaussian.factor is not None  # of a correlated density
    both = active[:, :, None] & active[:, None, :]
    mixing = torch.where(both, lower.tril(-1), 0.0) + torch.eye(lower.shape[-1]).to(lower)
    own = GaussianTheta(gaussian.mean + start.sd * torch.where(active, shift, 0.0),
                        gaussian.scale * torch.where(active, log_scale, 0.0).exp(), active, gaussian.factor @ mixing)
    return replace(start, gaussian=own, sd=torch.where(active, own.variance.sqrt(), 1.0), skew=start.skew + skew,
                   tail=start.tail * log_tail.exp())
