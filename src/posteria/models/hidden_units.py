"""Draws of networks with one hidden layer, unit by unit, the output weights integrated out.

Given the hidden weights the output weights are normal, so that the evidence of the hidden ones is known. A unit enters
it by one column of the design: with the inverse of the others' precision at hand, any number of other weights for the
unit cost a product each (the matrix determinant lemma, and Sherman and Morrison's). So a unit chooses among many places
at once, near and far, where gradients of all weights together take small steps along narrow ridges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from posteria.curvature import cholesky
from posteria.models.base import Model
from posteria.models.collapsed import CollapsedLogJoint
from posteria.models.log_joint import ModelLogJoint
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
class _Solved:
    """A regression on C designs: what the output weights' posterior and the evidence are made of.

    Attributes:
        factor: (C, H, H) lower Cholesky factor of the weights' precision, of priors with sd one.
        pulled: (C, H) the precision times their mean.
        mean: (C, H).
        evidence: (C,) up to what the design does not change.
    """

    factor: Tensor
    pulled: Tensor
    mean: Tensor
    evidence: Tensor

    @classmethod
    def of(cls, columns: Tensor, target: Tensor, prior_mean: Tensor) -> _Solved:
        """Of columns (C, H, N) for targets (C, N), both in units of the noise."""
        precision = columns @ columns.mT + torch.eye(columns.shape[1], dtype=columns.dtype)
        factor = cholesky(precision)
        pulled = (columns @ target[..., None])[..., 0] + prior_mean
        mean = torch.cholesky_solve(pulled[..., None], factor)[..., 0]
        evidence = 0.5 * (pulled * mean).sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return cls(factor, pulled, mean, evidence)


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

    # A sweep over 32 units takes as long as 15 to 30 gradients of a network, with 100 rows and with 1,000.
    cost = 16

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
        together = max(1, _MOST_NUMBERS // (int(self.outer.sum()) * _PLACES * dataset.x.shape[1]))
        return torch.cat([self._units_moved(dataset, part, inner & ~common, generator) for part in z.split(together)])

    def _units_moved(self, dataset: Dataset, z: Tensor, inner: Tensor, generator: torch.Generator) -> Tensor:
        count = int(self.outer.sum())
        angles, place = _rings(len(z), count, generator)
        # Of every parameter its unit's angle; none for the others.
        each = functional.pad(angles, (0, 1))[..., self.units]
        noise = torch.where(inner, torch.randn(z.shape, dtype=z.dtype, generator=generator), 0.0)
        choices = z[:, None] * each.cos() + noise[:, None] * each.sin()  # (C, K, P)
        columns, target = self._regression(dataset, choices)
        location, scale = self.joint.location[self.outer].double(), self.joint.scale[self.outer].double()
        picked, now, sound = _swept(columns, target, location / scale, place, generator)
        index = functional.pad(picked, (0, 1))[:, self.units]  # zero where there is no unit, whose choices are alike
        moved = choices.gather(1, index[:, None])[:, 0]
        white = torch.randn(len(z), count, 1, dtype=z.dtype, generator=generator)
        weights = now.mean + torch.linalg.solve_triangular(now.factor.mT, white, upper=True)[..., 0] - location / scale
        moved[:, self.outer] = weights
        return torch.where(sound[:, None], moved, z)

    def _regression(self, dataset: Dataset, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Columns (H, C, K, N) of every unit at the choices (C, K, P), and targets (C, N), in units of the noise."""
        scale = self.joint.scale[self.outer].double()[:, None, None, None]
        chains, places = choices.shape[:2]
        columns = choices.new_empty(len(scale), chains, places, dataset.x.shape[1])
        targets, together = [], max(1, _CACHED // columns[:, 0].numel())
        for some, part in zip(choices.split(together), columns.split(together, 1), strict=True):
            theta = self.joint.theta(some).flatten(0, 1)
            design, target, strength = self.model.regression(theta[None], dataset)
            # A chain's choices share what is outside units, and with it the noise.
            root = strength[0, ::places, 0].sqrt()
            torch.mul(design[0].unflatten(0, some.shape[:2]).permute(3, 0, 1, 2), scale * root[:, None], out=part)
            targets.append((target[0, ::places, :, 0] * root).expand(len(some), -1))
        return columns, torch.cat(targets)

    def _common_moved(self, dataset: Dataset, z: Tensor, common: Tensor, generator: torch.Generator) -> Tensor:
        angles, place = _rings(len(z), 1, generator)
        noise = torch.randn(z.shape, dtype=z.dtype, generator=generator)
        choices = torch.where(common, z[:, None] * angles.cos() + noise[:, None] * angles.sin(), z[:, None])
        joint = CollapsedLogJoint(self.model, dataset)
        rest = choices[..., ~self.outer]
        height = joint.density(rest.flatten(0, 1)[None])[0].view(rest.shape[:2]) + 0.5 * rest.square().sum(-1)
        height = height.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        picked = _chosen(height, generator)
        kept = height.gather(1, place)[:, 0].isfinite()
        return torch.where(kept[:, None], choices[torch.arange(len(z)), picked], z)


def _swept(columns: Tensor, target: Tensor, prior_mean: Tensor, place: Tensor, generator: torch.Generator) -> (
        tuple[Tensor, _Solved, Tensor]):
    """Every unit's choice among its columns (H, C, K, N), one unit after the other in an order drawn anew.

    Args:
        place: (C, H) where units are.

    Returns:
        The choices (C, H); the regression on the chosen columns; and (C,) bool, rounding has done no harm.
    """
    chains = torch.arange(columns.shape[1])
    index = place.mT[..., None, None].expand(-1, -1, -1, columns.shape[-1])
    current = columns.gather(2, index)[:, :, 0].transpose(0, 1).contiguous()
    began = _Solved.of(current, target, prior_mean)
    inverse, pulled, gained = torch.cholesky_inverse(began.factor), began.pulled.clone(), began.evidence.clone()
    pulls = (columns @ target[..., None])[..., 0] + prior_mean[:, None, None]  # (H, C, K)
    sizes = torch.einsum("hckn,hckn->hck", columns, columns)
    picked = place.clone()
    for j in torch.randperm(len(columns), generator=generator).tolist():
        column, own = inverse[:, :, j], inverse[:, j, j]
        across = columns[j] @ current.mT  # (C, K, H)
        # Products with the inverse of the other units' precision, in which this unit's row and column are zero.
        solved = across @ inverse - (across @ column[..., None]) * (column / own[:, None])[:, None]
        solved[..., j] = 0.0
        left = 1.0 + sizes[j] - (solved * across).sum(-1)
        height = 0.5 * ((pulls[j] - (solved @ pulled[..., None])[..., 0]).square() / left - left.log())
        chosen = _chosen(height, generator)
        gained += height[chains, chosen] - height[chains, place[:, j]]
        picked[:, j], current[:, j], pulled[:, j] = chosen, columns[j, chains, chosen], pulls[j, chains, chosen]
        row = -solved[chains, chosen]
        row[:, j] = 1.0
        sides = torch.stack([column, row], -1)
        signs = torch.stack([-1.0 / own, 1.0 / left[chains, chosen]], -1)
        inverse = torch.baddbmm(inverse, sides * signs[:, None], sides.mT)
    now = _Solved.of(current, target, prior_mean)
    return picked, now, (now.evidence - gained).abs() < _MOST_ROUNDING


def _rings(chains: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Angles (C, K, H) of points on ellipses, zero at the place (C, H) where the unit is."""
    place = torch.randint(_PLACES, (chains, count), generator=generator)
    most = 2.0 * math.pi / _PLACES
    share = torch.rand(chains, 1, count, dtype=torch.double, generator=generator)
    apart = most * (_LEAST_ANGLE / most)**share
    return (torch.arange(_PLACES)[:, None] - place[:, None]) * apart, place


def _chosen(height: Tensor, generator: torch.Generator) -> Tensor:
    """(C,) indices into log weights (C, K), by Gumbel noise."""
    uniform = torch.rand(height.shape, dtype=height.dtype, generator=generator)
    uniform = uniform.clamp(min=torch.finfo(height.dtype).tiny)
    return (height - (-uniform.log()).log()).argmax(-1)


def _without_padding(dataset: Dataset) -> Dataset:
    """One dataset, its real rows alone."""
    real = dataset.observed[0]
    y = None if dataset.y is None else dataset.y[:, real]
    return Dataset(dataset.x[:, real], y, dataset.observed[:, real], dataset.features)
