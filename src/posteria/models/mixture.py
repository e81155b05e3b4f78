"""Gaussian mixture: the means are inferred; weights and covariances are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

from posteria.errors import InputError
from posteria.models.base import Model, Target
from posteria.models.covariance import KnownCovariance, Marginal, Option
from posteria.models.parameters import FEATURES, Parameter
from posteria.randomness import randn
from posteria.types import Dataset, Geometry


class _Fit(NamedTuple):
    """The mixture at some thetas."""

    marginals: list[Marginal]  # one per component
    means: Tensor  # (B, S, K, D)
    parts: list[Tensor]  # per component (B, S, N) log weight + log density
    row_log_prob: Tensor  # (B, S, N)

    def responsibilities(self, observed: Tensor) -> Tensor:
        """(B, S, N, K) probability that a row belongs to a component; zero at padded rows."""
        shares = torch.stack([(part - self.row_log_prob).exp() for part in self.parts], -1)
        return torch.where(observed[:, None, :, None], shares, 0.0)


class GaussianMixture(Model):
    """x ~ sum_k weights_k N(means_k, covariance_k), entries of the means N(0, 1) by default.

    The curvature is that of the complete data (every row split by its responsibilities, as in EM;
    Dempster, Laird & Rubin 1977): positive, and an upper bound of the observed information.

    Args:
        components: number of components K, 2 or more.
        weights: K known weights that sum to one; None for equal ones.
        covariance: known and shared: None for the identity, a variance, a list of variances, or a full matrix.
        covariances: instead of ``covariance``, one such option per component.
        priors: distributions per parameter name, in place of the defaults.

    Examples:
        >>> GaussianMixture(components=2).layout(1).scalar_names
        ('means[0,0]', 'means[1,0]')
    """

    name = "gaussian_mixture"
    target: Target = "none"
    curvature_is_positive_with_prior = True

    def __init__(self, components: int = 2, weights: Sequence[float] | None = None, covariance: Option = None,
                 covariances: Sequence[Option] | None = None, priors: Mapping[str, Distribution] | None = None):
        if not isinstance(components, int) or components < 2:
            raise InputError.of("components", repr(components), "2 or more")
        if covariances is not None and (covariance is not None or len(covariances) != components):
            raise InputError.of("covariances", repr(covariances), f"{components} of them, and then no covariance")
        self.components, self.weights = components, _checked_weights(weights, components)
        self._equal_weights = weights is None or len(set(weights)) == 1
        each = [covariance] if covariances is None else covariances
        self.covariances = [KnownCovariance(option) for option in each]
        if self._equal_weights and covariances is None:
            self.exchangeable_axes = ("components",)
        parameters = (Parameter("means", ("components", FEATURES)),)
        super().__init__(parameters, {"components": components}, priors)

    def _marginals(self, dataset: Dataset) -> list[Marginal]:
        marginals = [covariance.marginal(dataset) for covariance in self.covariances]
        return marginals * (self.components // len(marginals))

    def _means(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, S, K, D), zero at padded features."""
        means = self.layout_of(dataset)["means"].constrained(theta)
        return torch.where(dataset.features[:, None, None], means, 0.0)

    def _fit(self, theta: Tensor, dataset: Dataset) -> _Fit:
        self._check_theta(theta, dataset)
        marginals, means = self._marginals(dataset), self._means(theta, dataset)
        x = dataset.x * dataset.features[:, None]
        parts = [_log_density(m, x, means[:, :, k]) + math.log(self.weights[k]) for k, m in enumerate(marginals)]
        # Component by component: much faster than a sum over a short last axis.
        return _Fit(marginals, means, parts, reduce(torch.logaddexp, parts))

    def _log_weights(self, like: Tensor) -> Tensor:
        return torch.tensor(self.weights, dtype=like.dtype, device=like.device).log()

    def row_log_prob(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return self._fit(theta, dataset).row_log_prob

    def likelihood_score(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        return self._score_along(self._fit(theta, dataset), dataset)

    def likelihood_geometry(self, theta: Tensor, dataset: Dataset) -> Geometry:
        fit = self._fit(theta, dataset)
        counts = fit.responsibilities(dataset.observed).sum(2).detach()  # (B, S, K)
        diagonals = torch.stack([m.precision().diagonal(dim1=-2, dim2=-1) for m in fit.marginals], 1)  # (B, K, D)
        curvature = counts[..., None] * diagonals[:, None]
        return Geometry(*self._score_along(fit, dataset), curvature.flatten(2))

    def _score_along(self, fit: _Fit, dataset: Dataset) -> tuple[Tensor, Tensor]:
        rows = torch.where(dataset.observed[:, None], fit.row_log_prob, 0.0)
        shares = fit.responsibilities(dataset.observed)
        x = (dataset.x * dataset.features[:, None])[:, None]
        residual = shares.mT @ x - shares.sum(2)[..., None] * fit.means
        score = [m.precision_times(residual[:, :, k]) for k, m in enumerate(fit.marginals)]
        return rows.sum(-1), torch.stack(score, 2).flatten(2)

    @torch.no_grad()
    def likelihood_precision(self, theta: Tensor, dataset: Dataset) -> Tensor:
        fit = self._fit(theta, dataset)
        counts = fit.responsibilities(dataset.observed).sum(2).mean(1)  # (B, K)
        blocks = torch.stack([m.precision() for m in fit.marginals], 1) * counts[..., None, None]
        batch, components, columns = blocks.shape[:3]
        eye = torch.eye(components, dtype=blocks.dtype, device=blocks.device)
        whole = blocks[:, :, :, None] * eye[None, :, None, :, None]  # (B, K, D, K, D)
        return whole.reshape(batch, components * columns, components * columns)

    def simulate(self, theta: Tensor, inputs: Dataset, generator: torch.Generator | None = None) -> Dataset:
        self._check_theta(theta[:, None], inputs)
        batch, rows, columns = inputs.x.shape
        weights = torch.tensor(self.weights, device=theta.device).expand(batch, -1)
        which = torch.multinomial(weights, rows, replacement=True, generator=generator)[..., None]  # (B, N, 1)
        noise = randn(batch, rows, columns, like=inputs.x, generator=generator)
        means = self._means(theta[:, None], inputs)[:, 0]
        x = means.gather(1, which.expand(-1, -1, columns))
        for k, marginal in enumerate(self._marginals(inputs)):
            x = x + torch.where(which == k, marginal.color(noise), 0.0)
        real = inputs.observed[..., None] & inputs.features[:, None]
        return Dataset(torch.where(real, x, 0.0), None, inputs.observed, inputs.features)

    def predict(self, theta: Tensor, dataset: Dataset) -> Distribution:
        """Distribution of a new row, event shape (D,); padded features are independent and of unit variance."""
        self._check_theta(theta, dataset)
        factors = torch.stack([m.factor() for m in self._marginals(dataset)], 1)  # (B, K, D, D)
        rows = dataset.x.shape[1]
        means = self._means(theta, dataset)[:, :, None].expand(-1, -1, rows, -1, -1)
        parts = MultivariateNormal(means, scale_tril=factors[:, None, None], validate_args=False)
        which = Categorical(logits=self._log_weights(theta).expand(means.shape[:-1]), validate_args=False)
        return MixtureSameFamily(which, parts, validate_args=False)

    def check(self, dataset: Dataset) -> None:
        super().check(dataset)
        for covariance in self.covariances:
            covariance.check(dataset.x.shape[-1])

    def options(self) -> dict[str, Any]:
        weights = None if self._equal_weights else list(self.weights)
        options: dict[str, Any] = {"components": self.components, "weights": weights}
        each = [covariance.to_json() for covariance in self.covariances]
        return options | ({"covariance": each[0]} if len(each) == 1 else {"covariances": each})


def _log_density(marginal: Marginal, x: Tensor, means: Tensor) -> Tensor:
    """(B, S, N) log N(x_n; mean_s, Sigma) for x (B, N, D) and means (B, S, D)."""
    x, means = marginal.whiten(x), marginal.whiten(means)
    squares = means.square().sum(-1)[..., None] + x.square().sum(-1)[:, None] - 2.0 * means @ x.mT
    return -0.5 * squares - marginal.log_normalizer[:, None, None]


def _checked_weights(weights: Sequence[float] | None, components: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0 / components,) * components
    good = len(weights) == components and min(weights) > 0 and math.isclose(sum(weights), 1.0, abs_tol=1e-6)
    if not good:
        raise InputError.of("weights", repr(weights), f"{components} positive numbers that sum to one")
    return tuple(float(weight) for weight in weights)
