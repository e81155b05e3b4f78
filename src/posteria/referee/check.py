"""Do the two log joints of a model, in torch and in JAX, agree?"""

from __future__ import annotations

from typing import Any

import jax
import numpy
import torch
from torch import Tensor

from posteria.models import Model
from posteria.randomness import generator_for, randn
from posteria.referee.data import data_of, double_precision
from posteria.referee.densities import density_of
from posteria.types import Dataset


def check_density(model: Model, dataset: Dataset, num_points: int = 16, seed: int = 0) -> float:
    """The largest difference between the log joints in torch and JAX, both in double precision.

    Constants count too: both are normalised in the same way. Points theta are normal, with the prior's location
    and scale.

    Args:
        model: any model with a likelihood.
        dataset: B datasets; all are compared.
        num_points: points per dataset.
        seed: of the points.

    Returns:
        The largest absolute difference, in nats; about 1e-12 of the log joint where the two agree.

    Examples:
        >>> from posteria.models import LinearRegression
        >>> check_density(LinearRegression(), Dataset.of([[0.5, 1.0], [1.5, -1.0]], [1.0, 2.0])) < 1e-9
        True
    """
    dataset, theta = dataset.double(), _points(model, dataset, num_points, seed)
    with torch.no_grad():
        ours = model.log_joint(theta, dataset)
    return float((ours - _at(density_of(model), theta, dataset)).abs().max())


def check_score(model: Model, dataset: Dataset, num_points: int = 16, seed: int = 0) -> float:
    """As :func:`check_density`, for the gradients in theta: the largest difference over one plus the size of the score.

    Scores are differentiated by torch and by JAX; none of the models' own, written-out scores is used.
    """
    dataset, theta = dataset.double(), _points(model, dataset, num_points, seed).requires_grad_()
    (ours,) = torch.autograd.grad(model.log_joint(theta, dataset).sum(), theta)
    theirs = _at(jax.grad(density_of(model)), theta.detach(), dataset)
    return float(((ours - theirs).abs() / (1.0 + ours.abs())).max())


def _points(model: Model, dataset: Dataset, num_points: int, seed: int) -> Tensor:
    """(B, S, P) in double precision; the prior's location, where optimisers start, comes first."""
    location, scale = (m.double() for m in model.layout_of(dataset).prior_moments)
    noise = randn(len(dataset), num_points, len(location), like=location, generator=generator_for(seed))
    noise[:, 0] = 0.0
    return location + scale * noise


def _at(function: Any, theta: Tensor, dataset: Dataset) -> Tensor:
    """The function's values at all points of all datasets."""
    with double_precision():
        mapped = jax.jit(jax.vmap(function, in_axes=(0, None)))
        values = [numpy.array(mapped(points.numpy(), data_of(dataset, i))) for i, points in enumerate(theta)]
    return torch.from_numpy(numpy.stack(values))
