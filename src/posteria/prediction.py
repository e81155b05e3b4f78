"""Posterior predictive: what a posterior says about new observations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution

from posteria.errors import DataError, InputError
from posteria.randomness import generator_for, seeded


@dataclass(frozen=True)
class Prediction:
    """The predictive distribution of B datasets at N rows, as an even mixture of one component per draw.

    Attributes:
        distribution: the S components; batch shape (B, S, N).
        observed: (B, N) bool, True = a real row.
        seed: makes :attr:`draws` repeatable, whatever is read first.
    """

    distribution: Distribution
    observed: Tensor
    seed: int = 0

    @cached_property
    def draws(self) -> Tensor:
        """(B, S, N, *event) one sampled observation per draw and row."""
        with torch.no_grad(), seeded(generator_for(self.seed)):
            return self.distribution.sample()

    @property
    def is_class(self) -> bool:
        return isinstance(self.distribution, Categorical | Bernoulli)

    @cached_property
    def component_means(self) -> Tensor:
        """(B, S, N, *event) mean of every component; (B, S, N, K) class probabilities for classes."""
        if isinstance(self.distribution, Categorical):
            return self.distribution.logits.exp()  # normalised already; half the time of another softmax
        if isinstance(self.distribution, Bernoulli):
            return torch.stack([1 - self.distribution.probs, self.distribution.probs], -1)
        return self.distribution.mean

    @cached_property
    def mean(self) -> Tensor:
        """(B, N, *event) predictive mean; (B, N, K) class probabilities for classes."""
        return self.component_means.mean(1)

    @cached_property
    def sd(self) -> Tensor:
        """(B, N, *event) predictive standard deviation: spread within and between the components."""
        if self.is_class:
            raise InputError.of("sd", "a prediction of classes", "a numeric prediction; read mean for probabilities")
        return (self.distribution.variance.mean(1) + self.component_means.var(1, correction=0)).sqrt()

    def log_prob(self, y: Any) -> Tensor:
        """(B, N) log posterior predictive density of y, averaged over draws on the density scale.

        Args:
            y: (N, *event) or (B, N, *event) observations, in the units of the dataset.
        """
        components = self.distribution
        y = torch.as_tensor(y, dtype=self.component_means.dtype, device=self.observed.device)
        wanted = (*self.observed.shape, *components.event_shape)
        y = y.expand(wanted) if y.ndim == len(wanted) - 1 else y
        if tuple(y.shape) != tuple(wanted):
            raise DataError.of("y", f"shape {tuple(y.shape)}", f"shape {tuple(wanted)}")
        draws = components.batch_shape[1]
        return torch.logsumexp(components.log_prob(y[:, None]), 1) - math.log(draws)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper end, each (B, N, *event), of the central interval of the sampled observations."""
        if not 0 < level < 1:
            raise InputError.of("level", repr(level), "a number between 0 and 1")
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=self.observed.device)
        low, high = torch.quantile(self.draws.double(), tails, dim=1)
        return low, high
