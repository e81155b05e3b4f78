"""Precisions shaped like an arrow: K common parameters, and G entries of E parameters each that only these connect.

In the order entries, then common, a Cholesky factor fills in nothing: it costs G (E³ + E² K) + K³ instead of
(K + G E)³ / 3 (Rue & Held 2005, Gaussian Markov Random Fields, section 2.4). With G = 0 it is a dense matrix.
Vectors (..., R), R = K + G E, hold the common parameters first. Leading dimensions are batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.curvature import cholesky


@dataclass(frozen=True)
class Arrow:
    """A symmetric matrix.

    Attributes:
        common: (..., K, K).
        cross: (..., G, E, K).
        own: (..., G, E, E).
    """

    common: Tensor
    cross: Tensor
    own: Tensor

    def plus_diagonal(self, values: Tensor) -> Arrow:
        """With values (..., R) added on its diagonal."""
        common, own = _parts(values[..., None], self.cross)
        common, own = torch.diag_embed(common[..., 0]), torch.diag_embed(own[..., 0])
        return Arrow(self.common + common, self.cross, self.own + own)

    def factor(self) -> ArrowFactor:
        """Its Cholesky factor; a matrix that is not positive definite is mended block by block."""
        own = cholesky(self.own)
        bridge = torch.linalg.solve_triangular(own, self.cross, upper=False)
        return ArrowFactor(cholesky(self.common - (bridge.mT @ bridge).sum(-3)), bridge, own)


@dataclass(frozen=True)
class ArrowFactor:
    """L with L Lᵀ the matrix, for the entries first: L = [[own, 0], [bridgeᵀ, common]].

    Attributes:
        common: (..., K, K) lower triangular.
        bridge: (..., G, E, K).
        own: (..., G, E, E) lower triangular.
    """

    common: Tensor
    bridge: Tensor
    own: Tensor

    @property
    def half_log_det(self) -> Tensor:
        """(...) half the log determinant of the matrix."""
        entries = self.own.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        return self.common.diagonal(dim1=-2, dim2=-1).log().sum(-1) + entries

    def put(self, places: tuple[Tensor, ...], part: ArrowFactor) -> None:
        """Replace those at some places of the leading dimensions."""
        for name in self.__dataclass_fields__:
            getattr(self, name)[places] = getattr(part, name)

    def solve(self, right: Tensor) -> Tensor:
        """(..., R) the inverse matrix times right (..., R)."""
        common, own = _parts(right[..., None], self.bridge)
        own = torch.linalg.solve_triangular(self.own, own, upper=False)
        common = torch.linalg.solve_triangular(self.common, common - (self.bridge.mT @ own).sum(-3), upper=False)
        return self._back(common, own)[..., 0]

    def colour(self, noise: Tensor) -> Tensor:
        """(..., M, R) L⁻ᵀ noise: standard normal noise (..., M, R) becomes draws with this precision."""
        return self._back(*_parts(noise.mT, self.bridge)).mT

    def whiten(self, away: Tensor) -> Tensor:
        """(..., R) Lᵀ away: the noise that :meth:`colour` makes these offsets (..., R) of."""
        common, own = _parts(away[..., None], self.bridge)
        own = self.own.mT @ own + self.bridge @ common.unsqueeze(-3)
        return torch.cat([self.common.mT @ common, own.flatten(-3, -2)], -2)[..., 0]

    def variances(self) -> Tensor:
        """(..., R) the diagonal of the inverse matrix."""
        root = _inverse(self.common)  # (..., K, K)
        inner = _inverse(self.own)
        bridged = inner.mT @ self.bridge @ root.mT.unsqueeze(-3)
        entries = inner.square().sum(-2) + bridged.square().sum(-1)
        return torch.cat([root.square().sum(-2), entries.flatten(-2)], -1)

    def _back(self, common: Tensor, own: Tensor) -> Tensor:
        """(..., R, M) L⁻ᵀ times the parts (..., K, M) and (..., G, E, M)."""
        common = torch.linalg.solve_triangular(self.common.mT, common, upper=True)
        own = torch.linalg.solve_triangular(self.own.mT, own - self.bridge @ common.unsqueeze(-3), upper=True)
        return torch.cat([common, own.flatten(-3, -2)], -2)


def _parts(columns: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Common (..., K, M) and entries (..., G, E, M) of columns (..., R, M)."""
    entries, size, common = like.shape[-3:]
    return columns[..., :common, :], columns[..., common:, :].unflatten(-2, (entries, size))


def _inverse(factor: Tensor) -> Tensor:
    eye = torch.eye(factor.shape[-1]).to(factor).expand_as(factor)
    return torch.linalg.solve_triangular(factor, eye, upper=False)
