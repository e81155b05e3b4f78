"""Known covariances of the Gaussian models: identity, diagonal or full, restricted to a dataset's real features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from posteria.errors import DataError, InputError
from posteria.types import Dataset

Option = float | Sequence[float] | Sequence[Sequence[float]] | None


class Marginal(Protocol):
    """The covariance of each dataset's real features. Padded features act as independent and of unit variance.

    Vectors v are (B, M, D), zero at padded features.
    """

    @property
    def log_normalizer(self) -> Tensor:
        """(B,) log of sqrt(det(2 pi Sigma)) over the real features."""
        ...

    def whiten(self, v: Tensor) -> Tensor:
        """(B, M, D) L⁻¹ v with L Lᵀ = Sigma."""
        ...

    def color(self, v: Tensor) -> Tensor:
        """(B, M, D) L v."""
        ...

    def precision_times(self, v: Tensor) -> Tensor:
        """(B, M, D) Sigma⁻¹ v."""
        ...

    def precision(self) -> Tensor:
        """(B, D, D) Sigma⁻¹; zero at padded features."""
        ...

    def factor(self) -> Tensor:
        """(B, D, D) L; the identity at padded features."""
        ...


@dataclass(frozen=True)
class _Diagonal:
    variance: Tensor  # (B, D), one at padding
    features: Tensor  # (B, D)

    @property
    def log_normalizer(self) -> Tensor:
        return 0.5 * (self.variance.log() + math.log(2 * math.pi) * self.features.to(self.variance.dtype)).sum(-1)

    def whiten(self, v: Tensor) -> Tensor:
        return v * self.variance.rsqrt()[:, None]

    def color(self, v: Tensor) -> Tensor:
        return v * self.variance.sqrt()[:, None]

    def precision_times(self, v: Tensor) -> Tensor:
        return v / self.variance[:, None]

    def precision(self) -> Tensor:
        return torch.diag_embed(self.features / self.variance)

    def factor(self) -> Tensor:
        return torch.diag_embed(self.variance.sqrt())


@dataclass(frozen=True)
class _Full:
    cholesky: Tensor  # (B, D, D), the identity at padding
    features: Tensor  # (B, D)

    @property
    def log_normalizer(self) -> Tensor:
        diagonal = self.cholesky.diagonal(dim1=-2, dim2=-1)
        return (diagonal.log() + 0.5 * math.log(2 * math.pi) * self.features.to(diagonal.dtype)).sum(-1)

    def whiten(self, v: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.cholesky.mT, v, upper=True, left=False)

    def color(self, v: Tensor) -> Tensor:
        return v @ self.cholesky.mT

    def precision_times(self, v: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.cholesky, self.whiten(v), upper=False, left=False)

    def precision(self) -> Tensor:
        return torch.cholesky_inverse(self.cholesky) * self.features[:, None] * self.features[:, :, None]

    def factor(self) -> Tensor:
        return self.cholesky


class KnownCovariance:
    """A covariance given by the user.

    Args:
        option: None for the identity, a number for that variance on every feature, a list of variances,
            or a full matrix as a list of rows. Lists fix the number of features; a dataset with
            fewer columns has the first ones.

    Raises:
        InputError: not positive, not symmetric or not positive definite.
    """

    def __init__(self, option: Option = None):
        self.option = option
        values = torch.as_tensor(1.0 if option is None else option, dtype=torch.float64)
        if values.ndim > 2 or (values.ndim == 2 and values.shape[0] != values.shape[1]):
            raise InputError.of("covariance", f"shape {tuple(values.shape)}", "a number, a list or a square matrix")
        if not _is_positive(values):
            raise InputError.of("covariance", str(option), "positive variances or a positive definite matrix")
        self.values = values
        self.num_features = values.shape[0] if values.ndim else None

    def marginal(self, dataset: Dataset) -> Marginal:
        """The covariance of the real features of each dataset."""
        features, columns = dataset.features, dataset.x.shape[-1]
        self.check(columns)
        values = self.values.to(device=dataset.device, dtype=dataset.x.dtype)
        if self.values.ndim < 2:
            variance = values[:columns] if values.ndim else values
            return _Diagonal(torch.where(features, variance, 1.0), features)
        both = features[:, :, None] & features[:, None]
        eye = torch.eye(columns, dtype=values.dtype, device=values.device)
        return _Full(torch.linalg.cholesky(torch.where(both, values[:columns, :columns], eye)), features)

    def check(self, columns: int) -> None:
        """Raise a DataError when x has more columns than the covariance."""
        if self.num_features is not None and columns > self.num_features:
            raise DataError.of("x", f"{columns} columns", f"at most {self.num_features}, the size of the covariance")

    def to_json(self) -> Any:
        return self.option if self.option is None else self.values.tolist()


def _is_positive(values: Tensor) -> bool:
    if values.ndim < 2:
        return bool((values > 0).all() and torch.isfinite(values).all())
    return bool(torch.equal(values, values.mT) and torch.linalg.cholesky_ex(values).info == 0)
