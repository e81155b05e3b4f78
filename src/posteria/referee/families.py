"""Generalized linear and hierarchical models in JAX: observation families by name, written from their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy import stats
from jax.scipy.special import gammaln, log_ndtr

from posteria.models.parameters import FEATURES
from posteria.referee.data import Data

Options = Mapping[str, Any]
Params = Mapping[str, Array]
Columns = Mapping[str, Array]
Shapes = dict[str, tuple[int | str, ...]]

_LARGEST_LOG = 15.0  # part of the models' definition: beyond, means grow in proportion to the output


class Family(NamedTuple):
    """An observation family.

    Attributes:
        row_log_prob: (options, outputs (N,) or (N, K), own parameters, extra columns, y) -> (N,) log densities.
        own: options -> names of its own positive parameters.
        columns: options -> names of its extra columns.
    """

    row_log_prob: Callable[[Options, Array, Params, Columns, Array], Array]
    own: Callable[[Options], tuple[str, ...]] = lambda options: ()
    columns: Callable[[Options], tuple[str, ...]] = lambda options: ()


def _log_mean(outputs: Array) -> Array:
    size = jnp.abs(outputs)
    beyond = _LARGEST_LOG + jnp.log1p(jnp.maximum(size - _LARGEST_LOG, 0.0))
    # Not sign times size, whose gradient at zero is zero: an optimiser that starts there would stay.
    return jnp.where(size > _LARGEST_LOG, jnp.sign(outputs) * beyond, outputs)


def _gaussian(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    noise = options.get("noise", "inferred")
    known = columns["noise"] if noise == "column" else None if noise == "inferred" else math.sqrt(noise)
    return stats.norm.logpdf(y, f, own["noise_scale"] if known is None else known)


def _student_t(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    return stats.t.logpdf(y, options.get("degrees", 4.0), f, own["noise_scale"])


def _bernoulli(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    return jax.nn.log_sigmoid(jnp.where(y == 1, f, -f))


def _probit(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    return log_ndtr(jnp.where(y == 1, f, -f))


def _categorical(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    logits = jnp.concatenate([jnp.zeros_like(f[:, :1]), f], 1)
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=1), y.astype(int)[:, None], axis=1)[:, 0]


def _counts(options: Options, f: Array, columns: Columns) -> Array:
    return _log_mean(f + jnp.log(columns["exposure"]) if options.get("exposure", False) else f)


def _poisson(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    log_mean = _counts(options, f, columns)
    return y * log_mean - jnp.exp(log_mean) - gammaln(y + 1)


def _negative_binomial(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    r = own["concentration"]
    logits = _counts(options, f, columns) - jnp.log(r)
    choose = gammaln(r + y) - gammaln(r) - gammaln(y + 1)
    return choose + r * jax.nn.log_sigmoid(-logits) + y * jax.nn.log_sigmoid(logits)


def _beta_binomial(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    logits, trials, whole = _log_mean(f), columns["trials"], own["concentration"]
    one, zero = whole * jax.nn.sigmoid(logits), whole * jax.nn.sigmoid(-logits)
    choose = gammaln(trials + 1) - gammaln(y + 1) - gammaln(trials - y + 1)
    return choose + _log_beta(y + one, trials - y + zero) - _log_beta(one, zero)


def _log_beta(one: Array, zero: Array) -> Array:
    return gammaln(one) + gammaln(zero) - gammaln(one + zero)  # JAX's own betaln is off by 1e-6 in places


def _gamma(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    return stats.gamma.logpdf(y, own["shape"], scale=jnp.exp(_log_mean(f)) / own["shape"])


def _survival(options: Options, f: Array, own: Params, columns: Columns, y: Array) -> Array:
    log_hazard = _log_mean(f)
    return jnp.where(y < columns["censoring"], log_hazard, 0.0) - jnp.exp(log_hazard) * y


def _noise_parameters(options: Options) -> tuple[str, ...]:
    return ("noise_scale",) if options.get("noise", "inferred") == "inferred" else ()


def _noise_columns(options: Options) -> tuple[str, ...]:
    return ("noise",) if options.get("noise") == "column" else ()


def _exposures(options: Options) -> tuple[str, ...]:
    return ("exposure",) if options.get("exposure", False) else ()


FAMILIES: dict[str, Family] = {
    "gaussian": Family(_gaussian, _noise_parameters, _noise_columns),
    "student_t": Family(_student_t, lambda options: ("noise_scale",)),
    "bernoulli": Family(_bernoulli),
    "probit": Family(_probit),
    "categorical": Family(_categorical),
    "poisson": Family(_poisson, columns=_exposures),
    "negative_binomial": Family(_negative_binomial, lambda options: ("concentration",), _exposures),
    "beta_binomial": Family(_beta_binomial, lambda options: ("concentration",), lambda options: ("trials",)),
    "gamma": Family(_gamma, lambda options: ("shape",)),
    "survival": Family(_survival, columns=lambda options: ("censoring",)),
}


def _observed(options: Options, outputs: Array, params: Params, data: Data, before: int) -> Array:
    """(N,) log densities, the family's columns following ``before`` others; padded rows hold a value of one."""
    family = FAMILIES[options["family"]]
    columns = {name: jnp.where(data.observed, data.x[:, before + i], 1.0)
               for i, name in enumerate(family.columns(options))}
    return family.row_log_prob(options, outputs, params, columns, jnp.where(data.observed, data.y, 1.0))


def _own_shapes(options: Options) -> Shapes:
    return dict.fromkeys(FAMILIES[options["family"]].own(options), ())


# -- generalized linear ---------------------------------------------------------------------------
def glm_columns(options: Options) -> int:
    """Number of extra columns."""
    return len(FAMILIES[options["family"]].columns(options))


def glm_shapes(options: Options) -> Shapes:
    """Blocks of a generalized linear model."""
    many = (options.get("classes", 3) - 1,) if options["family"] == "categorical" else ()
    intercept: Shapes = {"intercept": many} if options["intercept"] else {}
    return {"weights": (*many, FEATURES), **intercept, **_own_shapes(options)}


def glm_rows(options: Options, params: Params, data: Data) -> Array:
    """(N,) log densities of a generalized linear model."""
    outputs = data.x[:, glm_columns(options):] @ params["weights"].T + params.get("intercept", jnp.zeros(()))
    return _observed(options, outputs, params, data, 0)


# -- hierarchical ---------------------------------------------------------------------------------
def hierarchical_columns(options: Options) -> int:
    """Number of extra columns, the group's included."""
    return 1 + glm_columns(options)


def hierarchical_shapes(options: Options) -> Shapes:
    """Blocks of a hierarchical model."""
    groups = options["groups"]
    slopes: Shapes = {"slope_scale": (FEATURES,), "slope_offsets": (groups, FEATURES)}
    return {"weights": (FEATURES,), "intercept": (), "group_scale": (), "group_offsets": (groups,),
            **(slopes if options["varying_slopes"] else {}), **_own_shapes(options)}


def hierarchical_rows(options: Options, params: Params, data: Data) -> Array:
    """(N,) log densities of a hierarchical model."""
    group = jnp.where(data.observed, data.x[:, 0], 0.0).astype(int)
    features = data.x[:, hierarchical_columns(options):]
    slopes = jnp.broadcast_to(params["weights"], features.shape)
    if options["varying_slopes"]:
        slopes = slopes + params["slope_scale"] * params["slope_offsets"][group]
    own = params["group_scale"] * params["group_offsets"][group]
    return _observed(options, params["intercept"] + own + (features * slopes).sum(1), params, data, 1)
