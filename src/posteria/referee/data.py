"""One dataset as JAX sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy
import torch
from jax import Array

from posteria.types import Dataset


class Data(NamedTuple):
    """Arrays of one dataset. A tuple, so that JAX can map over it and trace it.

    Attributes:
        x: (N, D), zero at padding.
        y: (N,), zero where the model has no target.
        observed: (N,) bool, True = a real row.
        features: (D,) bool, True = a real column.
    """

    x: Array
    y: Array
    observed: Array
    features: Array


# (theta (P,), data) -> scalar log joint over the active parameters.
Density = Callable[[Array, Data], Array]


def data_of(dataset: Dataset, index: int) -> Data:
    """One dataset of a batch, in double precision. Call it where JAX has 64 bits enabled."""
    x = dataset.x[index] * dataset.features[index]
    y = torch.zeros(x.shape[0]) if dataset.y is None else dataset.y[index]
    tensors = (x.double(), y.double(), dataset.observed[index], dataset.features[index])
    return Data(*(jnp.asarray(t.detach().cpu().numpy()) for t in tensors))


def dataset_of(x: Any, y: Any, observed: Any, features: Any, has_target: bool) -> Dataset:
    """A batch of one dataset in torch, from arrays that may have leading axes of length one."""
    arrays = [torch.from_numpy(numpy.array(a)) for a in (x, y, observed, features)]
    x, y = arrays[0].reshape(1, *arrays[0].shape[-2:]), arrays[1].reshape(1, -1)
    return Dataset(x, y if has_target else None, arrays[2].reshape(1, -1), arrays[3].reshape(1, -1))


def double_precision() -> Any:
    """A context in which JAX computes in 64 bits; outside it, nothing has changed."""
    return jax.enable_x64(True)
