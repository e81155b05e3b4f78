"""What every method of `posteria bench alternatives` gives: means and sds of theta, unconstrained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.refinement.weights import Weights
from posteria.types import Dataset

# As many independent draws as answers are allowed the errors of.
NUM_DRAWS = 4000


@dataclass(frozen=True)
class Answer:
    """A posterior, as far as it is compared.

    Attributes:
        mean, sd: (B, P) of unconstrained theta, in double precision; NaN where the method found no answer.
    """

    mean: Tensor
    sd: Tensor

    @classmethod
    def of(cls, theta: Tensor, weights: Tensor | None = None) -> Answer:
        """From draws theta (B, S, P) with weights (B, S) that sum to one; default equal weights.

        Examples:
            >>> Answer.of(torch.tensor([[[0.0], [2.0]]]), torch.tensor([[0.5, 0.5]])).sd
            tensor([[1.]], dtype=torch.float64)
        """
        theta = theta.double()
        if weights is None:
            return cls(theta.mean(1), theta.std(1))
        share = weights.double()[..., None]
        mean = (share * theta).sum(1)
        return cls(mean, (share * (theta - mean[:, None]).square()).sum(1).sqrt())

    @classmethod
    def weighted(cls, theta: Tensor, log_joint: Tensor, log_q: Tensor) -> Answer:
        """From draws theta (B, S, P) of a density q, weighted by Pareto-smoothed importance sampling (ArviZ).

        Args:
            theta: the draws; those that are not finite get no weight.
            log_joint, log_q: (B, S) log p(theta, D) and log q(theta).
        """
        return cls.of(theta.nan_to_num(0.0, 0.0, 0.0), Weights.of(log_joint, log_q).weights)

    @classmethod
    def none(cls, size: int) -> Answer:
        """Of one dataset with ``size`` parameters, where a method fails."""
        nowhere = torch.full((1, size), torch.nan, dtype=torch.double)
        return cls(nowhere, nowhere)

    @classmethod
    def joined(cls, answers: list[Answer]) -> Answer:
        """The answers of all batches as one."""
        return cls(torch.cat([a.mean for a in answers]), torch.cat([a.sd for a in answers]))


# (B datasets, seed) -> their answers. Methods that work on one dataset at a time take batches of one.
Solver = Callable[[Dataset, int], Answer]
