"""Datasets like the tables people have, after standardisation: correlated, skewed, heavy-tailed and binary columns.

The inputs are drawn anew, y comes from the model, and then x and a real y are standardised. Two things make the
result differ from the model's own prior predictive, both on purpose:

- y is standardised after the simulation, as a user's table is;
- effects are shrunk by a random factor, because under a wide prior on a hundred weights hardly any dataset
  would have the small signal that most real tables have.

Reverse KL never reads the theta that generated a dataset: it fits q to the posterior of the model and its prior
whatever the dataset, so the distribution of datasets decides only where the estimator is practised. No theta is
returned, and forward KL refuses this task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from posteria.errors import InputError
from posteria.models.base import Model
from posteria.randomness import randn
from posteria.tasks.simulated import RowsScale, SimulatedTask, VaryFeatures
from posteria.types import Dataset

_MOST_FACTORS = 8
# Ranges, log-uniform: the strength of a factor, a column's share of variance of its own, and the factor by which
# effects are shrunk.
_STRENGTH = (1e-3, 1.0)
_OWN_SHARE = (1e-3, 1.0)
_SHRINKAGE = (0.03, 1.0)
# Standard deviation of the logarithm of a skewed column; the largest values lie 20 to 40 sd out, as in real tables.
_STRETCH = (0.5, 2.0)


class StandardisedTask(SimulatedTask):
    """Simulated datasets whose x, and y where it is real, look like standardised real tables.

    Args:
        model: what simulates y; without extra columns.
        rows, columns, rows_scale, vary_features: as for :class:`SimulatedTask`.
        most_cells: batches hold fewer datasets than asked for where datasets × rows × columns would exceed this,
            so that no step takes long; at least one.

    Raises:
        InputError: as for :class:`SimulatedTask`; a model of x alone or with extra columns, or one of counts.

    Examples:
        >>> from posteria.models.linear import LinearRegression
        >>> from posteria.randomness import generator_for
        >>> task = StandardisedTask(LinearRegression(noise="inferred"), rows=(50, 50), columns=(3, 3))
        >>> dataset, theta = task.draw(4, generator_for(0))
        >>> dataset.y.mean().abs().item() < 1e-5, theta is None
        (True, True)
    """

    gives_theta = False

    def __init__(self, model: Model, rows: Sequence[int] = (8, 2000), columns: Sequence[int] = (1, 100),
                 rows_scale: RowsScale = "log", vary_features: VaryFeatures = "batch", most_cells: int = 200_000):
        if model.target not in ("real", "class") or model.extra_columns:
            raise InputError.of("model", repr(model.name), "a model of a real or class y, without extra columns")
        if most_cells < 1:
            raise InputError.of("most_cells", repr(most_cells), "1 or more")
        super().__init__(model, rows, columns, rows_scale, vary_features)
        self.most_cells = most_cells

    def draw(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu",
             rows: int | None = None) -> tuple[Dataset, None]:
        """Up to B datasets of one size, and None: see the module on why there is no theta.

        Args:
            num_datasets: B, the most datasets; see ``most_cells``.
            generator, device, rows: as for :meth:`SimulatedTask.draw`.
        """
        rows, features = self.draw_sizes(num_datasets, generator, device, rows)
        columns = features.shape[-1]
        features = features[:max(1, self.most_cells // (rows * columns))]
        x = draw_table_inputs(len(features), rows, columns, generator, device) * features[:, None]
        observed = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        dataset = self.model.simulate(self._theta(features, generator), Dataset(x, None, observed, features), generator)
        if self.model.target == "real" and dataset.y is not None:
            dataset = replace(dataset, y=_standardised(dataset.y, 1))
        return dataset, None

    def _theta(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """(B, P) prior draws, those parameters that can have either sign shrunk by a factor of the dataset."""
        layout = self.model.layout(features.shape[-1])
        theta = layout.sample_prior((len(features),), generator, features.device)
        factor = _log_uniform(_SHRINKAGE, (len(features), 1), generator, features.device)
        for block in layout.blocks:
            if type(block.parameter.support) is type(constraints.real):
                theta[:, block.span] *= factor
        return theta

    def masked(self) -> StandardisedTask:
        """The same task at the most columns, with masks: for estimators of one size."""
        return StandardisedTask(self.model, self.rows, self.columns, self.rows_scale, "dataset", self.most_cells)

    def options(self) -> dict[str, Any]:
        """Keyword arguments (JSON values) that build this task again, the model apart."""
        return {**super().options(), "most_cells": self.most_cells}


def draw_table_inputs(num_datasets: int, rows: int, columns: int, generator: torch.Generator,
                      device: torch.device | str = "cpu") -> Tensor:
    """(B, N, D) columns of mixed kinds that share a few random factors.

    A fifth of the columns are 0 or 1, as labels are encoded; the others have zero mean and unit variance (constant
    ones are zero).
    """
    latent = _correlated(num_datasets, rows, columns, generator, device)
    kind = torch.randint(len(_MARGINALS), (num_datasets, 1, columns), generator=generator, device=device)
    stretch = _log_uniform(_STRETCH, (num_datasets, 1, columns), generator, device)
    cut = randn(num_datasets, 1, columns, like=latent, generator=generator)
    x = torch.zeros_like(latent)
    for place, (marginal, scaled) in enumerate(_MARGINALS):
        values = marginal(latent, stretch, cut)
        x = torch.where(kind == place, _standardised(values, 1) if scaled else values, x)
    return x


def _correlated(num_datasets: int, rows: int, columns: int, generator: torch.Generator,
                device: torch.device | str) -> Tensor:
    """(B, N, D) standard normal columns: a few common factors and a part of their own."""
    like = torch.zeros((), device=device)
    loadings = randn(num_datasets, columns, _MOST_FACTORS, like=like, generator=generator)
    # Uneven factors: some datasets are nearly one-dimensional.
    strength = _log_uniform(_STRENGTH, (num_datasets, 1, _MOST_FACTORS), generator, device)
    loadings = torch.nn.functional.normalize(loadings * strength, dim=-1)
    own = _log_uniform(_OWN_SHARE, (num_datasets, 1, columns), generator, device)
    common = randn(num_datasets, rows, _MOST_FACTORS, like=like, generator=generator) @ loadings.mT
    return (1 - own).sqrt() * common + own.sqrt() * randn(num_datasets, rows, columns, like=like, generator=generator)


Marginal = Callable[[Tensor, Tensor, Tensor], Tensor]
# (latent, stretch, cut) -> column, and whether it is standardised.
_MARGINALS: tuple[tuple[Marginal, bool], ...] = (
    (lambda z, stretch, cut: z, True),
    (lambda z, stretch, cut: torch.exp(stretch * z), True),  # skewed
    (lambda z, stretch, cut: torch.sinh(stretch * z), True),  # heavy tails
    (lambda z, stretch, cut: torch.exp(stretch * z).floor(), True),  # counts, often zero
    (lambda z, stretch, cut: (z > cut).to(z.dtype), False),  # labels
)


def _standardised(values: Tensor, dim: int) -> Tensor:
    """Zero mean and unit variance along ``dim``; zero where constant."""
    centred = values - values.mean(dim, keepdim=True)
    sd = centred.square().mean(dim, keepdim=True).sqrt()
    return torch.where(sd > 1e-6, centred / sd.clamp(min=1e-6), 0.0)


def _log_uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator,
                 device: torch.device | str) -> Tensor:
    low, high = (math.log(bound) for bound in bounds)
    return torch.exp(low + (high - low) * torch.rand(shape, generator=generator, device=device))
