"""Draws of networks with one hidden layer, unit by unit, the output weights integrated out.

Given the hidden weights the output weights are normal, so that the evidence of the hidden ones is known. A unit enters
it by one column of the design: with the inverse of the others' precision at hand, any number of other weights for the
unit cost a product each (the matrix determinant lemma, and Sherman and Morrison's). So a unit chooses among many places
at once, near and far, where gradients of all weights together take small steps along narrow ridges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.models.base import Model
from posteria.models.collapsed import CollapsedLogJoint
from posteria.models.log_joint import ModelLogJoint
from posteria.models.unit_columns import Columns, DenseColumns, LineColumns
from posteria.types import Dataset

# Places that a unit chooses among, and the least angle between two of them. The most is that of a whole circle.
_PLACES, _LEAST_ANGLE = 6, 1e-2
# Numbers that stay in a processor's cache, and that chains which go through it together may take in memory.
_CACHED, _MOST_NUMBERS = 2**17, 2**21
# Nats by which the evidence after a sweep may differ from what its steps add up to: rounding was too much beyond.
_MOST_ROUNDING = 1e-3


def unit_moves(model: Model, dataset: Dataset, joint: ModelLogJoint) -> UnitMoves | None:
    """Moves for the posteriors of B datasets; None where units do not enter by a column each.

    Args:
        model: as in ``joint``.
        dataset: the same, in double precision.
        joint: whose whitened parameters z the moves are for.
    """
    if not model.separate_units or not joint.layout.has_normal_prior:
        return None
    units = joint.groups[model.exchangeable_axes[0]]
    outer = model.conjugate(joint.layout)
    if not outer.any() or bool((units[outer] != torch.arange(int(outer.sum()))).any()):
        return None
    return UnitMoves(model, dataset, joint, units, outer)


@dataclass(frozen=True)
class UnitMoves:
    """A Markov kernel that leaves the posterior of every weight as it is; see the module.

    For every unit, a draw of the prior and the unit's weights span an ellipse on which the prior is constant (Murray,
    Adams and MacKay 2010). Of equally spaced points on it, among which the unit's own is equally likely to be any, one
    is chosen by the evidence; their distance is drawn anew for each unit, on a logarithmic scale. Parameters outside
    units, such as an inferred noise, make such a move together. Then output weights are drawn.

    Attributes:
        model, dataset, joint: see :func:`unit_moves`.
        units: (P,) long, the unit of every parameter, or -1.
        outer: (P,) bool, the output weights, one per unit.
    """

    model: Model
    dataset: Dataset
    joint: ModelLogJoint
    units: Tensor
    outer: Tensor

    @property
    def cost(self) -> Tensor:
        """(B,) gradients of a network in whose time a sweep goes over 32 units; with lines it hardly asks for rows."""
        rows = self.dataset.observed.sum(-1)
        middle = self.joint.theta(self.dataset.x.new_zeros(1, 1, self.joint.active.shape[1]))
        lines = [self.model.rectified(middle, self.dataset[torch.tensor([i])]) is not None for i in range(len(rows))]
        return torch.where(torch.tensor(lines), 1.0 + 400.0 / rows.clamp(min=1), 10.0)

    @torch.no_grad()
    def __call__(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """One sweep over all units of every chain z (B, C, P)."""
        return torch.stack([self._of_one(torch.tensor([i]), z[i], generator) for i in range(len(z))])

    def _of_one(self, index: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        dataset = _without_padding(self.dataset[index])
        active = self.joint.active[index[0]]
        inner = active & ~self.outer
        z = torch.where(active, z, 0.0)
        common = inner & (self.units < 0)
        if common.any():
            z = self._common_moved(dataset, z, common, generator)
        return self._units_moved(dataset, z, inner & ~common, generator)

    def _units_moved(self, dataset: Dataset, z: Tensor, inner: Tensor, generator: torch.Generator) -> Tensor:
        count = int(self.outer.sum())
        apart, place = _rings(len(z), count, generator)
        noise = torch.where(inner, torch.randn(z.shape, dtype=z.dtype, generator=generator), 0.0)
        choices = _turned(z, noise, apart, place, torch.where(inner, self.units, -1))
        prior = (self.joint.location / self.joint.scale)[self.outer].double()
        picked, weights, sound = self._swept(dataset, choices, prior, place, generator)
        moved = choices.gather(1, picked[:, None, self.units.clamp(min=0)])[:, 0]  # without a unit they are alike
        moved[:, self.outer] = weights - prior
        return torch.where(sound[:, None], moved, z)

    def _swept(self, dataset: Dataset, choices: Tensor, prior: Tensor, place: Tensor, generator: torch.Generator) -> (
            tuple[Tensor, ...]):
        """See :func:`_swept`; of all chains."""
        parts, first = [], 0
        for columns in self._columns(dataset, choices):
            parts.append(_swept(columns, prior, place[first:first + len(columns)], generator))
            first += len(columns)
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _columns(self, dataset: Dataset, choices: Tensor) -> Iterator[Columns]:
        """Of every unit at the choices (C, K, P), for some chains after the other where that takes much memory."""
        scale, places = self.joint.scale[self.outer].double(), choices.shape[1]
        theta = self.joint.theta(choices).flatten(0, 1)[None]
        lines = self.model.rectified(theta, dataset)
        columns = None if lines is None else LineColumns.of(lines, places, scale)
        if columns is not None:
            yield columns
            return
        together = max(1, _MOST_NUMBERS // (places * len(scale) * dataset.x.shape[1]))
        for part in theta.split(places * together, 1):
            yield self._dense(dataset, part, places, scale)

    def _dense(self, dataset: Dataset, theta: Tensor, places: int, scale: Tensor) -> DenseColumns:
        """Of theta (1, C K, P), of which every K are a chain's."""
        values = theta.new_empty(theta.shape[1] // places, places, len(scale), dataset.x.shape[1])
        targets, together = [], max(1, _CACHED // values[0].numel())
        for part, some in zip(values.split(together), theta.split(places * together, 1), strict=True):
            design, target, strength = self.model.regression(some, dataset)
            # A chain's choices share what is outside units, and with it the noise.
            root = strength[0, ::places, 0].sqrt()
            torch.mul(design[0].mT.unflatten(0, part.shape[:2]), root[..., None, None] * scale[:, None], out=part)
            targets.append((target[0, ::places, :, 0] * root).expand(len(part), -1))
        return DenseColumns(values, torch.cat(targets))

    def _common_moved(self, dataset: Dataset, z: Tensor, common: Tensor, generator: torch.Generator) -> Tensor:
        apart, place = _rings(len(z), 1, generator)
        noise = torch.randn(z.shape, dtype=z.dtype, generator=generator)
        choices = _turned(z, noise, apart, place, torch.where(common, 0, -1))
        joint = CollapsedLogJoint(self.model, dataset)
        rest = choices[..., ~self.outer]
        height = joint.density(rest.flatten(0, 1)[None])[0].view(rest.shape[:2]) + 0.5 * rest.square().sum(-1)
        height = height.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        picked = _chosen(height, generator)
        kept = height.gather(1, place)[:, 0].isfinite()
        return torch.where(kept[:, None], choices[torch.arange(len(z)), picked], z)


def _swept(columns: Columns, prior: Tensor, place: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Every unit's choice among its places, one unit after the other in an order drawn anew.

    Args:
        prior: (H,) means of the output weights' priors, in those' sds.
        place: (C, H) where units are.

    Returns:
        The choices (C, H); a draw of the output weights (C, H) with them, in the prior's sds; and (C,) bool, rounding
        has done no harm.
    """
    from posteria.models.unit_sweeps import Chains
    luck = _gumbel((*place.shape, _PLACES), generator)
    order = torch.randperm(place.shape[1], generator=generator)
    white = torch.randn(place.shape, dtype=torch.double, generator=generator)
    picked, weights, rounding = place.clone(), torch.empty_like(white), torch.empty_like(white[:, 0])
    chains = (luck, place, prior.expand_as(white).contiguous(), white, picked, weights, rounding)
    columns.sweep_all(order, Chains(*(values.numpy() for values in chains)))
    return picked, weights, rounding.abs() < _MOST_ROUNDING


def _rings(chains: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Angles (C, H) from one point on an ellipse to the next, and the places (C, H) where units are."""
    place = torch.randint(_PLACES, (chains, count), generator=generator)
    most = 2.0 * math.pi / _PLACES
    share = torch.rand(chains, count, dtype=torch.double, generator=generator)
    return most * (_LEAST_ANGLE / most)**share, place


def _turned(z: Tensor, noise: Tensor, apart: Tensor, place: Tensor, units: Tensor) -> Tensor:
    """(C, K, P), see :func:`posteria.models.unit_sweeps.turn`."""
    from posteria.models.unit_sweeps import turn
    choices = z.new_empty(len(z), _PLACES, z.shape[1])
    turn(*(values.contiguous().numpy() for values in (z, noise, apart, place, units, choices)))
    return choices


def _chosen(height: Tensor, generator: torch.Generator) -> Tensor:
    """(C,) indices into log weights (C, K)."""
    return (height + _gumbel(height.shape, generator)).argmax(-1)


def _gumbel(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise with which the largest of log weights is a draw from the weights."""
    uniform = torch.rand(shape, dtype=torch.double, generator=generator).clamp(min=torch.finfo(torch.double).tiny)
    return -(-uniform.log()).log()


def _without_padding(dataset: Dataset) -> Dataset:
    """One dataset, its real rows alone."""
    real = dataset.observed[0]
    y = None if dataset.y is None else dataset.y[:, real]
    return Dataset(dataset.x[:, real], y, dataset.observed[:, real], dataset.features)
