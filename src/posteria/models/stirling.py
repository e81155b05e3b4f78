"""Differences of gamma functions that do not cancel where their arguments are large.

lgamma(a + y) - lgamma(a) loses all its digits where a is large, and a sampler that strays there finds a likelihood
made of rounding errors. Above a threshold the differences come from Stirling's series (Abramowitz & Stegun 1964,
6.1.40, 6.3.18, 6.4.12), whose leading terms cancel on paper. Errors are below 1e-10.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LARGE = 30.0


def log_rising(start: Tensor, count: Tensor) -> Tensor:
    """lgamma(start + count) - lgamma(start), for positive start and count of 0 or more."""
    small, large = start.clamp(max=_LARGE), start.clamp(min=_LARGE)
    exact = torch.lgamma(small + count) - torch.lgamma(small)
    end = large + count
    series = (end - 0.5) * torch.log1p(count / large) + count * large.log() - count
    series = series + _lgamma_tail(end) - _lgamma_tail(large)
    return torch.where(start > _LARGE, series, exact)


def digamma_gain(start: Tensor, count: Tensor) -> Tensor:
    """digamma(start + count) - digamma(start), the derivative of :func:`log_rising` in start."""
    small, large = start.clamp(max=_LARGE), start.clamp(min=_LARGE)
    exact = torch.digamma(small + count) - torch.digamma(small)
    end = large + count
    series = torch.log1p(count / large) - _digamma_tail(end) + _digamma_tail(large)
    return torch.where(start > _LARGE, series, exact)


def trigamma_gain(start: Tensor, count: Tensor) -> Tensor:
    """trigamma(start + count) - trigamma(start), the derivative of :func:`digamma_gain` in start."""
    small, large = start.clamp(max=_LARGE), start.clamp(min=_LARGE)
    exact = torch.polygamma(1, small + count) - torch.polygamma(1, small)
    end = large + count
    series = -count / (large * end) + _trigamma_tail(end) - _trigamma_tail(large)
    return torch.where(start > _LARGE, series, exact)


def log_minus_digamma(shape: Tensor) -> Tensor:
    """log(shape) - digamma(shape), positive."""
    small = shape.clamp(max=_LARGE)
    return torch.where(shape > _LARGE, _digamma_tail(shape.clamp(min=_LARGE)), small.log() - torch.digamma(small))


def gamma_constant(shape: Tensor) -> Tensor:
    """shape log(shape) - shape - lgamma(shape), which grows like log(shape) / 2."""
    small, large = shape.clamp(max=_LARGE), shape.clamp(min=_LARGE)
    exact = small * small.log() - small - torch.lgamma(small)
    return torch.where(shape > _LARGE, 0.5 * (large / (2 * math.pi)).log() - _lgamma_tail(large), exact)


def gamma_information(shape: Tensor) -> Tensor:
    """shape² trigamma(shape) - shape, between 1 and 1/2: the information of the log shape of a gamma distribution."""
    small, large = shape.clamp(max=_LARGE), shape.clamp(min=_LARGE)
    exact = small**2 * torch.polygamma(1, small) - small
    return torch.where(shape > _LARGE, large**2 * _trigamma_tail(large), exact)


def _lgamma_tail(a: Tensor) -> Tensor:
    """lgamma(a) - (a - 1/2) log a + a - log(2π) / 2."""
    return (1 - 1 / (30 * a**2)) / (12 * a)


def _digamma_tail(a: Tensor) -> Tensor:
    """log a - digamma(a)."""
    return (1 + (1 - 1 / (10 * a**2)) / (6 * a)) / (2 * a)


def _trigamma_tail(a: Tensor) -> Tensor:
    """trigamma(a) - 1 / a."""
    return (1 + (1 - 1 / (5 * a**2)) / (3 * a)) / (2 * a**2)
