"""Log densities of priors, in JAX: the families that priors of registered models can have.

Each takes the torch distribution, for its numbers only, and a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.scipy import stats
from torch import distributions as d

LogDensity = Callable[[Any, Array], Array]


def _half(symmetric: Callable[..., Array]) -> LogDensity:
    return lambda prior, value: jnp.log(2.0) + symmetric(value, 0.0, float(prior.scale))


def _located(family: Callable[..., Array]) -> LogDensity:
    return lambda prior, value: family(value, float(prior.loc), float(prior.scale))


def _gamma(prior: d.Gamma | d.InverseGamma, value: Array) -> Array:
    return stats.gamma.logpdf(value, float(prior.concentration), scale=1.0 / float(prior.rate))


def _inverse_gamma(prior: d.InverseGamma, value: Array) -> Array:
    """1 / value is gamma, and the change of variable costs value⁻²."""
    return _gamma(prior, 1.0 / value) - 2.0 * jnp.log(value)


def _log_normal(prior: d.LogNormal, value: Array) -> Array:
    return stats.norm.logpdf(jnp.log(value), float(prior.loc), float(prior.scale)) - jnp.log(value)


def _student_t(prior: d.StudentT, value: Array) -> Array:
    return stats.t.logpdf(value, float(prior.df), float(prior.loc), float(prior.scale))


PRIORS: dict[type[d.Distribution], LogDensity] = {
    d.Cauchy: _located(stats.cauchy.logpdf),
    d.Exponential: lambda prior, value: stats.expon.logpdf(value, scale=1.0 / float(prior.rate)),
    d.Gamma: _gamma,
    d.HalfCauchy: _half(stats.cauchy.logpdf),
    d.HalfNormal: _half(stats.norm.logpdf),
    d.InverseGamma: _inverse_gamma,
    d.Laplace: _located(stats.laplace.logpdf),
    d.LogNormal: _log_normal,
    d.Normal: _located(stats.norm.logpdf),
    d.StudentT: _student_t,
}
