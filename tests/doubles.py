"""Test doubles: a plain diagonal Gaussian over theta, and a small model with every kind of support."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, HalfNormal, Normal, constraints

from posteria.models.base import Model
from posteria.models.parameters import FEATURES, Parameter
from posteria.types import Dataset


class DiagonalGaussian:
    """Implements ThetaDistribution with a location and a scale (B, P)."""

    def __init__(self, location: Tensor, scale: Tensor, active: Tensor):
        self.location, self.scale, self.active = location, scale, active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        shape = (len(self.location), num_samples, self.location.shape[1])
        noise = torch.randn(shape, generator=generator, dtype=self.location.dtype)
        return torch.where(self.active[:, None], self.location[:, None] + self.scale[:, None] * noise, 0.0)

    def log_prob(self, theta: Tensor) -> Tensor:
        z = (theta - self.location[:, None]) / self.scale[:, None]
        terms = -0.5 * z**2 - self.scale[:, None].log() - 0.5 * math.log(2 * math.pi)
        return torch.where(self.active[:, None], terms, 0.0).sum(-1)

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        draws = self.rsample(num_samples, generator)
        return draws, self.log_prob(draws)

    def detach(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.location.detach(), self.scale.detach(), self.active)

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> Tensor | None:
        ratio = self.scale / scale
        terms = 0.5 * (ratio**2 + ((self.location - location) / scale) ** 2 - 1) - ratio.log()
        return torch.where(self.active, terms, 0.0).sum(-1)


class ScaledCounts(Model):
    """y ~ N(exposure * x·weights, noise_scale²) with weights positive per feature: supports and an extra column."""

    name = "scaled_counts"
    extra_columns = ("exposure",)

    def __init__(self) -> None:
        super().__init__((
            Parameter("weights", (FEATURES,), constraints.positive, Gamma(2.0, 2.0)),
            Parameter("shift", (2,)),
            Parameter("noise_scale", (), constraints.interval(0.0, 5.0), HalfNormal(1.0)),
        ))

    def predict(self, theta: Tensor, dataset: Dataset) -> Distribution:
        values = self.layout_of(dataset).constrain(theta)
        x = dataset.x * dataset.features[:, None]
        mean = x[:, None, :, 0] * (x[:, None, :, 1:] @ values["weights"][..., None])[..., 0]
        return Normal(mean, values["noise_scale"][..., None], validate_args=False)

    def row_log_prob(self, theta: Tensor, dataset: Dataset) -> Tensor:
        assert dataset.y is not None
        return self.predict(theta, dataset).log_prob(dataset.y[:, None])

    def simulate(self, theta: Tensor, inputs: Dataset, generator: torch.Generator | None = None) -> Dataset:
        y = self.predict(theta[:, None], inputs).mean[:, 0]
        return Dataset(inputs.x, y, inputs.observed, inputs.features)


def gaussian_for(model: Model, dataset: Dataset, seed: int = 0) -> DiagonalGaussian:
    """Some diagonal Gaussian of the right shape."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(dataset), model.layout_of(dataset).size)
    location = torch.randn(shape, generator=generator)
    scale = 0.1 + 0.2 * torch.rand(shape, generator=generator)
    return DiagonalGaussian(location, scale, model.active(dataset))
