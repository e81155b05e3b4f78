"""The log joint of a model and datasets in prior-whitened parameters: all that an encoder sees of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from posteria.curvature import DenseCurvature, DiagonalCurvature, RowCurvature, positive
from posteria.errors import UnsupportedError
from posteria.models.base import Model
from posteria.types import Curvature, Dataset, Geometry

# Whitened scores and curvatures larger than this say nothing more, and would overflow in float32.
_LARGEST = 1e12
# Where rows and parameters are both more than this, a solve costs more than it gives.
_LARGEST_SOLVE = 2048
# Priors that are not log-concave still pull this much, so that precisions stay positive.
_LEAST_PRIOR_CURVATURE = 0.05
_DIFFERENCE = 1e-4


class ModelLogJoint:
    """Implements :class:`posteria.types.LogJoint` for any model.

    theta = location + scale * z with the prior's location and scale, so that for normal priors z ~ N(0, I).
    """

    def __init__(self, model: Model, dataset: Dataset):
        self.model, self.dataset = model, dataset
        self.layout = model.layout_of(dataset)
        location, scale = self.layout.prior_moments
        self.location, self.scale = location.to(dataset.device), scale.to(dataset.device)
        self.active = model.active(dataset)
        self._last_prior: tuple[Tensor, Geometry] | None = None
        self.roles = self.layout.roles.to(dataset.device)
        self.groups: Mapping[str, Tensor] = {k: v.to(dataset.device) for k, v in self.layout.groups.items()}

    def __getitem__(self, index: Tensor) -> ModelLogJoint:
        return type(self)(self.model, self.dataset[index])

    def theta(self, z: Tensor) -> Tensor:
        return self.location + self.scale * z

    @torch.no_grad()
    def score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self._require_likelihood()
        log_likelihood, score = self.model.likelihood_score(self.theta(z), self.dataset)
        prior = self._prior(z)
        return log_likelihood + prior.log_density, self._bounded(score * self.scale + prior.score)

    @torch.no_grad()
    def gradient(self, z: Tensor) -> Tensor:
        """(B, C, P) that of :meth:`score` at z (B, C, P), without the density."""
        self._require_likelihood()
        prior = -z if self.layout.has_normal_prior else self._prior_at(z).score
        return self._bounded(self.model.likelihood_gradient(self.theta(z), self.dataset) * self.scale + prior)

    def steer(self, z: Tensor) -> Tensor:
        """:meth:`gradient` in the precision of the data, at and for z of any other."""
        return self.gradient(z.to(self.dataset.x.dtype)).to(z)

    @torch.no_grad()
    def geometry(self, z: Tensor) -> Geometry:
        self._require_likelihood()
        likelihood = self.model.likelihood_geometry(self.theta(z), self.dataset)
        prior = self._prior(z)
        curvature = likelihood.curvature * self.scale**2 + prior.curvature
        curvature = torch.where(self.active[:, None], curvature, 1.0).nan_to_num(1.0, _LARGEST, 1.0)
        return Geometry(likelihood.log_density + prior.log_density,
                        self._bounded(likelihood.score * self.scale + prior.score), curvature.clamp(1e-3, _LARGEST))

    @torch.no_grad()
    def curvature(self, z: Tensor, dense_up_to: int) -> Curvature:
        self._require_likelihood()
        if z.shape[-1] <= dense_up_to:
            return DenseCurvature(self._dense(z))
        rows = self.model.likelihood_rows(self.theta(z), self.dataset)
        if rows is None or min(rows.shape[1:]) > _LARGEST_SOLVE:
            return DiagonalCurvature(self.geometry(z).curvature.mean(1))
        prior = torch.where(self.active, self._prior(z).curvature.mean(1), 1.0)
        return RowCurvature(torch.where(self.active[:, None], rows * self.scale, 0.0), prior)

    @torch.no_grad()
    def expectation(self, z: Tensor, spread: Tensor, factor: Tensor | None, dense_up_to: int) -> (
            tuple[Tensor, Curvature] | None):
        def widths(rows: Tensor) -> Tensor:
            rows = rows * self.scale
            if factor is None:
                return rows * spread[:, None]
            return torch.linalg.solve_triangular(factor, rows.mT, upper=False).mT

        averages = self.model.likelihood_expectation(self.theta(z), widths, self.dataset)
        if averages is None:
            return None
        prior = self._prior(z[:, None])
        score = self._bounded((averages.score * self.scale + prior.score[:, 0])[:, None])[:, 0]
        rows = torch.where(self.active[:, None], averages.rows * self.scale, 0.0)
        rows = rows.nan_to_num(0.0).clamp(-_LARGEST**0.5, _LARGEST**0.5)
        pull = prior.curvature[:, 0]
        if averages.diagonal is not None:
            pull = (pull + averages.diagonal * self.scale.square()).clamp(_LEAST_PRIOR_CURVATURE, _LARGEST)
        own = RowCurvature(rows, torch.where(self.active, pull.nan_to_num(1.0), 1.0))
        return score, DenseCurvature(own.dense()) if z.shape[-1] <= dense_up_to else own

    def _dense(self, z: Tensor) -> Tensor:
        """(B, P, P) likelihood and prior, averaged over the points."""
        likelihood = self.model.likelihood_precision(self.theta(z), self.dataset)
        likelihood = (likelihood * self.scale * self.scale[:, None]).nan_to_num(0.0, _LARGEST, -_LARGEST)
        prior = self._prior(z).curvature.mean(1)
        both = self.active[:, :, None] & self.active[:, None, :]
        precision = torch.where(both, likelihood, 0.0) + torch.diag_embed(torch.where(self.active, prior, 1.0))
        return precision if self.model.curvature_is_positive_with_prior else positive(precision)

    def fixed_noise(self, num: int, seed: int) -> Tensor:
        return self.layout.fixed_noise(num, seed).to(self.scale)

    def _bounded(self, score: Tensor) -> Tensor:
        score = torch.where(self.active[:, None], score, 0.0)
        return score.nan_to_num(0.0, _LARGEST, -_LARGEST).clamp(-_LARGEST, _LARGEST)

    def _prior(self, z: Tensor) -> Geometry:
        """Prior density, score and curvature in z (B, C, P): written out where normal, else by differences."""
        if self._last_prior is None or not torch.equal(self._last_prior[0], z):  # a climb asks twice per point
            self._last_prior = z, self._prior_at(z)
        return self._last_prior[1]

    def _prior_at(self, z: Tensor) -> Geometry:
        plain = self.layout.normal.to(z.device)
        inside = self.active[:, None] & plain
        log_density = -0.5 * torch.where(inside, z**2, 0.0).sum(-1)
        if self.layout.has_normal_prior:
            return Geometry(log_density, -z, torch.ones_like(z))
        other, score, curvature = self._other_prior(z, self.active[:, None] & ~plain)
        score, curvature = torch.where(plain, -z, score), torch.where(plain, 1.0, curvature)
        return Geometry(log_density + other, score, curvature)

    def _other_prior(self, z: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Density (B, C), score and curvature (B, C, P) of the blocks whose prior is not normal.

        Central differences in double precision, all parameters at once: exact enough for a search (errors near 1e-8),
        at a fraction of the cost of differentiating twice. Entrywise priors have a diagonal Hessian.
        """
        centre, places = self.theta(z).double(), self.layout.event_places.to(z.device)
        first = torch.arange(len(places), device=z.device) - places  # where an event's density is booked
        steps = _DIFFERENCE * self.scale.double() * torch.tensor([-1.0, 0.0, 1.0]).to(centre).view(3, 1, 1, 1)
        score, curvature, here = torch.zeros_like(z), torch.zeros_like(z), z
        for place in range(self.layout.longest_event):
            moved = places == place
            below, here, above = self.layout.log_prior_terms(centre + steps * moved, True).unbind()
            score = torch.where(moved, ((above - below) / (2 * _DIFFERENCE))[..., first].to(z), score)
            curvature = torch.where(moved, ((2 * here - above - below) / _DIFFERENCE**2)[..., first].to(z), curvature)
        density = torch.where(counted, here, 0.0).sum(-1).to(z)
        return density, torch.where(counted, score, 0.0), curvature.clamp(min=_LEAST_PRIOR_CURVATURE)

    def _require_likelihood(self) -> None:
        if not self.model.has_likelihood:
            raise UnsupportedError(
                f"encoder: iterative needs a likelihood, and {self.model.name!r} can only be simulated; "
                "takes transformer, deepsets or gru"
            )
