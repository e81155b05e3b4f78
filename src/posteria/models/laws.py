"""Distributions of observations that torch does not have."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Beta, Binomial, Distribution, constraints

from posteria.models.stirling import log_rising


class BetaBinomial(Distribution):
    """Successes in some trials whose probability is drawn from a beta distribution.

    Args:
        total_count: number of trials.
        concentration1, concentration0: of the beta distribution; positive. All three broadcast.
    """

    arg_constraints = {  # type: ignore[assignment]  # noqa: RUF012  as torch declares it
        "total_count": constraints.nonnegative_integer, "concentration1": constraints.positive,
        "concentration0": constraints.positive}

    def __init__(self, total_count: Tensor, concentration1: Tensor, concentration0: Tensor,
                 validate_args: bool | None = None):
        self.total_count, self.concentration1, self.concentration0 = torch.broadcast_tensors(
            total_count, concentration1, concentration0)
        super().__init__(self.total_count.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.total_count)

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def variance(self) -> Tensor:
        whole = self.concentration1 + self.concentration0
        binomial = self.mean * self.concentration0 / whole
        return binomial * (whole + self.total_count) / (whole + 1.0)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            # In double precision: concentrations near zero give probabilities that float32 rounds to 0 / 0.
            share = Beta(self.concentration1.double(), self.concentration0.double(), validate_args=False)
            probs = share.sample(torch.Size(sample_shape)).clamp(0.0, 1.0)
            counts = self.total_count.double().expand(probs.shape)
            return Binomial(counts, probs, validate_args=False).sample().to(self.concentration1.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return beta_binomial_log_prob(value, self.total_count, self.concentration1, self.concentration0)


def beta_binomial_log_prob(y: Tensor, trials: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    """log C(trials, y) + log B(y + one, trials - y + zero) - log B(one, zero), in rising factorials."""
    choose = torch.lgamma(trials + 1) - torch.lgamma(y + 1) - torch.lgamma(trials - y + 1)
    return choose + log_rising(one, y) + log_rising(zero, trials - y) - log_rising(one + zero, trials)


class CensoredExponential(Distribution):
    """min(T, censoring) for an exponential T: a density below the censoring time, and the rest of the mass on it.

    Args:
        rate: hazard, positive.
        censoring: time at which the watching ends, positive. Both broadcast.
    """

    arg_constraints = {"rate": constraints.positive,  # type: ignore[assignment]  # noqa: RUF012
                       "censoring": constraints.positive}
    support = constraints.nonnegative  # type: ignore[assignment]

    def __init__(self, rate: Tensor, censoring: Tensor, validate_args: bool | None = None):
        self.rate, self.censoring = torch.broadcast_tensors(rate, censoring)
        super().__init__(self.rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return -torch.expm1(-self.rate * self.censoring) / self.rate

    @property
    def variance(self) -> Tensor:
        """(1 - e^(-2t) - 2 t e^(-t)) / rate², with t = rate × censoring; t³/3 where that would cancel."""
        t = (self.rate * self.censoring).double()
        scaled = -torch.expm1(-2 * t) - 2 * t * torch.exp(-t)
        scaled = torch.where(t < 1e-3, t**3 / 3, scaled)
        return (scaled / self.rate.double() ** 2).to(self.rate.dtype)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            times = self.rate.new_empty(shape).exponential_() / self.rate
            # A time of zero would not be positive, which is what times are.
            return torch.minimum(times.clamp(min=torch.finfo(times.dtype).tiny), self.censoring)

    def log_prob(self, value: Tensor) -> Tensor:
        event = (value < self.censoring).to(value.dtype)
        return event * self.rate.log() - self.rate * torch.minimum(value, self.censoring)
