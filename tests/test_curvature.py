"""Forms of curvature against dense linear algebra, and the Cholesky factor's way out of bad matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posteria.curvature import DenseCurvature, DiagonalCurvature, RowCurvature, cholesky, positive
from posteria.randomness import generator_for
from posteria.types import Curvature

BATCH, SIZE, ROWS = 3, 6, 4


def rows_and_prior(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = generator_for(seed)
    rows = torch.randn(BATCH, ROWS, SIZE, generator=generator, dtype=dtype)
    return rows, 0.5 + torch.rand(BATCH, SIZE, generator=generator, dtype=dtype)


def forms(dtype: torch.dtype = torch.float64) -> dict[str, tuple[Curvature, Tensor]]:
    """Each form with the matrix (B, P, P) that it stands for."""
    rows, prior = rows_and_prior(dtype=dtype)
    matrix = rows.mT @ rows + torch.diag_embed(prior)
    return {"dense": (DenseCurvature(matrix), matrix), "rows": (RowCurvature(rows, prior), matrix),
            "diagonal": (DiagonalCurvature(prior), torch.diag_embed(prior))}


@pytest.mark.parametrize("name", ["dense", "rows", "diagonal"])
@pytest.mark.parametrize("damping", [(0.0, 0.0, 0.0), (0.0, 0.3, 100.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_solve_is_that_of_the_damped_matrix(name: str, damping: tuple[float, ...], dtype: torch.dtype) -> None:
    curvature, matrix = forms(dtype)[name]
    right = torch.randn(BATCH, SIZE, generator=generator_for(1), dtype=dtype)
    strength = torch.tensor(damping, dtype=dtype)
    damped = matrix.double() + strength.double()[:, None, None] * torch.eye(SIZE, dtype=torch.float64)
    expected = torch.linalg.solve(damped, right.double()[..., None])[..., 0].to(dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(curvature.solve(right, strength), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["dense", "rows", "diagonal"])
def test_diagonal_is_that_of_the_matrix(name: str) -> None:
    curvature, matrix = forms()[name]
    torch.testing.assert_close(curvature.diagonal(), matrix.diagonal(dim1=-2, dim2=-1))
    assert isinstance(curvature, Curvature)


def test_only_the_dense_form_has_a_factor() -> None:
    every = forms()
    curvature, matrix = every["dense"]
    factor = curvature.factor()
    assert factor is not None
    torch.testing.assert_close(factor @ factor.mT, matrix)
    assert torch.equal(factor, factor.tril())
    assert every["rows"][0].factor() is None
    assert every["diagonal"][0].factor() is None


def test_rows_make_the_dense_matrix() -> None:
    rows, prior = rows_and_prior()
    torch.testing.assert_close(RowCurvature(rows, prior).dense(), rows.mT @ rows + torch.diag_embed(prior))


def test_solve_in_the_space_of_many_more_parameters_than_rows() -> None:
    rows = torch.randn(2, 5, 300, generator=generator_for(0))
    prior, right = torch.ones(2, 300), torch.randn(2, 300, generator=generator_for(1))
    curvature = RowCurvature(rows, prior)
    solution = curvature.solve(right, torch.tensor([0.0, 2.0]))
    residual = (curvature.dense() @ solution[..., None])[..., 0] + torch.tensor([0.0, 2.0])[:, None] * solution - right
    assert residual.abs().max() < 1e-3


def test_solve_does_not_write_into_what_it_is_given() -> None:
    rows, prior = rows_and_prior()
    kept = rows.clone(), prior.clone()
    for curvature, _ in (*forms().values(), (RowCurvature(rows, prior), None)):
        curvature.solve(torch.ones(BATCH, SIZE, dtype=torch.float64), torch.ones(BATCH, dtype=torch.float64))
    assert torch.equal(rows, kept[0])
    assert torch.equal(prior, kept[1])


# -- cholesky ------------------------------------------------------------------------------------
def _collinear(num: int = 8) -> Tensor:
    """Gram matrices of nearly collinear columns plus a prior of one, which float32 sums lose."""
    columns = torch.randn(num, 50, 1, generator=generator_for(3)) * 1e4
    rows = columns + torch.randn(num, 50, 6, generator=generator_for(4)) * 1e-2
    return rows.mT @ rows + torch.eye(6)


def test_well_conditioned_matrices_get_their_factor() -> None:
    matrix = forms(torch.float32)["dense"][1]
    torch.testing.assert_close(cholesky(matrix), torch.linalg.cholesky(matrix))


def test_matrices_beyond_float32_get_a_factor_close_to_them() -> None:
    matrix = _collinear()
    assert torch.linalg.cholesky_ex(matrix)[1].any()  # else this tests nothing
    _check_factor(cholesky(matrix), matrix, 1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e8])
def test_singular_matrices_get_a_factor_close_to_them(scale: float) -> None:
    column = torch.tensor([[1.0, 2.0, 3.0]]).mT
    matrix = (scale * column @ column.mT)[None]
    _check_factor(cholesky(matrix), matrix, 1e-2 if scale < 1 else 1e-4, floor=0.06)


def test_indefinite_matrices_get_the_factor_of_their_positive_stand_in() -> None:
    matrix = torch.tensor([[[1.0, 3.0], [3.0, 1.0]]])  # eigenvalues 4 and -2
    factor = cholesky(matrix)
    torch.testing.assert_close(factor @ factor.mT, torch.tensor([[[3.0, 1.0], [1.0, 3.0]]]))  # 4 and 2


def test_a_bad_matrix_does_not_touch_the_others() -> None:
    good = forms(torch.float32)["dense"][1]
    bad = -torch.eye(SIZE)[None]
    together = cholesky(torch.cat([good[:1], bad, good[1:]]))
    torch.testing.assert_close(together[[0, 2, 3]], torch.linalg.cholesky(good))
    assert torch.isfinite(together).all()
    assert (together.diagonal(dim1=-2, dim2=-1) > 0).all()


def _check_factor(factor: Tensor, matrix: Tensor, relative: float, floor: float = 0.0) -> None:
    assert torch.isfinite(factor).all()
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()
    error = (factor.double() @ factor.double().mT - matrix).abs().max()
    assert error <= relative * matrix.abs().max() + floor


@pytest.mark.parametrize("matrix", [[[1.7e308, -1.7e308], [-1.7e308, 1.0]], [[1e305, 2e305], [2e305, -1e290]]])
def test_matrices_near_the_largest_numbers_have_a_factor(matrix: list[list[float]]) -> None:
    factor = cholesky(torch.tensor([matrix], dtype=torch.double))
    assert factor.isfinite().all()
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0.0).all()


# -- positive ------------------------------------------------------------------------------------
def test_positive_leaves_positive_definite_matrices_alone() -> None:
    matrix = forms()["dense"][1]
    torch.testing.assert_close(positive(matrix), matrix)


def test_positive_keeps_eigenvectors_and_flips_negative_eigenvalues() -> None:
    orthogonal = torch.linalg.qr(torch.randn(4, 4, generator=generator_for(0), dtype=torch.float64))[0]
    values = torch.tensor([-3.0, -0.5, 1.0, 7.0], dtype=torch.float64)
    made = positive(((orthogonal * values) @ orthogonal.mT)[None])[0]
    torch.testing.assert_close(made, (orthogonal * values.abs()) @ orthogonal.mT)


@pytest.mark.parametrize("largest", [0.0, 1.0, 1e6])
def test_positive_keeps_a_floor_under_flat_directions(largest: float) -> None:
    made = positive(torch.diag_embed(torch.tensor([[0.0, largest]])))
    assert torch.linalg.eigvalsh(made.double()).min() >= 0.0499
    assert made.dtype == torch.float32


def test_matrices_that_are_not_finite_have_a_stand_in() -> None:
    broken = torch.stack([torch.full((3, 3), value, dtype=torch.double) for value in (torch.inf, torch.nan, 1e300)])
    factor = cholesky(torch.cat([broken, torch.eye(3, dtype=torch.double)[None]]))
    assert factor.isfinite().all()
    torch.testing.assert_close(factor[[0, 1, 3]], torch.eye(3, dtype=torch.double).expand(3, -1, -1))
    torch.testing.assert_close((factor[2] @ factor[2].mT) / 1e300, torch.ones(3, 3, dtype=torch.double), atol=1e-5,
                               rtol=1e-5)
