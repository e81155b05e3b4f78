"""Differences of gamma functions that do not cancel where their arguments are large.

lgamma(a + y) - lgamma(a) loses all its digits where a is large, and a sampler that strays there finds a likelihood
made of rounding errors. Recurrences lift both arguments by a few units (Abramowitz & Stegun 1964, 6.1.15, 6.3.5,
6.4.6), to where Stirling's series (6.1.40, 6.3.18, 6.4.12) hold, whose leading terms cancel on paper. Errors are below
1e-10.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

_LIFT = 6
# Of derivatives in single precision: the series' next term is at most 2e-7 there.
_SINGLE_LIFT = 3
# Of 1/a, 1/a^3, ... in lgamma(a); of 1/a^2, 1/a^4, ... in digamma(a); of 1/a^3, 1/a^5, ... in trigamma(a).
_LGAMMA = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
_DIGAMMA = (-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132)
_TRIGAMMA = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66)
# Beyond, functions of one argument are their series.
_LARGE = 30.0
# From here on the lift's factors are one to all digits, and squares are far from overflowing in single precision.
_NO_LIFT = 1e15
# Numbers that stay in a processor's cache from one step to the next: two to three times faster than all at once.
_CACHED = 2**15

_Gain = Callable[[Tensor, Tensor], Tensor]


def _in_cache(gain: _Gain) -> _Gain:
    """The same function of start and count, a part at a time."""
    @wraps(gain)
    def whole(start: Tensor, count: Tensor) -> Tensor:
        start, count = torch.broadcast_tensors(start, count)
        if start.numel() <= 2 * _CACHED or start.device.type != "cpu":
            return gain(start, count)
        # Along the longest axis, so that what is broadcast along others is not written out.
        axis = max(range(start.ndim), key=lambda axis: start.shape[axis])
        size = max(1, _CACHED * start.shape[axis] // start.numel())
        parts = zip(start.split(size, axis), count.split(size, axis), strict=True)
        return torch.cat([gain(*part) for part in parts], axis)

    return whole


@_in_cache
def log_rising(start: Tensor, count: Tensor) -> Tensor:
    """lgamma(start + count) - lgamma(start), for positive start and count of 0 or more."""
    low, high = start + _LIFT, start + _LIFT + count
    leading = (high - 0.5) * torch.log1p(count / low) + count * (low.log() - 1.0)
    leading = leading + high * _series(_LGAMMA, high) - low * _series(_LGAMMA, low)
    # Of the lift's factors (end + i) / (start + i) the first and the last, and so on: 1 + (growth of i (i + 5)) / ...
    near = start.clamp(max=_NO_LIFT)
    square, growth, one = near * (near + (_LIFT - 1)), count * (2.0 * near + count + (_LIFT - 1)), torch.ones_like(high)
    first, second, third = (torch.addcdiv(one, growth, square + i * (_LIFT - 1 - i)) for i in range(_LIFT // 2))
    return leading - first.log() - (second * third).log()  # a product that cannot overflow


@_in_cache
def digamma_gain(start: Tensor, count: Tensor) -> Tensor:
    """digamma(start + count) - digamma(start), the derivative of :func:`log_rising` in start."""
    lift, end = _lift(start), start + count
    low, high = start + lift, end + lift
    gain = torch.log1p(count / low) + _digamma_rest(high) - _digamma_rest(low)
    for i in range(lift):
        gain = torch.addcdiv(gain, count, (start + i) * (end + i))
    return gain


@_in_cache
def trigamma_gain(start: Tensor, count: Tensor) -> Tensor:
    """trigamma(start + count) - trigamma(start), the derivative of :func:`digamma_gain` in start."""
    lift, end = _lift(start), start + count
    low, high = start + lift, end + lift
    gain = _trigamma_rest(high) - _trigamma_rest(low) - count / low / high
    for i in range(lift):
        one, other = start + i, end + i
        product = one * other
        gain = torch.addcdiv(gain, count * (one + other) / product, product, value=-1.0)
    return gain


def _lift(start: Tensor) -> int:
    return _SINGLE_LIFT if start.dtype == torch.float32 else _LIFT


def _digamma_rest(a: Tensor) -> Tensor:
    """digamma(a) - log a, for a of :func:`_lift` or more."""
    return _series(_DIGAMMA, a) - 0.5 / a


def _trigamma_rest(a: Tensor) -> Tensor:
    """trigamma(a) - 1 / a, for the same."""
    return _series(_TRIGAMMA, a) / a + 0.5 / a / a


def _series(coefficients: tuple[float, ...], a: Tensor) -> Tensor:
    """The sum of coefficients[k] / a^(2 k + 2), by Horner's rule."""
    inverse = a.square().reciprocal()
    total = inverse * coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = (total + coefficient) * inverse
    return total


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
