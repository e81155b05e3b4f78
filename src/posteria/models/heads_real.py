"""Observation families of a real or positive y: known noise per row, Student-t, gamma, censored survival times."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, HalfNormal, LogNormal, StudentT, constraints

from posteria.errors import InputError
from posteria.models.base import Target
from posteria.models.extra_columns import ExtraColumn, positive_column
from posteria.models.heads import Extra, GaussianHead, Head, precision_secant, summed, times_rows
from posteria.models.laws import CensoredExponential
from posteria.models.links import bounded_log, bounded_log_slope
from posteria.models.parameters import Parameter
from posteria.models.stirling import gamma_constant, gamma_information, log_minus_digamma


class KnownNoiseHead(GaussianHead):
    """y ~ N(f(x), noise²), with every row's standard deviation in the extra column ``noise`` (as in eight schools)."""

    def __init__(self) -> None:
        self.columns = (positive_column("noise", 0.3, 1.5),)

    def scale(self, extra: Extra) -> Tensor:
        return extra["noise"]


class StudentTHead(Head):
    """y ~ f(x) + noise_scale * t with some degrees of freedom; the scale has a half-normal prior.

    Curvatures are Fisher informations (the density is not log-concave), of the location (ν+1) / ((ν+3) scale²) and
    of the log scale 2ν / (ν+3) per row (Lange, Little & Taylor 1989, appendix B).

    Args:
        degrees: of freedom ν, known, more than 2 so that the variance exists.
    """

    def __init__(self, degrees: float = 4.0):
        if not degrees > 2:
            raise InputError.of("degrees", repr(degrees), "a number above 2")
        self.degrees = float(degrees)
        prior = HalfNormal(1.0, validate_args=False)
        self.parameters = (Parameter("noise_scale", (), constraints.positive, prior),)

    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        half, scale = 0.5 * (self.degrees + 1), _of_draw(extra, "noise_scale")
        constant = math.lgamma(half) - math.lgamma(0.5 * self.degrees) - 0.5 * math.log(math.pi * self.degrees)
        squares = ((y - outputs[..., 0]) / scale) ** 2
        return constant - scale.log() - half * torch.log1p(squares / self.degrees)

    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        scale = _of_draw(extra, "noise_scale")
        residual = (y - outputs[..., 0]) / scale
        return ((self.degrees + 1) * residual / ((self.degrees + residual**2) * scale))[..., None]

    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        share = math.sqrt((self.degrees + 1) / (self.degrees + 3))
        return (torch.full_like(outputs[..., 0], share) / _of_draw(extra, "noise_scale"))[..., None, None]

    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        return StudentT(self.degrees, outputs[..., 0], _of_draw(extra, "noise_scale"), validate_args=False)

    def own_score(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        squares = ((y - outputs[..., 0]) / _of_draw(extra, "noise_scale")) ** 2
        return summed((self.degrees + 1) * squares / (self.degrees + squares) - 1.0, observed)

    def own_curvature(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra, score: Tensor,
                      information: Tensor) -> Tensor:
        # The score is bounded, so a step with the information is never long.
        return information

    def own_information(self, outputs: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        per_row = 2 * self.degrees / (self.degrees + 3)
        return times_rows(outputs.new_full((*outputs.shape[:2], 1), per_row), observed)


class GammaHead(Head):
    """y > 0 from a gamma distribution of mean exp(f(x)) and variance mean² / shape; a log-normal prior on the shape.

    The mean's logarithm is bounded (:func:`posteria.models.links.bounded_log`). Mean and shape are orthogonal:
    information shape in the log mean, shape² ψ'(shape) - shape in the log shape (McCullagh & Nelder 1989, ch. 8).
    """

    target: Target = "positive"

    def __init__(self) -> None:
        prior = LogNormal(1.0, 0.75, validate_args=False)
        self.parameters = (Parameter("shape", (), constraints.positive, prior),)

    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        shape, log_ratio = _of_draw(extra, "shape"), y.log() - bounded_log(outputs[..., 0])
        return gamma_constant(shape) - shape * (torch.expm1(log_ratio) - log_ratio) - y.log()

    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        return self._score(torch.expm1(y.log() - bounded_log(outputs[..., 0])), outputs, extra)

    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        return (_of_draw(extra, "shape").sqrt() * bounded_log_slope(outputs[..., 0]))[..., None, None]

    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        shape = _of_draw(extra, "shape").expand(outputs.shape[:-1])
        return Gamma(shape, shape * torch.exp(-bounded_log(outputs[..., 0])), validate_args=False)

    def own_score(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        return self.scores(outputs, y, observed, extra)[1]

    def scores(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        shape, log_ratio = _of_draw(extra, "shape"), y.log() - bounded_log(outputs[..., 0])
        excess = torch.expm1(log_ratio)
        own = times_rows(log_minus_digamma(shape), observed) + summed(log_ratio - excess, observed)
        return self._score(excess, outputs, extra), shape * own

    def _score(self, excess: Tensor, outputs: Tensor, extra: Extra) -> Tensor:
        return (_of_draw(extra, "shape") * excess * bounded_log_slope(outputs[..., 0]))[..., None]

    def own_curvature(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra, score: Tensor,
                      information: Tensor) -> Tensor:
        return precision_secant(score, information)

    def own_information(self, outputs: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        return times_rows(gamma_information(_of_draw(extra, "shape")), observed)


class SurvivalHead(Head):
    """Survival times with hazard exp(f(x)), censored on the right where they reach the extra column ``censoring``.

    y is the time watched: below ``censoring`` an event, equal to it a time that was cut off. A row whose time was
    cut off has its own time as ``censoring``; a row with an event any later time, such as the end of the study: the
    likelihood of events does not depend on it, only predictions do. With event = 1 or 0 the log density is
    event * f - exp(f) * y, the information of f is the probability of an event, 1 - exp(-exp(f) * censoring). The log
    hazard is bounded (:func:`posteria.models.links.bounded_log`).
    """

    target: Target = "positive"

    def __init__(self) -> None:
        self.limit = "censoring"
        self.columns = (ExtraColumn("censoring", constraints.positive, _draw_censoring),)

    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        log_hazard = bounded_log(outputs[..., 0])
        return self._event(y, extra) * log_hazard - log_hazard.exp() * y

    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        excess = self._event(y, extra) - bounded_log(outputs[..., 0]).exp() * y
        return (excess * bounded_log_slope(outputs[..., 0]))[..., None]

    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        events = -torch.expm1(-bounded_log(outputs[..., 0]).exp() * extra["censoring"])
        return (events.sqrt() * bounded_log_slope(outputs[..., 0]))[..., None, None]

    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        return CensoredExponential(bounded_log(outputs[..., 0]).exp(), extra["censoring"], validate_args=False)

    def _event(self, y: Tensor, extra: Extra) -> Tensor:
        return (y < extra["censoring"]).to(y.dtype)


def _draw_censoring(shape: tuple[int, int], generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    return torch.exp(0.5 + torch.randn(shape, generator=generator, device=device))


def _of_draw(extra: Extra, name: str) -> Tensor:
    """(B, S, 1) a parameter of the head's own, against (B, S, N)."""
    return extra[name][..., None]
