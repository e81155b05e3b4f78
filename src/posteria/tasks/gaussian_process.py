"""Datasets whose y is a random smooth function of x, drawn from a Gaussian process: data of no parametric model.

f ~ GP(0, k), y = f(x) + N(0, noise_variance), x as the assumed model draws it (standard normal by default). With
the default kernel, lengthscale and noise these are the Gaussian-process data of arXiv 2502.06601 (Tables 4 and 24).
All rows of a dataset lie on one function: draw more rows, and those held out come from it too.

No theta generated these datasets, so forward KL cannot train on them; reverse KL fits q to the posterior that the
assumed model gives, misspecified as it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from posteria.errors import InputError, UnsupportedError
from posteria.models.base import Model
from posteria.randomness import randn
from posteria.tasks.simulated import RowsScale, SimulatedTask, VaryFeatures, choose
from posteria.types import Dataset

if TYPE_CHECKING:
    from gpytorch.kernels import Kernel

KernelName = Literal["rbf", "matern12", "matern32", "matern52", "periodic"]
# Entries of covariance matrices held at once: 128 MB in double precision.
_MOST_ENTRIES = 2**24
# Without noise a smooth kernel's matrix is singular in double precision: this much variance keeps its factor.
_LEAST_VARIANCE = 1e-8


class GaussianProcessTask(SimulatedTask):
    """Datasets with y = f(x) + noise, f from a Gaussian process with zero mean and unit variance.

    Kernels of the distance r at lengthscale l (Rasmussen & Williams 2006, chapter 4): ``rbf`` exp(-r²/2l²);
    ``matern12``, ``matern32``, ``matern52`` of smoothness 1/2, 3/2, 5/2; ``periodic``
    exp(-2 Σ sin²(π r_d / period) / l²), summed over the features.

    Args:
        model: the assumed model, of a real y and without extra columns; it draws x, and nothing else.
        rows, columns, rows_scale, vary_features: as for :class:`SimulatedTask`.
        kernel: one of the names above.
        lengthscale: of every dataset, in units of x; or (low, high): each dataset its own, log-uniform.
        noise_variance: of the observations; in the factor of a covariance it counts as 1e-8 at least.
        period: of the periodic kernel, in units of x.

    Raises:
        InputError: as for :class:`SimulatedTask`; a model of another kind of y; an unknown kernel; a lengthscale or
            period that is not positive; a negative noise variance.
        UnsupportedError: GPyTorch is not installed.

    Examples:
        >>> from posteria.models.linear import LinearRegression
        >>> from posteria.randomness import generator_for
        >>> task = GaussianProcessTask(LinearRegression(), rows=(16, 16), lengthscale=(0.5, 2.0))
        >>> dataset, theta = task.draw(4, generator_for(0))
        >>> dataset.y.shape, theta is None
        (torch.Size([4, 16]), True)
    """

    gives_theta = False

    def __init__(self, model: Model, rows: Sequence[int] = (64, 128), columns: Sequence[int] = (1, 1),
                 rows_scale: RowsScale = "uniform", vary_features: VaryFeatures = "batch",
                 kernel: KernelName = "rbf", lengthscale: float | Sequence[float] = 1.0,
                 noise_variance: float = 1e-6, period: float = 1.0):
        if model.target != "real" or model.extra_columns:
            raise InputError.of("model", repr(model.name), "a model of a real y, without extra columns")
        super().__init__(model, rows, columns, rows_scale, vary_features)
        self.kernel: KernelName = kernel
        self._make_kernel = choose("kernel", kernel, _KERNELS)
        _kernels()  # missing, it should be missed now
        self.lengthscale = _positive_range("lengthscale", lengthscale)
        if not 0 <= noise_variance < math.inf:
            raise InputError.of("noise_variance", repr(noise_variance), "a variance of 0 or more")
        self.noise_variance = noise_variance
        self.period = _positive_range("period", period)[0]

    def draw(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu",
             rows: int | None = None) -> tuple[Dataset, None]:
        """B datasets of one size, each of its own function, and None: no parameters generated them.

        Args:
            num_datasets: B.
            generator, device, rows: as for :meth:`SimulatedTask.draw`.
        """
        rows, features = self.draw_sizes(num_datasets, generator, device, rows)
        x = self.model.draw_inputs(num_datasets, rows, features.shape[-1], generator, device) * features[:, None]
        lengthscale = self.draw_lengthscale(num_datasets, generator, device)
        noise = randn(num_datasets, rows, like=lengthscale, generator=generator)
        y = self._values(x.double(), lengthscale, noise).to(x)
        inputs = Dataset(x, None, torch.ones_like(y, dtype=torch.bool), features)
        return replace(inputs, y=y), None

    def draw_lengthscale(self, num_datasets: int, generator: torch.Generator,
                         device: torch.device | str = "cpu") -> Tensor:
        """(B,) log-uniform over the range, in double precision."""
        low, high = (math.log(end) for end in self.lengthscale)
        place = torch.rand(num_datasets, generator=generator, device=device, dtype=torch.float64)
        return torch.exp(low + (high - low) * place)

    def covariance(self, x: Tensor, lengthscale: Tensor) -> Tensor:
        """(B, N, N) covariance of f at x (B, N, D) with lengthscale (B,), in double precision, without the noise."""
        # GPyTorch's periodic kernel divides by its lengthscale where the book's divides by the square.
        scale = lengthscale**2 if self.kernel == "periodic" else lengthscale
        with torch.no_grad():
            kernel = self._make_kernel(torch.Size((len(x),)), self.period).to(x.device, torch.float64)
            kernel.lengthscale = scale[:, None, None]
            return kernel(x.double()).to_dense()

    def _values(self, x: Tensor, lengthscale: Tensor, noise: Tensor) -> Tensor:
        """(B, N) y at x (B, N, D), from standard normal noise (B, N); as many datasets at once as memory allows."""
        at_once = max(1, _MOST_ENTRIES // x.shape[1] ** 2)
        parts = zip(x.split(at_once), lengthscale.split(at_once), noise.split(at_once), strict=True)
        return torch.cat([self._factor(x, scale) @ noise[..., None] for x, scale, noise in parts])[..., 0]

    def _factor(self, x: Tensor, lengthscale: Tensor) -> Tensor:
        """(B, N, N) lower Cholesky factor of the covariance of y."""
        covariance = self.covariance(x, lengthscale)
        covariance.diagonal(dim1=-2, dim2=-1).add_(max(self.noise_variance, _LEAST_VARIANCE))
        return torch.linalg.cholesky(covariance)

    def masked(self) -> GaussianProcessTask:
        """The same task at the most columns, with masks: for estimators of one size."""
        return GaussianProcessTask(self.model, **{**self.options(), "vary_features": "dataset"})

    def options(self) -> dict[str, Any]:
        """Keyword arguments (JSON values) that build this task again, the model apart."""
        return {**super().options(), "kernel": self.kernel, "lengthscale": list(self.lengthscale),
                "noise_variance": self.noise_variance, "period": self.period}


def _kernels() -> Any:
    """GPyTorch's kernels: an optional dependency, loaded when first used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it scripts a function, at import
            import gpytorch.kernels
    except ImportError as error:
        raise UnsupportedError("task: gaussian_process needs GPyTorch, which is not installed; "
                               "takes `pip install 'posteria[gpytorch]'`") from error
    return gpytorch.kernels


def _rbf(batch: torch.Size, period: float) -> Kernel:
    return _kernels().RBFKernel(batch_shape=batch)


def _matern(nu: float) -> Callable[[torch.Size, float], Kernel]:
    return lambda batch, period: _kernels().MaternKernel(nu=nu, batch_shape=batch)


def _periodic(batch: torch.Size, period: float) -> Kernel:
    kernel = _kernels().PeriodicKernel(batch_shape=batch).double()
    kernel.period_length = torch.full((*batch, 1, 1), period, dtype=torch.float64)
    return kernel


# (batch shape, period) -> kernel.
_KERNELS: dict[str, Callable[[torch.Size, float], Kernel]] = {
    "rbf": _rbf, "matern12": _matern(0.5), "matern32": _matern(1.5), "matern52": _matern(2.5), "periodic": _periodic,
}


def _positive_range(argument: str, values: float | Sequence[float]) -> tuple[float, float]:
    ends = (values, values) if isinstance(values, int | float) else tuple(values)
    if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends) or not 0 < ends[0] <= ends[1] < math.inf:
        raise InputError.of(argument, repr(values), "a positive number, or (low, high) with 0 < low <= high")
    return float(ends[0]), float(ends[1])
