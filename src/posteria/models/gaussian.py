"""Gaussian mean: x ~ N(mean, covariance), the covariance known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from posteria.errors import UnsupportedError
from posteria.models.base import Model, Target
from posteria.models.covariance import KnownCovariance, Option
from posteria.models.parameters import FEATURES, Parameter
from posteria.randomness import randn
from posteria.types import Dataset, Geometry


class GaussianMean(Model):
    """x ~ N(mean, covariance), entries of the mean N(0, 1) by default.

    A dataset's padded features are marginalised out.

    Args:
        covariance: None for the identity, a variance, a list of variances, or a full matrix.
        priors: distributions per parameter name, in place of the defaults.

    Examples:
        >>> GaussianMean(covariance=[[1.0, 0.5], [0.5, 2.0]]).layout(2).scalar_names
        ('mean[0]', 'mean[1]')
    """

    name = "gaussian_mean"
    target: Target = "none"
    curvature_is_positive_with_prior = True

    def __init__(self, covariance: Option = None, priors: Mapping[str, Distribution] | None = None):
        self.covariance = KnownCovariance(covariance)
        super().__init__((Parameter("mean", (FEATURES,)),), priors=priors)

    def _mean(self, theta: Tensor, dataset: Dataset) -> Tensor:
        values = self.layout_of(dataset)["mean"].constrained(theta)
        return torch.where(dataset.features[:, None], values, 0.0)

    def row_log_prob(self, theta: Tensor, dataset: Dataset) -> Tensor:
        marginal = self.covariance.marginal(dataset)
        x, mean = marginal.whiten(_real(dataset)), marginal.whiten(self._mean(theta, dataset))
        squares = (x[:, None] - mean[:, :, None]).square().sum(-1)
        return -0.5 * squares - marginal.log_normalizer[:, None, None]

    def likelihood_score(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        self._check_theta(theta, dataset)
        marginal, (count, center, spread) = self.covariance.marginal(dataset), self._moments(dataset)
        residual = center[:, None] - self._mean(theta, dataset)
        squares = marginal.whiten(residual).square().sum(-1)
        log_density = -0.5 * (spread[:, None] + count * squares) - count * marginal.log_normalizer[:, None]
        return log_density, count[..., None] * marginal.precision_times(residual)

    def likelihood_geometry(self, theta: Tensor, dataset: Dataset) -> Geometry:
        log_density, score = self.likelihood_score(theta, dataset)
        curvature = self.likelihood_precision(theta, dataset).diagonal(dim1=-2, dim2=-1)
        return Geometry(log_density, score, curvature[:, None].expand_as(theta))

    def log_likelihood(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return self.likelihood_score(theta, dataset)[0]

    def likelihood_precision(self, theta: Tensor, dataset: Dataset) -> Tensor:
        count = dataset.num_observations
        return self.covariance.marginal(dataset).precision() * count[:, None, None]

    def _moments(self, dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        """Sufficient statistics: n (B, 1), mean (B, D), summed whitened squares around it (B,)."""
        count = dataset.num_observations[:, None]
        x = _real(dataset)
        center = torch.where(dataset.observed[..., None], x, 0.0).sum(1) / count.clamp(min=1)
        apart = torch.where(dataset.observed[..., None], x - center[:, None], 0.0)
        spread = self.covariance.marginal(dataset).whiten(apart).square().sum((1, 2))
        return count, center, spread

    def simulate(self, theta: Tensor, inputs: Dataset, generator: torch.Generator | None = None) -> Dataset:
        self._check_theta(theta[:, None], inputs)
        noise = randn(*inputs.x.shape, like=inputs.x, generator=generator)
        x = self._mean(theta[:, None], inputs) + self.covariance.marginal(inputs).color(noise)
        real = inputs.observed[..., None] & inputs.features[:, None]
        return Dataset(torch.where(real, x, 0.0), None, inputs.observed, inputs.features)

    def predict(self, theta: Tensor, dataset: Dataset) -> Distribution:
        """Distribution of a new row, event shape (D,); padded features are independent and of unit variance."""
        self._check_theta(theta, dataset)
        factor = self.covariance.marginal(dataset).factor()
        mean = self._mean(theta, dataset)[:, :, None].expand(-1, -1, dataset.x.shape[1], -1)
        return MultivariateNormal(mean, scale_tril=factor[:, None, None], validate_args=False)

    def exact_posterior(self, dataset: Dataset) -> MultivariateNormal:
        """Conjugate posterior (Murphy 2012, section 4.6.1), in double precision; normal priors only."""
        layout = self.layout_of(dataset)
        if not layout.has_normal_prior:
            raise UnsupportedError("gaussian_mean has an exact posterior for normal priors only")
        wide = Dataset(dataset.x.double(), None, dataset.observed, dataset.features)
        location, scale = (m.double().to(dataset.device) for m in layout.prior_moments)
        start = location.expand(len(dataset), -1)
        precision = self.likelihood_precision(start[:, None], wide) + torch.diag_embed((scale**-2).expand_as(start))
        score = self.likelihood_geometry(start[:, None], wide).score[:, 0]
        mean = start + torch.linalg.solve(precision, score[..., None])[..., 0]
        return MultivariateNormal(mean, torch.linalg.inv(precision), validate_args=False)

    def check(self, dataset: Dataset) -> None:
        super().check(dataset)
        self.covariance.check(dataset.x.shape[-1])

    def options(self) -> dict[str, Any]:
        return {"covariance": self.covariance.to_json()}


def _real(dataset: Dataset) -> Tensor:
    """x, zero at padded features."""
    return dataset.x * dataset.features[:, None]
