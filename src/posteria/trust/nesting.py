"""Models that declare hyperparameters, as the refinement room sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from posteria.models.base import Model
from posteria.models.log_joint import ModelLogJoint
from posteria.models.parameters import Layout
from posteria.refinement.arrow import Arrow
from posteria.refinement.problem import Nesting
from posteria.refinement.units import NormalUnits
from posteria.types import Dataset

_NODES = 12
_KNOTS, _FURTHEST_KNOT = 4001, 40.0
# Priors that are not log-concave still pull this much, so that precisions stay positive.
_LEAST_PRIOR_CURVATURE = 0.05
_LARGEST = 1e12


def nesting_of(model: Model, dataset: Dataset, joint: ModelLogJoint) -> Nesting | None:
    """What a model declares; None where it declares nothing, or where priors couple the other parameters."""
    if not model.hyperparameters or model.exchangeable_axes:
        return None
    axis = model.independent_axis
    places = _places(joint.layout, model.hyperparameters, axis, model.axes.get(axis, 0))
    if places is None:
        return None
    view = _View(model, dataset, joint, places.common, places.own)
    exact = model.normal_given_hyperparameters and not places.smooth
    return Nesting(places.hyper, places.units, places.common, places.own, view.likelihood, view.prior,
                   view.entries if model.separate_entries and not exact else None, places.smooth, exact)


@dataclass(frozen=True)
class _Places:
    """What is the same for all datasets; see :class:`posteria.refinement.problem.Nesting`."""

    hyper: Tensor
    units: NormalUnits
    common: Tensor
    own: Tensor
    smooth: bool


@lru_cache(maxsize=16)
def _places(layout: Layout, names: tuple[str, ...], axis: str, count: int) -> _Places | None:
    hyper = torch.cat([torch.arange(layout.size)[layout[name].span] for name in names])
    rest = torch.ones(layout.size, dtype=torch.bool)
    rest[hyper] = False
    if not rest.any() or (layout.event_places[rest] > 0).any():
        return None
    entries = layout.groups[axis] if axis else torch.full((layout.size,), -1)
    own = [(rest & (entries == entry)).nonzero()[:, 0] for entry in range(count)]
    own = torch.stack(own) if own else torch.empty(0, 1, dtype=torch.long)
    common = (rest & (entries < 0)).nonzero()[:, 0]
    return _Places(hyper, _units(layout, hyper), common, own, not bool(layout.normal[rest].all()))


def _units(layout: Layout, hyper: Tensor) -> NormalUnits:
    knots = torch.linspace(-_FURTHEST_KNOT, _FURTHEST_KNOT, _KNOTS, dtype=torch.double)
    location, scale = layout.prior_moments
    terms = layout.log_prior_terms(location.double() + scale.double() * knots[:, None])[:, hyper].T
    # A density of several entries at once has no units of each: they stay as they are.
    plain = layout.normal[hyper] | (layout.event_places[hyper] > 0)
    return NormalUnits.of(knots, torch.where(plain[:, None], -0.5 * knots.square(), terms))


@dataclass(frozen=True)
class _View:
    """The two factors of a log joint, for the parameters that are no hyperparameters."""

    model: Model
    dataset: Dataset
    joint: ModelLogJoint
    common: Tensor
    own: Tensor

    @property
    def rest(self) -> Tensor:
        return torch.cat([self.common, self.own.flatten()])

    @torch.no_grad()
    def likelihood(self, z: Tensor) -> tuple[Tensor, Arrow]:
        """Score (B, S, R) and curvature at z (B, S, P)."""
        theta = self.joint.theta(z)
        found = self.model.likelihood_blocks(theta, self.dataset)
        if found is None:
            score, curvature = self.model.likelihood_score(theta, self.dataset)[1], self._dense(theta)
        else:
            score, curvature = found[0], self._scaled(*found[1])
        return (score * self.joint.scale).nan_to_num(0.0, _LARGEST, -_LARGEST)[..., self.rest], curvature

    @torch.no_grad()
    def entries(self, z: Tensor) -> Tensor:
        """(B, S, G) log likelihood of each entry's rows, and log prior of its own parameters."""
        theta, layout = self.joint.theta(z), self.joint.layout
        terms = -0.5 * z.square() if layout.has_normal_prior else layout.log_prior_terms(theta)
        terms = torch.where(self.joint.active[:, None], terms, 0.0)
        return self.model.likelihood_by_entry(theta, self.dataset) + terms[..., self.own].sum(-1)

    def _scaled(self, common: Tensor, cross: Tensor, own: Tensor) -> Arrow:
        """Blocks in theta as blocks in z."""
        outer, inner = self.joint.scale[self.common], self.joint.scale[self.own][..., None]
        blocks = (common * outer * outer[:, None], cross * inner * outer, own * inner * inner.mT)
        return Arrow(*(block.nan_to_num(0.0, _LARGEST, -_LARGEST) for block in blocks))

    def _dense(self, theta: Tensor) -> Arrow:
        """One dense block, from a matrix per point."""
        batch, draws, size = theta.shape
        many = self.dataset[torch.arange(batch).repeat_interleave(draws)]
        precision = self.model.likelihood_precision(theta.reshape(-1, 1, size), many).unflatten(0, (batch, draws))
        both = (self.joint.active[:, :, None] & self.joint.active[:, None])[:, None]
        precision = torch.where(both, precision, 0.0)[..., self.common, :][..., self.common]
        return self._scaled(precision, precision.new_zeros(batch, draws, 0, 1, len(self.common)),
                            precision.new_zeros(batch, draws, 0, 1, 1))

    @torch.no_grad()
    def prior(self, z: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Score and curvature (B, S, R) of the log prior, averaged over normals of standard deviation ``spread``.

        By Stein's identities E f' = E[f e] / s and E f'' = E[f (e² - 1)] / s², with f at Gauss-Hermite nodes e.
        """
        plain = self.joint.layout.normal[self.rest]
        score, curvature = -z[..., self.rest], torch.ones_like(spread)
        if plain.all():
            return score, curvature
        nodes, weights = _nodes()
        moved = z + nodes.view(-1, 1, 1, 1) * torch.zeros_like(z).index_copy(-1, self.rest, spread)
        terms = self.joint.layout.log_prior_terms(self.joint.theta(moved), True)[..., self.rest]
        first = torch.einsum("q,q...->...", weights * nodes, terms)
        second = torch.einsum("q,q...->...", weights * (nodes.square() - 1.0), terms)
        bend = (-second / spread.square()).clamp(min=_LEAST_PRIOR_CURVATURE)
        return torch.where(plain, score, first / spread), torch.where(plain, curvature, bend)


@lru_cache(maxsize=1)
def _nodes() -> tuple[Tensor, Tensor]:
    """Nodes and weights for averages over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
