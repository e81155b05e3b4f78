"""Log joints of the registered models, written a second time in JAX, from their options alone.

Nothing here calls the models' own densities, bijections or layouts: agreement with them (:mod:`posteria.referee.check`)
is evidence for both. Every constant of normalisation is included, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy
from jax import Array
from jax.scipy import stats
from jax.scipy.special import gammaln
from torch.distributions import Distribution

from posteria.errors import UnsupportedError
from posteria.models import MODELS, Model
from posteria.models.parameters import FEATURES
from posteria.models.poisson import poisson_regression
from posteria.referee.callback import callback_density
from posteria.referee.data import Data, Density
from posteria.referee.families import (
    glm_columns,
    glm_rows,
    glm_shapes,
    hierarchical_columns,
    hierarchical_rows,
    hierarchical_shapes,
)
from posteria.referee.priors import PRIORS

Options = Mapping[str, Any]
Params = Mapping[str, Array]
Shapes = dict[str, tuple[int | str, ...]]

# theta holds their logarithms.
_POSITIVE = {"noise_scale", "concentration", "shape", "group_scale", "slope_scale"}
_LARGEST_LOG_MEAN = 15.0  # part of the model's definition: no count is expected above e¹⁵


class ModelDensity(NamedTuple):
    """One model in JAX: a likelihood, and the blocks of theta in order.

    Attributes:
        shapes: options -> shape of every block; the axis "features" comes last where there is one.
        row_log_prob: (options, named values, data) -> (N,) log densities of the rows.
        extra_columns: options -> number of leading columns of x that are not features.
    """

    shapes: Callable[[Options], Shapes]
    row_log_prob: Callable[[Options, Params, Data], Array]
    extra_columns: Callable[[Options], int] = lambda options: 0


# -- Gaussian models ------------------------------------------------------------------------------
def _mean_shapes(options: Options) -> Shapes:
    return {"mean": (FEATURES,)}


def _mean_rows(options: Options, params: Params, data: Data) -> Array:
    return _normal_rows(options["covariance"], params["mean"], data)


def _mixture_shapes(options: Options) -> Shapes:
    return {"means": (options["components"], FEATURES)}


def _mixture_rows(options: Options, params: Params, data: Data) -> Array:
    count = options["components"]
    weights = options["weights"] or [1.0 / count] * count
    covariances = options.get("covariances") or [options["covariance"]] * count
    parts = [math.log(weights[k]) + _normal_rows(covariances[k], params["means"][k], data) for k in range(count)]
    return jax.nn.logsumexp(jnp.stack(parts), axis=0)


def _normal_rows(covariance: Any, mean: Array, data: Data) -> Array:
    """(N,) log N(x_n; mean, covariance) over the real features."""
    real = data.features
    matrix = jnp.where(real[:, None] & real, _matrix(covariance, data.x.shape[1]), jnp.eye(data.x.shape[1]))
    rows = stats.multivariate_normal.logpdf(data.x, jnp.where(real, mean, 0.0), matrix)
    padded = (~real).sum() * 0.5 * math.log(2.0 * math.pi)  # each counted log N(0; 0, 1)
    return jnp.add(rows, padded)


def _matrix(covariance: Any, columns: int) -> numpy.ndarray:
    values = numpy.asarray(1.0 if covariance is None else covariance, dtype=numpy.float64)
    if values.ndim == 2:
        return values[:columns, :columns]
    return numpy.diag(numpy.broadcast_to(values[..., :columns] if values.ndim else values, (columns,)))


# -- observations ---------------------------------------------------------------------------------
def _gaussian_rows(options: Options, outputs: Array, params: Params, data: Data) -> Array:
    known = options["noise"] != "inferred"
    scale = math.sqrt(options["noise"]) if known else params["noise_scale"]
    return stats.norm.logpdf(data.y, outputs, scale)


def _class_rows(options: Options, outputs: Array, data: Data) -> Array:
    if options.get("reference"):
        outputs = jnp.concatenate([jnp.zeros_like(outputs[:, :1]), outputs], 1)
    log_probs = jax.nn.log_softmax(outputs / options["temperature"], axis=1)
    return jnp.take_along_axis(log_probs, data.y.astype(int)[:, None], axis=1)[:, 0]


def _noise_shapes(options: Options) -> Shapes:
    return {"noise_scale": ()} if options["noise"] == "inferred" else {}


# -- linear models --------------------------------------------------------------------------------
def _line_shapes(options: Options) -> Shapes:
    return {"weights": (FEATURES,), "intercept": ()} | _noise_shapes(options)


def _line_rows(options: Options, params: Params, data: Data) -> Array:
    return _gaussian_rows(options, data.x @ params["weights"] + params["intercept"], params, data)


def _linear_class_shapes(options: Options) -> Shapes:
    outputs = options["classes"] - bool(options["reference"])
    return {"weights": (outputs, FEATURES), "intercept": (outputs,)}


def _linear_class_rows(options: Options, params: Params, data: Data) -> Array:
    return _class_rows(options, data.x @ params["weights"].T + params["intercept"], data)


def _poisson_shapes(options: Options) -> Shapes:
    return {"weights": (FEATURES,), "intercept": (), "concentration": ()}


def _poisson_rows(options: Options, params: Params, data: Data) -> Array:
    """Negative binomial with that mean and variance mean + mean² / concentration."""
    exposure, concentration = jnp.where(data.observed, data.x[:, 0], 1.0), params["concentration"]
    log_mean = jnp.log(exposure) + params["intercept"] + data.x[:, 1:] @ params["weights"]
    logits = jnp.minimum(log_mean, _LARGEST_LOG_MEAN) - jnp.log(concentration)
    choose = gammaln(concentration + data.y) - gammaln(1.0 + data.y) - gammaln(concentration)
    return choose + concentration * jax.nn.log_sigmoid(-logits) + data.y * jax.nn.log_sigmoid(logits)


# -- networks -------------------------------------------------------------------------------------
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def _network_shapes(options: Options) -> Shapes:
    hidden = options["hidden"]
    second: Shapes = {"hidden2_weights": (hidden, hidden)} if options["layers"] == 2 else {}
    outputs = (options["classes"], hidden) if "classes" in options else (hidden,)
    return {"hidden_weights": (hidden, FEATURES), "hidden_bias": (hidden,), **second, "output_weights": outputs}


def _network(options: Options, params: Params, data: Data) -> Array:
    activation = _ACTIVATIONS[options["activation"]]
    level = activation(data.x @ params["hidden_weights"].T + params["hidden_bias"])
    if options["layers"] == 2:
        level = activation(level @ params["hidden2_weights"].T)
    return level @ params["output_weights"].T


def _network_regression_shapes(options: Options) -> Shapes:
    return _network_shapes(options) | _noise_shapes(options)


def _network_regression_rows(options: Options, params: Params, data: Data) -> Array:
    return _gaussian_rows(options, _network(options, params, data), params, data)


def _network_class_rows(options: Options, params: Params, data: Data) -> Array:
    return _class_rows(options, _network(options, params, data), data)


DENSITIES: dict[str, ModelDensity] = {
    "gaussian_mean": ModelDensity(_mean_shapes, _mean_rows),
    "gaussian_mixture": ModelDensity(_mixture_shapes, _mixture_rows),
    "linear_regression": ModelDensity(_line_shapes, _line_rows),
    "linear_classification": ModelDensity(_linear_class_shapes, _linear_class_rows),
    "neural_regression": ModelDensity(_network_regression_shapes, _network_regression_rows),
    "neural_classification": ModelDensity(_network_shapes, _network_class_rows),
    "poisson_regression": ModelDensity(_poisson_shapes, _poisson_rows, extra_columns=lambda options: 1),
    "generalized_linear": ModelDensity(glm_shapes, glm_rows, glm_columns),
    "hierarchical": ModelDensity(hierarchical_shapes, hierarchical_rows, hierarchical_columns),
}


def has_own_density(model: Model) -> bool:
    """Whether :func:`density_of` has the model and all its priors in JAX, so that torch is not asked."""
    written = model.name in DENSITIES and all(type(p.prior) in PRIORS for p in model.parameters)
    return written and _is_registered(model)


def density_of(model: Model) -> Density:
    """The model's log joint in JAX: (theta (P,), data of one dataset) -> scalar, over the active parameters.

    A user's own model, or a prior that has no density here, is evaluated by torch through a callback: that
    works everywhere, but it is slow, and no second opinion on the density.

    Args:
        model: any model with a likelihood.

    Raises:
        UnsupportedError: a simulator.
    """
    if not model.has_likelihood:
        raise UnsupportedError.of("model", f"{model.name!r}, which can only be simulated", "a model with a likelihood")
    if not has_own_density(model):
        return callback_density(model)
    written, options = DENSITIES[model.name], model.options()
    priors = {p.name: p.prior for p in model.parameters}

    def log_joint(theta: Array, data: Data) -> Array:
        features = data.features[written.extra_columns(options):]
        params, log_prior = _unpack(theta, written.shapes(options), features, priors)
        rows = written.row_log_prob(options, params, data)
        return log_prior + jnp.where(data.observed, rows, 0.0).sum()

    return log_joint


def _unpack(theta: Array, shapes: Shapes, features: Array,
            priors: Mapping[str, Distribution]) -> tuple[dict[str, Array], Array]:
    """Named constrained values, and the log prior density of theta with the Jacobian of the logarithms."""
    params, log_prior, start = {}, jnp.zeros(()), 0
    for name, axes in shapes.items():
        shape = tuple(features.shape[0] if axis == FEATURES else int(axis) for axis in axes)
        free = theta[start:start + math.prod(shape)].reshape(shape)
        value = jnp.exp(free) if name in _POSITIVE else free
        terms = PRIORS[type(priors[name])](priors[name], value) + (free if name in _POSITIVE else 0.0)
        log_prior = log_prior + (jnp.where(features, terms, 0.0) if FEATURES in axes else terms).sum()
        params[name], start = value, start + math.prod(shape)
    if start != theta.shape[0]:
        raise UnsupportedError.of("theta", f"{theta.shape[0]} parameters", f"{start} in the layout of {list(shapes)}")
    return params, log_prior


def _is_registered(model: Model) -> bool:
    """Not a user's own model that has a registered one's name."""
    registered = MODELS[model.name]
    if isinstance(registered, type):
        return type(model) is registered
    return vars(model).get("_predict") is vars(poisson_regression())["_predict"]
