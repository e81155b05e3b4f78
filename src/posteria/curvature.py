"""Forms of a log joint's curvature: dense, diagonal plus rows, and diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# Eigenvalues beyond would overflow where a matrix is put together of them.
_LARGEST = 1e305


@dataclass(frozen=True)
class DenseCurvature:
    """The matrix itself, (B, P, P)."""

    matrix: Tensor

    def __getitem__(self, index: Tensor) -> DenseCurvature:
        """That of the chosen datasets."""
        return DenseCurvature(self.matrix[index])

    def put(self, index: Tensor, other: Self) -> DenseCurvature:
        """The same, the chosen datasets' replaced."""
        return DenseCurvature(self.matrix.index_copy(0, index, other.matrix))

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal(dim1=-2, dim2=-1)

    def solve(self, right: Tensor, damping: Tensor) -> Tensor:
        damped = self.matrix + torch.diag_embed(damping[:, None].expand_as(right))
        return torch.cholesky_solve(right[..., None], cholesky(damped))[..., 0]

    def factor(self) -> Tensor:
        return cholesky(self.matrix)


@dataclass(frozen=True)
class RowCurvature:
    """diag(prior) + Jᵀ J with rows J (B, M, P): solved in the space of the rows (Woodbury) where they are the fewer."""

    rows: Tensor
    prior: Tensor  # (B, P) positive

    def __getitem__(self, index: Tensor) -> RowCurvature:
        """That of the chosen datasets."""
        return RowCurvature(self.rows[index], self.prior[index])

    def put(self, index: Tensor, other: Self) -> RowCurvature:
        """The same, the chosen datasets' replaced."""
        return RowCurvature(self.rows.index_copy(0, index, other.rows), self.prior.index_copy(0, index, other.prior))

    def diagonal(self) -> Tensor:
        return self.prior + (self.rows**2).sum(1)

    def dense(self) -> Tensor:
        """(B, P, P) the matrix itself."""
        return self.rows.mT @ self.rows + torch.diag_embed(self.prior)

    def solve(self, right: Tensor, damping: Tensor) -> Tensor:
        if self.rows.shape[1] > self.rows.shape[2]:
            return DenseCurvature(self.dense()).solve(right, damping)
        base = self.prior + damping[:, None]
        scaled = self.rows / base[:, None]
        inner = scaled @ self.rows.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
        correction = torch.cholesky_solve(scaled @ right[..., None], cholesky(inner))
        return right / base - (scaled.mT @ correction)[..., 0]

    def factor(self) -> None:
        return None


@dataclass(frozen=True)
class DiagonalCurvature:
    """A diagonal (B, P)."""

    values: Tensor

    def __getitem__(self, index: Tensor) -> DiagonalCurvature:
        """That of the chosen datasets."""
        return DiagonalCurvature(self.values[index])

    def put(self, index: Tensor, other: Self) -> DiagonalCurvature:
        """The same, the chosen datasets' replaced."""
        return DiagonalCurvature(self.values.index_copy(0, index, other.values))

    def diagonal(self) -> Tensor:
        return self.values

    def solve(self, right: Tensor, damping: Tensor) -> Tensor:
        return right / (self.values + damping[:, None])

    def factor(self) -> None:
        return None


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor in float32, through double precision and a jitter for the matrices where that fails."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed.any():
        return factor
    wide = matrix[failed > 0].double()
    jitter = 1e-10 * wide.diagonal(dim1=-2, dim2=-1).amax(-1)
    wide = wide + torch.diag_embed(jitter[:, None].expand(wide.shape[:2]))
    repaired, failed_again = torch.linalg.cholesky_ex(wide)
    if failed_again.any():
        repaired = torch.linalg.cholesky(positive(wide))
    factor[failed > 0] = repaired.to(matrix.dtype)
    return factor


def positive(matrix: Tensor) -> Tensor:
    """|eigenvalues|, floored: a positive definite stand-in for an indefinite Hessian (Nocedal & Wright, 3.4).

    The identity where some entry is not finite.
    """
    wide = matrix.double()
    size = wide.abs().amax((-2, -1), keepdim=True)
    size = torch.where(size.isfinite(), size.clamp(min=1e-300), torch.nan)  # in its units nothing overflows
    eye = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    values, vectors = torch.linalg.eigh(torch.where(size.isfinite(), wide / size, eye))
    values = (values.abs() * size[..., 0].nan_to_num(1.0)).clamp(max=_LARGEST)
    values = values.maximum((1e-6 * values.amax(-1, keepdim=True).clamp(min=1.0)).clamp(min=0.05))
    return ((vectors * values[..., None, :]) @ vectors.mT).to(matrix.dtype)
