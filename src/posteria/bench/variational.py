"""Variational optimization of a density dataset by dataset: the bound that amortization can at best reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from posteria.densities.gaussian import GaussianTheta
from posteria.densities.skewed import SkewedTheta
from posteria.models import Model
from posteria.randomness import generator_for
from posteria.types import Dataset, ThetaDistribution

_LEARNING_RATE, _NUM_SAMPLES = 0.02, 8
_SALT = 49_979_687


def optimised(distribution: SkewedTheta, model: Model, dataset: Dataset, steps: int = 500, seed: int = 0) -> (
        SkewedTheta):
    """The density that Adam reaches on the evidence lower bound from a given one, every dataset by itself.

    Draws are reparametrised with the path gradient (Roeder et al. 2017); steps fall to zero along a cosine. Moves are
    in the given density's own units: means in its standard deviations, its precision factor R as R (I + L).

    Args:
        distribution: where to start.
        model: the model.
        dataset: B datasets.
        steps: of Adam.
        seed: of the draws.
    """
    moved = _free(distribution)
    optimizer = torch.optim.Adam(moved, lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        current = _moved(distribution, moved)
        theta = current.rsample(_NUM_SAMPLES, generator_for(seed + _SALT, step))
        bound = (model.log_joint(theta, dataset) - current.detach().log_prob(theta)).mean(-1)
        optimizer.zero_grad()
        (-bound.clamp(min=-1e9)).sum().backward()
        for values in moved:
            assert values.grad is not None
            values.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return _moved(distribution, moved)


def _free(distribution: SkewedTheta) -> tuple[Tensor, ...]:
    """Moves of mean, log scale, factor, skew and log tail, all zero."""
    size = distribution.gaussian.mean.shape
    shapes = (size, size, (*size, size[-1]), size, size)
    return tuple(torch.zeros(shape, requires_grad=True) for shape in shapes)


def _moved(start: SkewedTheta, moves: tuple[Tensor, ...]) -> SkewedTheta:
    shift, log_scale, lower, skew, log_tail = moves
    gaussian, active = start.gaussian, start.active
    assert gaussian.factor is not None  # of a correlated density
    both = active[:, :, None] & active[:, None, :]
    mixing = torch.where(both, lower.tril(-1), 0.0) + torch.eye(lower.shape[-1])
    own = GaussianTheta(gaussian.mean + start.sd * torch.where(active, shift, 0.0),
                        gaussian.scale * torch.where(active, log_scale, 0.0).exp(), active, gaussian.factor @ mixing)
    return replace(start, gaussian=own, sd=torch.where(active, own.variance.sqrt(), 1.0), skew=start.skew + skew,
                   tail=start.tail * log_tail.exp())


@torch.no_grad()
def bound_of(distribution: ThetaDistribution, log_joint: Callable[[Tensor], Tensor], num_samples: int = 1000,
             seed: int = 0) -> Tensor:
    """(B,) evidence lower bound, by draws that are the same for densities of one kind."""
    theta, log_q = distribution.rsample_and_log_prob(num_samples, generator_for(seed))
    return (log_joint(theta).double() - log_q.double()).mean(-1)
