"""Arrow-shaped precisions against the dense matrices that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posteria.randomness import generator_for
from posteria.refinement.arrow import Arrow


def arrow_and_matrix(common: int, entries: int, each: int) -> tuple[Arrow, Tensor]:
    """Two positive definite matrices with the arrow's zeros."""
    size = common + entries * each
    noise = torch.randn(2, size, size, generator=generator_for(0), dtype=torch.double)
    matrix = noise @ noise.mT + 5.0 * torch.eye(size, dtype=torch.double)
    entry = torch.cat([torch.full((common,), -1), torch.arange(entries).repeat_interleave(each)])
    joined = (entry[:, None] == entry) | (entry[:, None] < 0) | (entry < 0)
    matrix = torch.where(joined, matrix, 0.0) + size * torch.eye(size, dtype=torch.double)
    blocks = matrix[:, common:, common:].unflatten(1, (entries, each)).unflatten(3, (entries, each))
    own = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    return Arrow(matrix[:, :common, :common], matrix[:, common:, :common].unflatten(1, (entries, each)), own), matrix


@pytest.mark.parametrize("sizes", [(2, 3, 1), (3, 4, 2), (4, 0, 1)])
def test_a_factor_is_that_of_the_dense_matrix(sizes: tuple[int, int, int]) -> None:
    arrow, matrix = arrow_and_matrix(*sizes)
    factor, inverse = arrow.factor(), torch.linalg.inv(matrix)
    right = torch.randn(2, len(matrix[0]), generator=generator_for(1), dtype=torch.double)
    torch.testing.assert_close(factor.solve(right), (inverse @ right[..., None])[..., 0])
    torch.testing.assert_close(factor.half_log_det, 0.5 * torch.logdet(matrix))
    torch.testing.assert_close(factor.variances(), inverse.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("sizes", [(2, 3, 1), (3, 4, 2), (4, 0, 1)])
def test_coloured_noise_has_the_covariance_and_comes_back(sizes: tuple[int, int, int]) -> None:
    arrow, matrix = arrow_and_matrix(*sizes)
    factor, size = arrow.factor(), matrix.shape[-1]
    root = factor.colour(torch.eye(size, dtype=torch.double).expand(2, -1, -1)).mT
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(matrix))
    noise = torch.randn(2, size, generator=generator_for(1), dtype=torch.double)
    torch.testing.assert_close(factor.whiten(factor.colour(noise[:, None])[:, 0]), noise)


def test_values_on_the_diagonal() -> None:
    arrow, matrix = arrow_and_matrix(2, 3, 2)
    values = torch.rand(2, 8, generator=generator_for(1), dtype=torch.double)
    expected = 0.5 * torch.logdet(matrix + torch.diag_embed(values))
    torch.testing.assert_close(arrow.plus_diagonal(values).factor().half_log_det, expected)
