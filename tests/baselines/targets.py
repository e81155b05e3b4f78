"""Log joints with known answers: correlated Gaussians, one per dataset, some with parameters that are padding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from posteria.curvature import DenseCurvature, DiagonalCurvature
from posteria.types import Curvature, Dataset, Geometry


class GaussianJoint:
    """N(mean, covariance) over z per dataset; inactive parameters have no density. Not finite where |z_0| > wall."""

    def __init__(self, mean: Tensor, covariance: Tensor, active: Tensor | None = None, wall: float = torch.inf):
        self.mean, self.covariance, self.wall = mean, covariance, wall
        self.active = torch.ones_like(mean, dtype=torch.bool) if active is None else active
        both = self.active[:, :, None] & self.active[:, None, :]
        inverse = torch.linalg.inv(torch.where(both, covariance, torch.diag_embed(torch.ones_like(mean))))
        self.precision = torch.where(both, inverse, 0.0)
        self.location, self.scale = torch.zeros(mean.shape[1]), torch.ones(mean.shape[1])
        self.roles = torch.zeros(mean.shape[1], dtype=torch.long)
        self.groups: Mapping[str, Tensor] = {}
        self.dataset = Dataset.of(torch.zeros(len(mean), 1, 1))
        self.asked = 0

    def score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += 1
        away = z - self.mean[:, None]
        score = -away @ self.precision
        density = 0.5 * (away * score).sum(-1)
        return torch.where(z[..., 0].abs() > self.wall, torch.nan, density), score

    def geometry(self, z: Tensor) -> Geometry:
        density, score = self.score(z)
        return Geometry(density, score, self.precision.diagonal(dim1=-2, dim2=-1)[:, None].expand_as(z))

    def curvature(self, z: Tensor, dense_up_to: int) -> Curvature:
        matrix = self.precision + torch.diag_embed((~self.active).to(z))
        if z.shape[-1] <= dense_up_to:
            return DenseCurvature(matrix)
        return DiagonalCurvature(matrix.diagonal(dim1=-2, dim2=-1))

    def expectation(self, z: Tensor, spread: Tensor, factor: Tensor | None, dense_up_to: int) -> None:
        return None

    def fixed_noise(self, num: int, seed: int) -> Tensor:
        return torch.zeros(num, self.mean.shape[1])

    def __getitem__(self, index: Tensor) -> GaussianJoint:
        return GaussianJoint(self.mean[index], self.covariance[index], self.active[index], self.wall)

    def draws(self, num: int, generator: torch.Generator) -> Tensor:
        """(B, num, P) exact draws, zero where inactive."""
        root = torch.linalg.cholesky(self.covariance)
        noise = torch.randn(len(self.mean), num, self.mean.shape[1], generator=generator, dtype=self.mean.dtype)
        return torch.where(self.active[:, None], self.mean[:, None] + noise @ root.mT, 0.0)


def correlated(parameters: int = 3, datasets: int = 2, wall: float = torch.inf) -> GaussianJoint:
    """Correlations and scales that differ between datasets; the last parameter of the last dataset is padding."""
    generator = torch.Generator().manual_seed(7)
    mean = torch.randn(datasets, parameters, generator=generator, dtype=torch.float64)
    root = torch.randn(datasets, parameters, 2 * parameters, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-1, 0.3, parameters, dtype=torch.float64)
    covariance = root @ root.mT / (2 * parameters) * scales * scales[:, None]
    active = torch.ones(datasets, parameters, dtype=torch.bool)
    active[-1, -1] = datasets == 1
    covariance[~active] = 0.0
    covariance.mT[~active] = 0.0
    return GaussianJoint(mean, covariance + torch.diag_embed((~active).double()), active, wall)
