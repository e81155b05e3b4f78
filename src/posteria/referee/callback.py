"""A log joint that torch evaluates, for JAX to call: for models that have no density in JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy
import torch
from jax import Array

from posteria.models import Model
from posteria.referee.data import Data, Density, dataset_of
from posteria.types import Dataset


def callback_density(model: Model) -> Density:
    """The torch log joint and its gradient behind ``jax.pure_callback``; chains are evaluated in one call.

    Slow (JAX waits for torch at every leapfrog step), and no second opinion on the density itself.
    """

    def evaluate(theta: Any, x: Any, y: Any, observed: Any, features: Any) -> tuple[numpy.ndarray, numpy.ndarray]:
        points = torch.from_numpy(_doubles(theta))
        dataset = dataset_of(_doubles(x), _doubles(y), observed, features, has_target=model.target != "none")
        values, score = _value_and_score(model, points.reshape(1, -1, points.shape[-1]), dataset)
        return _halves(values.reshape(*points.shape[:-1], 1))[..., 0, :], _halves(score.reshape(points.shape))

    def call(theta: Array, data: Data) -> tuple[Array, Array]:
        shapes = (jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((*theta.shape, 2), jnp.uint32))
        halves = [jax.lax.bitcast_convert_type(a, jnp.uint32) for a in (theta, data.x, data.y)]
        results = jax.pure_callback(evaluate, shapes, *halves, data.observed, data.features, vmap_method="expand_dims")
        value, score = (jax.lax.bitcast_convert_type(result, theta.dtype) for result in results)
        return value, score

    @jax.custom_vjp
    def log_joint(theta: Array, data: Data) -> Array:
        return call(theta, data)[0]

    def backward(score: Array, cotangent: Array) -> tuple[Array, None]:
        return cotangent * score, None

    log_joint.defvjp(call, backward)
    return log_joint


def _value_and_score(model: Model, theta: torch.Tensor, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Log joint (1, S) and its gradient (1, S, P), in double precision."""
    with torch.enable_grad():
        point = theta.detach().requires_grad_()
        values = model.log_joint(point, dataset)
        (score,) = torch.autograd.grad(values.sum(), point)
    return values.detach(), score


# JAX calls back on a thread of its own, where 64 bits are not enabled and doubles would be rounded to singles: they
# travel as two halves.
def _doubles(halves: Any) -> numpy.ndarray:
    return numpy.array(halves, dtype=numpy.uint32, order="C").view(numpy.float64)[..., 0]


def _halves(values: torch.Tensor) -> numpy.ndarray:
    return numpy.ascontiguousarray(values.double().numpy())[..., None].view(numpy.uint32)
