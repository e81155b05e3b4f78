"""Posterior predictive checks: does the model, with this posterior, make data like these (Gelman, Meng, Stern 1996)?

They speak of the model and not of the computation: an exact posterior of a wrong model fails them too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posteria.errors import UnsupportedError
from posteria.randomness import generator_for
from posteria.types import Dataset

if TYPE_CHECKING:
    from posteria.posterior import Posterior

Statistic = Callable[[Tensor, Tensor], Tensor]
_NUM_SAMPLES = 200


def _mean(y: Tensor, real: Tensor) -> Tensor:
    return torch.where(real, y, 0.0).sum(-1) / real.sum(-1)


def _sd(y: Tensor, real: Tensor) -> Tensor:
    return _mean((y - _mean(y, real)[..., None]).square(), real).sqrt()


def _largest(y: Tensor, real: Tensor) -> Tensor:
    return torch.where(real, y, -torch.inf).amax(-1)


def _smallest(y: Tensor, real: Tensor) -> Tensor:
    return torch.where(real, y, torch.inf).amin(-1)


def _zeros(y: Tensor, real: Tensor) -> Tensor:
    return _mean((y == 0).to(y.dtype), real)


# Statistics of (B, S, N) values, by what the model describes; a model of x alone is looked at by its rows' norms.
STATISTICS: dict[str, dict[str, Statistic]] = {
    "real": {"mean": _mean, "sd": _sd, "largest": _largest, "smallest": _smallest},
    "count": {"mean": _mean, "sd": _sd, "largest": _largest, "zeros": _zeros},
    "positive": {"mean": _mean, "sd": _sd, "largest": _largest, "smallest": _smallest},
    "class": {"mean": _mean, "sd": _sd},
    "none": {"mean": _mean, "sd": _sd, "largest": _largest},
}


def predictive_p(posterior: Posterior, seed: int = 0, num_samples: int = _NUM_SAMPLES) -> dict[str, Tensor]:
    """(B,) two-sided p-value of every statistic that suits the model's target; small where the data look different.

    Args:
        posterior: of B datasets.
        seed: of the replicated data.
        num_samples: replicated datasets per dataset.
    """
    dataset = posterior.dataset
    drawn = _predicted(posterior, seed, num_samples)
    drawn = _simulated(posterior, seed, num_samples) if drawn is None else drawn
    here, real = _values(dataset), dataset.observed[:, None]
    return {name: _two_sided(statistic(drawn.double(), real), statistic(here[:, None].double(), real))
            for name, statistic in STATISTICS[posterior.model.target].items()}


def _two_sided(replicated: Tensor, here: Tensor) -> Tensor:
    """(B,) from statistics of S replications (B, S) and of the data (B, 1)."""
    count = replicated.shape[1]
    above, below = (replicated >= here).sum(1), (replicated <= here).sum(1)
    return (2.0 * (1.0 + torch.minimum(above, below)) / (1.0 + count)).clamp(max=1.0).double()


def _values(dataset: Dataset) -> Tensor:
    """(B, N) what is looked at: y, or the rows' norms."""
    return (dataset.x * dataset.features[:, None]).norm(dim=-1) if dataset.y is None else dataset.y


def _predicted(posterior: Posterior, seed: int, num_samples: int) -> Tensor | None:
    """(B, S, N) replications of y; None for a model of x alone, whose rows are large, and for a simulator."""
    if posterior.dataset.y is None:
        return None
    try:
        return posterior.predict(num_samples=num_samples, seed=seed).draws
    except UnsupportedError:
        return None


def _simulated(posterior: Posterior, seed: int, num_samples: int) -> Tensor:
    """(B, S, N) replications by the model's simulation, one draw after the other."""
    generator = generator_for(seed, device=posterior.dataset.device)
    theta = posterior.sample_theta(num_samples, generator)
    inputs: Dataset = replace(posterior.dataset, y=None).beside(theta)
    return torch.stack([_values(posterior.model.simulate(theta[:, i], inputs, generator))
                        for i in range(num_samples)], 1)
