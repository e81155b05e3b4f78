"""The Gaussian-process task: known covariances, one function per dataset, padding, memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from posteria.errors import InputError, UnsupportedError
from posteria.models import build_model
from posteria.models.linear import LinearRegression
from posteria.randomness import generator_for
from posteria.tasks import GaussianProcessTask, gaussian_process

DRAWS, ROWS = 20_000, 6
# Kernels written out from the book, of the distances r (per feature, ..., D) at lengthscale s.
BOOK: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rbf": lambda r, s: torch.exp(-(r**2).sum(-1) / (2 * s**2)),
    "matern12": lambda r, s: torch.exp(-r.norm(dim=-1) / s),
    "matern32": lambda r, s: (1 + 3**0.5 * r.norm(dim=-1) / s) * torch.exp(-(3**0.5) * r.norm(dim=-1) / s),
    "matern52": lambda r, s: ((1 + 5**0.5 * r.norm(dim=-1) / s + 5 * (r**2).sum(-1) / (3 * s**2))
                              * torch.exp(-(5**0.5) * r.norm(dim=-1) / s)),
    "periodic": lambda r, s: torch.exp(-2 * (torch.sin(math.pi * r / 1.5) ** 2).sum(-1) / s**2),
}


class FixedInputs(LinearRegression):
    """x the same in every dataset, so that y has one covariance."""

    def draw_inputs(self, num_datasets: int, rows: int, columns: int, generator: torch.Generator | None,
                    device: torch.device | str = "cpu") -> Tensor:
        x = super().draw_inputs(1, rows, columns, generator_for(11), device)
        return x.expand(num_datasets, -1, -1)


def assert_covariance(y: Tensor, expected: Tensor) -> None:
    """E y yᵀ = K and E y = 0 within 4 standard errors: var(y_i y_j) = K_ii K_jj + K_ij²."""
    y = y.double()
    diagonal = expected.diagonal()
    error = ((diagonal[:, None] * diagonal + expected**2) / len(y)).sqrt()
    assert ((y.mT @ y / len(y) - expected).abs() < 4 * error).all()
    assert (y.mean(0).abs() < 4 * (diagonal / len(y)).sqrt()).all()


@pytest.mark.parametrize("kernel", BOOK)
@pytest.mark.parametrize("columns", [1, 3])
def test_covariance_is_the_book_s(kernel: Any, columns: int) -> None:
    task = GaussianProcessTask(LinearRegression(), kernel=kernel, period=1.5)
    x = torch.randn(4, 20, columns, dtype=torch.float64, generator=generator_for(1))
    lengthscale = torch.tensor([0.3, 1.0, 1.7, 5.0], dtype=torch.float64)
    actual = task.covariance(x, lengthscale)
    expected = torch.stack([BOOK[kernel](x[i, :, None] - x[i], float(lengthscale[i])) for i in range(4)])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    assert actual.dtype == torch.float64
    assert not actual.requires_grad


@pytest.mark.parametrize("kernel", BOOK)
def test_y_has_the_covariance_of_its_kernel_and_noise(kernel: Any) -> None:
    task = GaussianProcessTask(FixedInputs(), (ROWS, ROWS), (2, 2), kernel=kernel, lengthscale=0.8, noise_variance=0.3,
                               period=1.5)
    dataset, theta = task.draw(DRAWS, generator_for(2))
    x = dataset.x[0].double()
    assert theta is None
    assert dataset.y is not None
    assert_covariance(dataset.y, BOOK[kernel](x[:, None] - x, 0.8) + 0.3 * torch.eye(ROWS))


def test_the_lengthscale_of_each_dataset_is_log_uniform_over_its_range() -> None:
    task = GaussianProcessTask(LinearRegression(), lengthscale=(0.25, 4.0))
    lengthscale = task.draw_lengthscale(DRAWS, generator_for(3))
    assert 0.25 <= lengthscale.min() < 0.26
    assert 3.9 < lengthscale.max() <= 4.0
    place = lengthscale.log() / math.log(4.0)  # uniform on (-1, 1)
    assert place.mean().abs() < 4 * (1 / 3 / DRAWS) ** 0.5
    assert (place.var() - 1 / 3).abs() < 4 * (4 / 45 / DRAWS) ** 0.5
    assert (GaussianProcessTask(LinearRegression(), lengthscale=0.7).draw_lengthscale(9, generator_for(3)) == 0.7).all()


def test_a_range_of_lengthscales_mixes_the_covariances() -> None:
    task = GaussianProcessTask(FixedInputs(), (ROWS, ROWS), (1, 1), lengthscale=(0.2, 2.0), noise_variance=0.0)
    y = task.draw(DRAWS, generator_for(4))[0].y
    assert y is not None
    x = task.model.draw_inputs(1, ROWS, 1, None)[0].double()
    scales = torch.logspace(math.log10(0.2), math.log10(2.0), 2001, dtype=torch.float64)
    expected = torch.stack([BOOK["rbf"](x[:, None] - x, float(scale)) for scale in scales]).mean(0)
    products = y.double()[:, :, None] * y.double()[:, None]
    error = products.std(0) / DRAWS**0.5
    assert ((products.mean(0) - expected).abs() < 4 * error + 1e-3).all()


def test_held_out_rows_lie_on_the_same_function() -> None:
    """Conditioned on the first rows, the others follow the process's own prediction, to the noise."""
    task = GaussianProcessTask(LinearRegression(), noise_variance=1e-4)
    dataset, _ = task.draw(200, generator_for(5), rows=96 + 32)
    assert dataset.y is not None
    covariance = task.covariance(dataset.x.double(), torch.ones(200, dtype=torch.float64))
    covariance.diagonal(dim1=-2, dim2=-1).add_(1e-4)
    known, cross, new = covariance[:, :96, :96], covariance[:, 96:, :96], covariance[:, 96:, 96:]
    solved = torch.linalg.solve(known, torch.cat([dataset.y[:, :96, None].double(), cross.mT], -1))
    residual = dataset.y[:, 96:].double() - (cross @ solved[:, :, :1])[..., 0]
    left = torch.linalg.cholesky(new - cross @ solved[:, :, 1:])
    standard = torch.linalg.solve_triangular(left, residual[..., None], upper=False)
    # Single precision of x and y moves the residuals a little; the noise is a hundredth.
    assert abs(standard.square().mean() - 1) < 4 * (2 / standard.numel()) ** 0.5 + 0.02


@pytest.mark.parametrize("kernel", BOOK)
def test_smooth_noiseless_functions_at_many_rows_have_a_factor(kernel: Any) -> None:
    task = GaussianProcessTask(LinearRegression(), kernel=kernel, lengthscale=3.0, noise_variance=0.0)
    y = task.draw(2, generator_for(6), rows=1000)[0].y
    assert y is not None
    assert torch.isfinite(y).all()
    assert y.abs().max() < 6


def test_masked_features_do_not_reach_y() -> None:
    task = GaussianProcessTask(FixedInputs(), (ROWS, ROWS), (1, 3), vary_features="dataset", noise_variance=0.1)
    dataset, _ = task.draw(DRAWS, generator_for(7))
    assert dataset.y is not None
    for features in (1, 3):
        chosen = dataset.num_features == features
        x = dataset.x[chosen][0, :, :features].double()
        assert_covariance(dataset.y[chosen], BOOK["rbf"](x[:, None] - x, 1.0) + 0.1 * torch.eye(ROWS))


def test_splitting_for_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task = GaussianProcessTask(LinearRegression(), (20, 20), lengthscale=(0.5, 2.0))
    whole = task.draw(7, generator_for(8))[0].y
    monkeypatch.setattr(gaussian_process, "_MOST_ENTRIES", 2 * 20**2)
    split = task.draw(7, generator_for(8))[0].y
    assert whole is not None
    assert split is not None
    torch.testing.assert_close(whole, split)


@pytest.mark.parametrize(("options", "named"), [
    ({"kernel": "cosine"}, "kernel: got 'cosine'; takes one of"),
    ({"lengthscale": 0.0}, "lengthscale"), ({"lengthscale": (2.0, 1.0)}, "lengthscale"),
    ({"lengthscale": (1.0,)}, "lengthscale"), ({"lengthscale": "long"}, "lengthscale"),
    ({"lengthscale": math.inf}, "lengthscale"), ({"period": -1.0}, "period"), ({"noise_variance": -0.1}, "noise_var"),
    ({"noise_variance": math.nan}, "noise_variance"), ({"rows": (4, 3)}, "rows"), ({"columns": (0, 3)}, "columns"),
])
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        GaussianProcessTask(LinearRegression(), **options)


@pytest.mark.parametrize("name", ["gaussian_mean", "linear_classification", "poisson_regression"])
def test_models_of_another_kind_of_y_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"model: got .*; takes a model of a real y"):
        GaussianProcessTask(build_model(name))


def test_a_missing_gpytorch_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpytorch.kernels", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'posteria\[gpytorch\]'"):
        GaussianProcessTask(LinearRegression())
