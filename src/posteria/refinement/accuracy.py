"""How far means and standard deviations may be off, and how far they are, by importance weights.

For weights w (summing to one) on S draws of q, the weighted mean m = sum w x estimates the posterior's, and the plain
mean that of q. The difference has the influence w (x - m) - (x - m_q) / S per draw, so that its standard error is zero
where q is exact; so has the log ratio of standard deviations with w ((x - m)²/v - 1) / 2 (delta method; Owen 2013,
Monte Carlo theory, methods and examples, section 9.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.errors import InputError

_TINY = 1e-300
# Where a quantity's spread is below this share of its size it is a constant, and rounding is all that moves it.
_CONSTANT = 1e-9


@dataclass(frozen=True)
class Accuracy:
    """What an answer must reach to be trusted.

    Args:
        mean: largest error of a posterior mean, in posterior standard deviations.
        sd: largest relative error of a posterior standard deviation.
        level: allowed probability, per dataset, that Monte Carlo error exceeds either for some quantity.

    Raises:
        InputError: a number that is not between 0 and 1.
    """

    mean: float = 0.1
    sd: float = 0.1
    level: float = 0.05

    def __post_init__(self) -> None:
        for name in ("mean", "sd", "level"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InputError.of(f"target.{name}", repr(getattr(self, name)), "a number between 0 and 1")

    @property
    def log_sd(self) -> float:
        """Largest error of a log standard deviation."""
        return math.log1p(self.sd)

    def margin(self, counted: Tensor) -> Tensor:
        """(B, 1) standard errors to allow for: all means and sds of the quantities counted (B, Q) hold together."""
        tests = 2.0 * counted.sum(-1, keepdim=True).clamp(min=1).double()
        return -torch.special.ndtri(self.level / (2.0 * tests))


@dataclass(frozen=True)
class Moments:
    """Means and spreads of quantities by weighted draws.

    Attributes:
        mean, sd: (B, Q).
        mean_error, sd_error: (B, Q) standard errors of the mean, in sds, and of the log sd.
    """

    mean: Tensor
    sd: Tensor
    mean_error: Tensor
    sd_error: Tensor

    @classmethod
    def of(cls, values: Tensor, weights: Tensor) -> Moments:
        """From values (B, S, Q) of draws with weights (B, S) that sum to one."""
        parts = [cls._of_one(value.double(), weight.double())  # one by one: they fit a processor's cache
                 for value, weight in zip(values, weights, strict=True)]
        return cls(*(torch.stack(part) for part in zip(*parts, strict=True)))

    @staticmethod
    def _of_one(values: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = w @ values
        squares = (values - mean).square()
        variance = (w @ squares).clamp(min=least_variance(values))
        second = w.square()
        about = (second @ squares) / variance
        # Of the influences w (x - m) / sd and w ((x - m)² / variance - 1) / 2, the roots of the sums of squares.
        fourth = (second @ squares.square_()) / variance.square()
        spread = (fourth - 2.0 * about + second.sum()).clamp(min=0.0)
        return mean, variance.sqrt(), about.sqrt(), 0.5 * spread.sqrt()

    def effort(self, target: Accuracy, counted: Tensor) -> Tensor:
        """(B,) how many times as many weighted draws the target takes; at most 1 where these are enough."""
        margin = target.margin(counted)
        needed = torch.maximum(margin * self.mean_error / target.mean, margin * self.sd_error / target.log_sd)
        return torch.where(counted, needed.square(), 0.0).amax(-1).nan_to_num(torch.inf, torch.inf)


@dataclass(frozen=True)
class Change:
    """By how much weights move means and spreads of quantities.

    Attributes:
        shift, narrowing: (B, Q) mean of the draws without their weights less the mean with, in sds; log ratio of sds.
        shift_error, narrowing_error: (B, Q) their standard errors.
    """

    shift: Tensor
    narrowing: Tensor
    shift_error: Tensor
    narrowing_error: Tensor

    @classmethod
    def of(cls, values: Tensor, weights: Tensor) -> Change:
        """From values (B, S, Q) of draws with weights (B, S) that sum to one."""
        values, w = values.double(), weights.double()[..., None]
        even = 1.0 / values.shape[1]
        mean, plain = (w * values).sum(1, keepdim=True), values.mean(1, keepdim=True)
        away, apart = values - mean, values - plain
        floor = least_variance(values)[:, None]
        variance = (w * away.square()).sum(1, keepdim=True).clamp(min=floor)
        spread = apart.square().mean(1, keepdim=True).clamp(min=floor)
        first = (w * away - even * apart) / variance.sqrt()
        second = w * (away.square() / variance - 1.0) - even * (apart.square() / spread - 1.0)
        return cls(((plain - mean) / variance.sqrt())[:, 0], 0.5 * (spread / variance).log()[:, 0],
                   first.square().sum(1).sqrt(), 0.5 * second.square().sum(1).sqrt())

    def passes(self, target: Accuracy, counted: Tensor) -> Tensor:
        """(B,) bool: the draws without their weights are accurate, with room for the error of this estimate."""
        margin = target.margin(counted)
        good = ((self.shift.abs() + margin * self.shift_error <= target.mean)
                & (self.narrowing.abs() + margin * self.narrowing_error <= target.log_sd))
        return (good | ~counted).all(-1)


def least_variance(values: Tensor) -> Tensor:
    """(..., Q) the least variance of values (..., S, Q) that is no rounding."""
    return (_CONSTANT * values.abs().amax(-2)).square() + _TINY
