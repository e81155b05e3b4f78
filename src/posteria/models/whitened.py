"""A model in parameters in which its priors are normal: where data say little, its posterior is then normal too.

Encoders, densities and the trust ladder work around Gaussians. A Laplace or Student-t prior with few observations
leaves posteriors with the prior's kinks and tails, which no Gaussian has; in u with theta(u), u ~ N(0, 1), they are
gone, whatever the likelihood. What users see stays theta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from posteria.models.base import Expectation, Model, Spread
from posteria.models.parameters import Layout, Parameter, layout_of_one_entry
from posteria.models.quantiles import QuantileMap
from posteria.models.rectified import Rectified
from posteria.types import Dataset, Geometry

_NODES = 24
# Where priors are asked whether their log density is concave, and the share of the score's range by which it may rise.
_LOOKED_AT, _POINTS, _MOST_RISE = 4.0, 401, 0.05
# The likelihood may take this much of a normal prior's curvature, so that precisions stay positive.
_MOST_BENT = 0.25
_Slopes = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def whitened(model: Model) -> Model:
    """The model in parameters u with normal priors; itself where there is nothing to change.

    Changed are parameters whose priors are neither normal in theta nor over several entries at once.
    """
    if model.in_normal_units is None:
        maps = {p.name: known for p in model.parameters if (known := _map_of(p)) is not None}
        model.in_normal_units = Whitened(model, maps) if maps and model.has_likelihood else model
    return model.in_normal_units


def prior_is_log_concave(model: Model) -> bool:
    """No prior that :func:`whitened` changes has heavy tails, as Student's t has; what it leaves alone is not asked."""
    own = whitened(model)
    return not isinstance(own, Whitened) or all(_falls(known) for known in own.maps.values())


def _falls(known: QuantileMap) -> bool:
    """The score of a map's prior, in theta, falls all the way as far as most of its draws go."""
    u = torch.linspace(-_LOOKED_AT, _LOOKED_AT, _POINTS, dtype=torch.double)
    _, slope, bend = known.slopes(u)
    score = -(u + bend / slope) / slope
    return float(score.diff().clamp(min=0.0).sum()) <= _MOST_RISE * float(score.max() - score.min())


def _map_of(parameter: Parameter) -> QuantileMap | None:
    """theta(u) of a parameter's entries; None where theta is u already, or no such map was found."""
    if parameter.event_dim:
        return None
    alone = layout_of_one_entry(parameter)
    if alone.has_normal_prior:
        return None
    location, scale = (float(moment) for moment in alone.prior_moments)
    if type(parameter.support) is type(constraints.real):
        # A kink lies at a location parameter, which moments of draws know only roughly.
        location = float(getattr(parameter.prior, "loc", location))
    return QuantileMap.of(lambda theta: alone.log_prior(theta[:, None]), location, scale)


class Whitened(Model):
    """The likelihood of a model as a function of u; see :func:`whitened`, which makes it.

    Everything in theta that the model knows is carried over by the chain rule. Averages over a normal u, where the
    model has those over a normal theta, take the outputs as normal with the mean and the covariance that they have.

    Args:
        model: with a likelihood.
        maps: per name of a parameter, theta(u).
    """

    def __init__(self, model: Model, maps: dict[str, QuantileMap]):
        parameters = tuple(Parameter(p.name, p.shape) if p.name in maps else p for p in model.parameters)
        super().__init__(parameters, model.axes)
        self.model, self.maps = model, maps
        self.target, self.extra_columns, self.num_classes = model.target, model.extra_columns, model.num_classes
        self.exchangeable_axes, self.hyperparameters = model.exchangeable_axes, model.hyperparameters
        self.independent_axis, self.separate_entries = model.independent_axis, model.separate_entries
        self.separate_units = model.separate_units
        # A map bends the likelihood as a function of u.
        self.normal_given_hyperparameters = (model.normal_given_hyperparameters
                                             and set(maps) <= set(model.hyperparameters))
        self.curvature_is_positive_with_prior = model.curvature_is_positive_with_prior
        self.in_normal_units = self

    # -- theta and u ----------------------------------------------------------------------------
    def theta(self, u: Tensor, dataset: Dataset) -> Tensor:
        """theta (..., P) at u (..., P)."""
        return self._blockwise(u, dataset, QuantileMap.value)

    def units(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """u (..., P) at theta (..., P)."""
        return self._blockwise(theta, dataset, QuantileMap.inverse)

    def log_slopes(self, u: Tensor, dataset: Dataset) -> Tensor:
        """(..., P) log dtheta/du at u (..., P)."""
        return self._blockwise(u, dataset, QuantileMap.log_slope, torch.zeros_like)

    def _blockwise(self, values: Tensor, dataset: Dataset, change: Callable[[QuantileMap, Tensor], Tensor],
                   plain: Callable[[Tensor], Tensor] = lambda part: part) -> Tensor:
        """A change of every block that has a map; ``plain`` of the others."""
        parts = []
        for block in self.layout_of(dataset).blocks:
            part, known = values[..., block.span], self.maps.get(block.name)
            parts.append(plain(part) if known is None else change(known, part))
        return torch.cat(parts, -1)

    def _slopes(self, u: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        """theta and its first two derivatives, (..., P) each."""
        found = []
        for block in self.layout_of(dataset).blocks:
            part = u[..., block.span]
            known = self.maps.get(block.name)
            found.append((part, torch.ones_like(part), torch.zeros_like(part)) if known is None else known.slopes(part))
        theta, slope, bend = (torch.cat(part, -1) for part in zip(*found, strict=True))
        return theta, slope, bend

    # -- the log joint --------------------------------------------------------------------------
    def log_prior(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """That of the model, changed exactly: the normal priors leave out the maps' rounding."""
        volume = torch.where(self.active(dataset)[:, None], self.log_slopes(theta, dataset), 0.0).sum(-1)
        return self.model.log_prior(self.theta(theta, dataset), dataset) + volume

    def row_log_prob(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return self.model.row_log_prob(self.theta(theta, dataset), dataset)

    def log_likelihood(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return self.model.log_likelihood(self.theta(theta, dataset), dataset)

    def likelihood_score(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        value, slope, _ = self._slopes(theta, dataset)
        log_likelihood, score = self.model.likelihood_score(value, dataset)
        return log_likelihood, score * slope

    def likelihood_gradient(self, theta: Tensor, dataset: Dataset) -> Tensor:
        value, slope, _ = self._slopes(theta, dataset)
        return self.model.likelihood_gradient(value, dataset) * slope

    def likelihood_geometry(self, theta: Tensor, dataset: Dataset) -> Geometry:
        value, slope, bend = self._slopes(theta, dataset)
        found = self.model.likelihood_geometry(value, dataset)
        curvature = (found.curvature * slope.square()).detach() + _own(found.score, bend)
        return Geometry(found.log_density, found.score * slope, curvature)

    def likelihood_precision(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return torch.stack([self._precision_at(point, dataset) for point in theta.detach().split(1, 1)]).mean(0)

    def _precision_at(self, point: Tensor, dataset: Dataset) -> Tensor:
        """(B, P, P) at one point (B, 1, P) each."""
        theta, slope, bend = self._slopes(point, dataset)
        score = self.model.likelihood_score(theta, dataset)[1].detach()
        precision = self.model.likelihood_precision(theta, dataset)
        return precision * slope * slope.mT + torch.diag_embed(_own(score, bend)[:, 0])

    def likelihood_rows(self, theta: Tensor, dataset: Dataset) -> Tensor | None:
        value, slope, _ = self._slopes(theta, dataset)
        rows = self.model.likelihood_rows(value, dataset)
        return None if rows is None else rows * slope.mean(1, keepdim=True)

    def likelihood_blocks(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None:
        value, slope, bend = self._slopes(theta, dataset)
        found = self.model.likelihood_blocks(value, dataset)
        if found is None:
            return None
        score, (common, cross, own) = found
        places = self.block_places(dataset)
        outer, inner = slope[..., places[0]], slope[..., places[1]][..., None]
        extra = _own(score, bend)
        common = common * outer[..., None] * outer[..., None, :] + torch.diag_embed(extra[..., places[0]])
        own = own * inner * inner.mT + torch.diag_embed(extra[..., places[1]])
        return score * slope, (common, cross * inner * outer[:, :, None, None], own)

    def likelihood_by_entry(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return self.model.likelihood_by_entry(self.theta(theta, dataset), dataset)

    def block_places(self, dataset: Dataset) -> tuple[Tensor, Tensor]:
        """Places of the parameters off the independent axis (K,), and of each of its entries' (G, E)."""
        layout = self.layout_of(dataset)
        rest = torch.ones(layout.size, dtype=torch.bool)
        for name in self.hyperparameters:
            rest[layout[name].span] = False
        entries = layout.groups[self.independent_axis]
        own = [(rest & (entries == entry)).nonzero()[:, 0] for entry in range(self.axes[self.independent_axis])]
        return (rest & (entries < 0)).nonzero()[:, 0], torch.stack(own)

    @torch.no_grad()
    def likelihood_expectation(self, theta: Tensor, spread: Spread, dataset: Dataset) -> Expectation | None:
        """Exact gradients of the average over outputs that are normal with their own mean and covariance.

        For u ~ N(m, S): means a_j = E theta_j, and cov(theta_j, theta_k) = b_j S_jk b_k with b_j = E theta_j' (to first
        order in S_jk, by Stein's identity), but for j = k, where the variance is larger.
        """
        eye = torch.eye(theta.shape[-1]).to(theta).expand(len(theta), -1, -1)
        root = spread(eye)  # (B, P, R) with root rootᵀ = S
        sd = root.square().sum(-1).sqrt()
        moments = _Moments.of(lambda u: self._slopes(u, dataset), theta, sd)
        more = (moments.variance - (moments.slope * sd).square()).clamp(min=0.0).sqrt()

        def wider(rows: Tensor) -> Tensor:
            return torch.cat([spread(rows * moments.slope[:, None]), rows * more[:, None]], -1)

        found = self.model.likelihood_expectation(moments.mean, wider, dataset)
        if found is None:
            return None
        rows = found.rows
        size = rows.square().sum(1)
        along = rows.mT @ spread(rows * moments.slope[:, None])  # (B, P, R): of the rows' curvature, times b S
        others = (along * root).sum(-1) - size * moments.slope * sd.square()
        score = moments.slope * found.score - moments.bend * others - size * moments.drift
        bent = size * (moments.growth - moments.slope.square()) + moments.twist * others - moments.bend * found.score
        return Expectation(score, rows * moments.slope[:, None], bent.clamp(min=-_MOST_BENT))

    # -- the rest -------------------------------------------------------------------------------
    def conjugate(self, layout: Layout) -> Tensor:
        return self.model.conjugate(self.model.layout(layout.num_features + len(self.extra_columns)))

    def conditional(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        return self.model.conditional(self.theta(theta, dataset), dataset)

    def regression(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        return self.model.regression(self.theta(theta, dataset), dataset)

    def rectified(self, theta: Tensor, dataset: Dataset) -> Rectified | None:
        return self.model.rectified(self.theta(theta, dataset), dataset)

    def draw_inputs(self, num_datasets: int, rows: int, columns: int, generator: torch.Generator | None,
                    device: torch.device | str = "cpu") -> Tensor:
        return self.model.draw_inputs(num_datasets, rows, columns, generator, device)

    def simulate(self, theta: Tensor, inputs: Dataset, generator: torch.Generator | None = None) -> Dataset:
        return self.model.simulate(self.theta(theta[:, None], inputs)[:, 0], inputs, generator)

    def predict(self, theta: Tensor, dataset: Dataset) -> Distribution:
        return self.model.predict(self.theta(theta, dataset), dataset)

    def check(self, dataset: Dataset) -> None:
        self.model.check(dataset)


@dataclass(frozen=True)
class _Moments:
    """Of theta(u) for u ~ N(m, s²), entry by entry, (B, P) each.

    Attributes:
        mean, variance: of theta.
        slope, bend, twist: means of theta's first, second and third derivative.
        drift: half the variance's derivative in m.
        growth: E[theta'² + (theta - mean) theta''], the variance's derivative in s².
    """

    mean: Tensor
    variance: Tensor
    slope: Tensor
    bend: Tensor
    twist: Tensor
    drift: Tensor
    growth: Tensor

    @classmethod
    def of(cls, slopes: _Slopes, centre: Tensor, sd: Tensor) -> _Moments:
        """By Gauss-Hermite quadrature; the third derivative by Stein's identity."""
        nodes, weights = (part.to(centre) for part in _nodes())
        theta, first, second = slopes(centre[:, None] + sd[:, None] * nodes[:, None])

        def average(values: Tensor) -> Tensor:
            return torch.einsum("bqp,q->bp", values, weights)

        mean = average(theta)
        away = theta - mean[:, None]
        return cls(mean, average(away.square()), average(first), average(second),
                   average(second * nodes[:, None]) / sd.clamp(min=1e-6), average(away * first),
                   average(first.square() + away * second))


def _own(score: Tensor, bend: Tensor) -> Tensor:
    """Curvature of the likelihood that comes from that of theta(u), no gradient."""
    return (-score * bend).detach().clamp(min=-_MOST_BENT)


@lru_cache(maxsize=1)
def _nodes() -> tuple[Tensor, Tensor]:
    """Nodes and weights for averages over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
