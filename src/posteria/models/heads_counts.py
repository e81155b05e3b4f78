"""Observation families of counts: Poisson, negative binomial, beta-binomial."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy
import torch
from torch import Tensor
from torch.distributions import Distribution, LogNormal, NegativeBinomial, Poisson, constraints
from torch.nn.functional import logsigmoid

from posteria.models.base import Target
from posteria.models.extra_columns import positive_column, whole_column
from posteria.models.heads import Extra, Head, precision_secant, summed
from posteria.models.laws import BetaBinomial, beta_binomial_log_prob
from posteria.models.links import bounded_log, bounded_log_slope
from posteria.models.parameters import Parameter
from posteria.models.stirling import digamma_gain, log_rising, trigamma_gain

_QUADRATURE = 6
# Share of a rough information that the observed curvature of a concentration does not fall below.
_LEAST_SHARE = 0.25
_MOST_TRIALS = 20


class PoissonHead(Head):
    """Counts of mean exp(f(x)), times an exposure if there is one.

    The mean's logarithm is bounded (:func:`posteria.models.links.bounded_log`).

    Args:
        exposure: read exposures from an extra column ``exposure`` (the logarithm is added to f).
    """

    target: Target = "count"
    canonical: ClassVar[bool] = True

    def __init__(self, exposure: bool = False):
        self.columns = (positive_column("exposure", 0.5, 2.0),) if exposure else ()

    def log_mean(self, outputs: Tensor, extra: Extra) -> Tensor:
        """(B, S, N) log mean of the counts."""
        return bounded_log(self._predictor(outputs, extra))

    def slope(self, outputs: Tensor, extra: Extra) -> Tensor:
        """(B, S, N) derivative of the log mean in the output."""
        return bounded_log_slope(self._predictor(outputs, extra))

    def _predictor(self, outputs: Tensor, extra: Extra) -> Tensor:
        return outputs[..., 0] + extra["exposure"].log() if self.columns else outputs[..., 0]

    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        log_mean = self.log_mean(outputs, extra)
        return y * log_mean - log_mean.exp() - torch.lgamma(y + 1)

    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        return ((y - self.log_mean(outputs, extra).exp()) * self.slope(outputs, extra))[..., None]

    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        return (torch.exp(0.5 * self.log_mean(outputs, extra)) * self.slope(outputs, extra))[..., None, None]

    def score_and_information(self, outputs: Tensor, y: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        mean, slope = self.log_mean(outputs, extra).exp(), self.slope(outputs, extra)
        return ((y - mean) * slope)[..., None], (mean * slope.square())[..., None, None]

    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        return Poisson(self.log_mean(outputs, extra).exp(), validate_args=False)


class NegativeBinomialHead(PoissonHead):
    """Counts of mean exp(f(x)) and variance mean + mean² / concentration; a log-normal prior on the concentration.

    Mean and concentration are orthogonal. The information of the log concentration r is written as an integral,

        I = r² Σ_(j≥2) q^j B(j, r) / j = r ∫_0^1 [-log(1 - q t) / t - q] dv,  t = 1 - v^(1/r), q = mean / (mean + r)

    (the sum is Fisher's, Annals of Eugenics 1941; Piegorsch 1990), and summed by Gauss-Legendre: 2% of error at most.

    Args:
        exposure: as for :class:`PoissonHead`.
    """

    canonical: ClassVar[bool] = False

    def __init__(self, exposure: bool = False):
        super().__init__(exposure)
        prior = LogNormal(1.5, 0.75, validate_args=False)
        self.parameters = (Parameter("concentration", (), constraints.positive, prior),)

    def _parts(self, outputs: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        """Concentration (B, S, 1), and logits (B, S, N) of mean / (mean + concentration)."""
        concentration = extra["concentration"][..., None]
        return concentration, self.log_mean(outputs, extra) - concentration.log()

    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        concentration, logits = self._parts(outputs, extra)
        choose = log_rising(concentration, y) - torch.lgamma(y + 1)
        return choose + concentration * logsigmoid(-logits) + y * logsigmoid(logits)

    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        concentration, logits = self._parts(outputs, extra)
        excess = y * torch.sigmoid(-logits) - concentration * torch.sigmoid(logits)
        return (excess * self.slope(outputs, extra))[..., None]

    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        concentration, logits = self._parts(outputs, extra)
        return ((concentration * torch.sigmoid(logits)).sqrt() * self.slope(outputs, extra))[..., None, None]

    def score_and_information(self, outputs: Tensor, y: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        return Head.score_and_information(self, outputs, y, extra)  # not those of Poisson counts

    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        concentration, logits = self._parts(outputs, extra)
        return NegativeBinomial(concentration, logits=logits, validate_args=False)

    def own_score(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        r, logits = self._parts(outputs, extra)
        gradient = digamma_gain(r, y) + logsigmoid(-logits) + logits.sigmoid() - y / r * (-logits).sigmoid()
        return summed(r * gradient, observed)

    def own_curvature(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra, score: Tensor,
                      information: Tensor) -> Tensor:
        return precision_secant(score, information)

    def own_information(self, outputs: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        r, logits = self._parts(outputs, extra)
        q, total = torch.sigmoid(logits), torch.zeros_like(logits)
        for log_node, weight in _nodes():
            t = -torch.expm1(log_node / r)
            total = total + weight * (-torch.log1p(-q * t) / t - q).clamp(min=0.0)  # rounding may go below
        return summed(r * total, observed)


class BetaBinomialHead(Head):
    """Successes in the extra column ``trials``, with a probability of mean sigmoid(f(x)) drawn anew in every row.

    That probability is beta distributed with the parameters concentration * mean and concentration * (1 - mean); the
    concentration has a log-normal prior. The mean's logit is bounded (:func:`posteria.models.links.bounded_log`). The
    curvature in f is that of the quasi-likelihood, (d mean)² / variance: at most the Fisher information, equal to it
    for one trial and for large concentrations (Williams 1982).
    """

    target: Target = "count"

    def __init__(self) -> None:
        prior = LogNormal(2.0, 1.0, validate_args=False)
        self.parameters = (Parameter("concentration", (), constraints.positive, prior),)
        self.limit = "trials"
        self.columns = (whole_column("trials", 1, _MOST_TRIALS, constraints.positive_integer),)

    def _parts(self, outputs: Tensor, extra: Extra) -> tuple[Tensor, Tensor, Tensor]:
        """Concentration (B, S, 1), and the probabilities (B, S, N) of success and of failure."""
        logits = bounded_log(outputs[..., 0])
        return extra["concentration"][..., None], torch.sigmoid(logits), torch.sigmoid(-logits)

    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        whole, success, failure = self._parts(outputs, extra)
        return beta_binomial_log_prob(y, extra["trials"], whole * success, whole * failure)

    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        return self._score(self._gains(outputs, y, extra), outputs, extra)

    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        whole, success, failure = self._parts(outputs, extra)
        trials = extra["trials"]
        information = trials * success * failure * (whole + 1) / (whole + trials)
        return (information.sqrt() * bounded_log_slope(outputs[..., 0]))[..., None, None]

    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        whole, success, failure = self._parts(outputs, extra)
        return BetaBinomial(extra["trials"], whole * success, whole * failure, validate_args=False)

    def own_score(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        return self.scores(outputs, y, observed, extra)[1]

    def scores(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        (whole, success, failure), gains = self._parts(outputs, extra), self._gains(outputs, y, extra)
        rows = success * gains[0] + failure * gains[1] - digamma_gain(whole, extra["trials"])
        return self._score(gains, outputs, extra), whole * summed(rows, observed)

    def _score(self, gains: tuple[Tensor, Tensor], outputs: Tensor, extra: Extra) -> Tensor:
        whole, success, failure = self._parts(outputs, extra)
        slope = whole * success * failure * bounded_log_slope(outputs[..., 0])
        return ((gains[0] - gains[1]) * slope)[..., None]

    def own_curvature(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra, score: Tensor,
                      information: Tensor) -> Tensor:
        """The observed curvature, kept above a share of :meth:`own_information`."""
        whole, success, failure = self._parts(outputs, extra)
        trials = extra["trials"]
        one, zero = whole * success, whole * failure
        second = (success**2 * trigamma_gain(one, y) + failure**2 * trigamma_gain(zero, trials - y)
                  - trigamma_gain(whole, trials))
        curvature = summed(-(whole**2) * second, observed) - score
        return torch.maximum(curvature, _LEAST_SHARE * information)

    def own_information(self, outputs: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        """That of a normal with the same mean and variance; the right one for large concentrations."""
        whole, trials = extra["concentration"][..., None], extra["trials"]
        rows = 0.5 * trials * (trials - 1) * (whole / ((whole + trials) * (whole + 1))) ** 2
        return summed(rows.expand(outputs.shape[:-1]), observed)

    def _gains(self, outputs: Tensor, y: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        whole, success, failure = self._parts(outputs, extra)
        return digamma_gain(whole * success, y), digamma_gain(whole * failure, extra["trials"] - y)


@lru_cache(maxsize=1)
def _nodes() -> tuple[tuple[float, float], ...]:
    """(log node, weight) of Gauss-Legendre quadrature on the unit interval."""
    nodes, weights = numpy.polynomial.legendre.leggauss(_QUADRATURE)
    return tuple((float(numpy.log((n + 1) / 2)), float(w / 2)) for n, w in zip(nodes, weights, strict=True))
