"""Dataset, Context and the Protocols that the rooms share.

Shapes: B datasets, N observations, D features (columns of x), S draws, P parameters,
C candidates, E summary width, T token width. Masks are boolean, ``True`` = real.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from posteria.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """A batch of datasets of one size, padded and masked.

    Attributes:
        x: (B, N, D) float. Padding is finite (zero), never NaN.
        y: (B, N) float (class indices for classification), or None.
        observed: (B, N) bool, True = a real row.
        features: (B, D) bool, True = a real column.

    Use :meth:`of` for data from outside: it converts, batches and checks.
    """

    x: Tensor
    y: Tensor | None
    observed: Tensor
    features: Tensor

    def __post_init__(self) -> None:
        if self.x.ndim != 3:
            raise DataError.of("x", f"shape {tuple(self.x.shape)}", "shape (datasets, rows, features)")
        rows, columns = self.x.shape[:2], (self.x.shape[0], self.x.shape[2])
        if self.y is not None and self.y.shape != rows:
            raise DataError.of("y", f"shape {tuple(self.y.shape)}", f"shape {tuple(rows)}, one value per row of x")
        _check_mask("observed", self.observed, rows)
        _check_mask("features", self.features, columns)

    @classmethod
    def of(cls, x: Any, y: Any = None, observed: Any = None, features: Any = None) -> Dataset:
        """Build a checked dataset from arrays, tensors or data frames.

        Args:
            x: (N, D) for one dataset or (B, N, D) for many; numeric.
            y: (N,) or (B, N), numeric; optional.
            observed: mask of real rows, shaped like x without its last axis; default all.
            features: mask of real columns, (D,) or (B, D); default all.

        Raises:
            DataError: wrong shapes, NaN or infinity among the real entries, no row or no column.

        Examples:
            >>> Dataset.of([[0.0], [1.0]], [0.5, 1.5]).x.shape
            torch.Size([1, 2, 1])
        """
        x = _as_float("x", x)
        single = x.ndim == 2
        x = x[None] if single else x
        if x.ndim != 3:
            raise DataError.of("x", f"shape {tuple(x.shape)}", "shape (rows, features) or (datasets, rows, features)")
        batch, rows, columns = x.shape
        if min(batch, rows, columns) == 0:
            raise DataError.of("x", f"shape {tuple(x.shape)}", "at least one dataset, one row and one feature")
        y = None if y is None else _lift(_as_float("y", y), single)
        observed = _mask("observed", observed, (batch, rows), single, x.device)
        features = _mask("features", features, (batch, columns), single, x.device)
        real = observed[:, :, None] & features[:, None, :]
        dataset = cls(torch.where(real, x, 0.0), y, observed, features)
        _check_finite("x", x, real)
        if y is None:
            return dataset
        _check_finite("y", y, observed)
        return replace(dataset, y=torch.where(observed, y, 0.0))

    @property
    def num_observations(self) -> Tensor:
        """(B,) float: number of real rows of each dataset."""
        return self.observed.sum(-1).to(self.x.dtype)

    @property
    def num_features(self) -> Tensor:
        """(B,) long: number of real columns of each dataset."""
        return self.features.sum(-1)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.x.device

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Dataset:
        """The chosen datasets, still a batch."""
        y = None if self.y is None else self.y[index]
        return Dataset(self.x[index], y, self.observed[index], self.features[index])

    def to(self, device: torch.device | str) -> Dataset:
        """The same datasets on another device."""
        y = None if self.y is None else self.y.to(device)
        return Dataset(self.x.to(device), y, self.observed.to(device), self.features.to(device))

    def double(self) -> Dataset:
        """The same datasets in double precision."""
        y = None if self.y is None else self.y.double()
        return Dataset(self.x.double(), y, self.observed, self.features)

    def beside(self, theta: Tensor) -> Dataset:
        """The same datasets, in double precision where theta is: what meets draws must have their precision."""
        return self.double() if theta.dtype == torch.double else self

    def padded(self, rows: int, columns: int) -> Dataset:
        """The same datasets with padding up to ``rows`` × ``columns``."""
        more_rows, more_columns = rows - self.x.shape[1], columns - self.x.shape[2]
        if more_rows < 0 or more_columns < 0:
            raise DataError.of("padded", f"{rows} x {columns}", f"at least {self.x.shape[1]} x {self.x.shape[2]}")
        pad = torch.nn.functional.pad
        y = None if self.y is None else pad(self.y, (0, more_rows))
        x = pad(self.x, (0, more_columns, 0, more_rows))
        return Dataset(x, y, pad(self.observed, (0, more_rows)), pad(self.features, (0, more_columns)))


def _as_float(name: str, values: Any) -> Tensor:
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    try:
        return torch.as_tensor(values).to(torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError.of(name, f"{type(values).__name__} that is not numeric ({error})", "numbers") from error


def _lift(values: Tensor, single: bool) -> Tensor:
    return values[None] if single else values


def _mask(name: str, mask: Any, shape: tuple[int, int], single: bool, device: torch.device) -> Tensor:
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    mask = _lift(torch.as_tensor(mask, device=device), single)
    _check_mask(name, mask, shape)
    return mask


def _check_mask(name: str, mask: Tensor, shape: tuple[int, ...] | torch.Size) -> None:
    if mask.dtype != torch.bool:
        raise DataError.of(name, f"dtype {mask.dtype}", "a boolean mask, True = real")
    if mask.shape != tuple(shape):
        raise DataError.of(name, f"shape {tuple(mask.shape)}", f"shape {tuple(shape)}")


def _check_finite(name: str, values: Tensor, real: Tensor) -> None:
    if values.shape != real.shape:
        raise DataError.of(name, f"shape {tuple(values.shape)}", f"shape {tuple(real.shape)}")
    bad = ~torch.isfinite(values) & real
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise DataError.of(name, f"{int(bad.sum())} NaN or infinite values, the first at {where}", "finite numbers")


@dataclass(frozen=True)
class Geometry:
    """Local shape of a log joint at some points, in prior-whitened parameters.

    Attributes:
        log_density: (B, C) log prior + log likelihood, up to a constant per dataset.
        score: (B, C, P) gradient; zero for inactive parameters.
        curvature: (B, C, P) positive diagonal of the negative Hessian (or of a positive
            stand-in: Gauss-Newton, Fisher), without gradient; one for inactive parameters.
    """

    log_density: Tensor
    score: Tensor
    curvature: Tensor


@runtime_checkable
class Curvature(Protocol):
    """A positive definite matrix (B, P, P) in some form: dense, diagonal plus low rank, or diagonal."""

    def __getitem__(self, index: Tensor) -> Self:
        """That of the chosen datasets."""
        ...

    def put(self, index: Tensor, other: Self) -> Self:
        """The same, but ``other`` for the chosen datasets; both in one form."""
        ...

    def diagonal(self) -> Tensor:
        """(B, P) its diagonal."""
        ...

    def solve(self, right: Tensor, damping: Tensor) -> Tensor:
        """(B, P) (matrix + damping I)^-1 right, for right (B, P) and damping (B,)."""
        ...

    def factor(self) -> Tensor | None:
        """(B, P, P) lower Cholesky factor, or None where the form is not dense."""
        ...


@runtime_checkable
class LogJoint(Protocol):
    """log p(theta) + log p(D | theta) of a batch of datasets, in prior-whitened parameters z.

    theta = location + scale * z, so that z has about zero mean and unit variance under the prior.
    An encoder sees nothing else of a model. Nothing here carries a gradient.
    """

    location: Tensor  # (P,) prior location in theta
    scale: Tensor  # (P,) prior scale in theta
    active: Tensor  # (B, P) bool
    roles: Tensor  # (P,) long: which parameter block
    groups: Mapping[str, Tensor]  # axis name -> (P,) long index along that axis, -1 where it has none
    dataset: Dataset

    def __getitem__(self, index: Tensor) -> LogJoint:
        """That of the chosen datasets."""
        ...

    def score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (B, C) and its gradient (B, C, P) at z (B, C, P); no gradient passes through."""
        ...

    def geometry(self, z: Tensor) -> Geometry:
        """Density, score and diagonal curvature at z (B, C, P)."""
        ...

    def curvature(self, z: Tensor, dense_up_to: int) -> Curvature:
        """Negative Hessian or a positive stand-in at z (B, C, P), averaged over the C points; no gradient.

        Dense up to ``dense_up_to`` parameters; beyond, whatever form the model has.
        """
        ...

    def expectation(self, z: Tensor, spread: Tensor, factor: Tensor | None, dense_up_to: int) -> (
            tuple[Tensor, Curvature] | None):
        """Score (B, P) and curvature averaged over a normal guess, where the model integrates exactly; else None.

        The guess has centre z (B, P) and the precision with Cholesky factor ``factor``, or independent
        entries of standard deviation ``spread`` (B, P).
        """
        ...

    def fixed_noise(self, num: int, seed: int) -> Tensor:
        """(num, P) standard normal numbers, always the same for a seed and a parameter."""
        ...


@dataclass(frozen=True)
class Context:
    """What an encoder hands to a density.

    Attributes:
        summary: (B, E) vector per dataset.
        active: (B, P) bool, True = a parameter of this dataset.
        tokens: (B, P, T) one vector per parameter, or None.
        location: (B, P) where the posterior lies, in theta, or None.
        scale: (B, P) positive scale per parameter, in theta, or None.
        factor: (B, P, P) lower Cholesky factor R of a precision in units of ``scale``, or None:
            theta = location + scale * R^-T eps has covariance scale (R R^T)^-1 scale.
    """

    summary: Tensor
    active: Tensor
    tokens: Tensor | None = None
    location: Tensor | None = None
    scale: Tensor | None = None
    factor: Tensor | None = None


@dataclass(frozen=True)
class ContextSpec:
    """Widths that a density needs to build itself for an encoder.

    Attributes:
        summary_dim: E.
        token_dim: T, or None for an encoder without tokens.
        num_parameters: P (at the maximum number of features), or None when P is free;
            only densities that use tokens can serve a free P.
        located: the context has a location and a scale.
    """

    summary_dim: int
    token_dim: int | None
    num_parameters: int | None
    located: bool = False


@runtime_checkable
class ThetaDistribution(Protocol):
    """A distribution over flat unconstrained theta, one per dataset. Inactive parameters are ignored."""

    @property
    def active(self) -> Tensor:
        """(B, P) bool, True = a parameter of this dataset."""
        ...

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) reparametrised draws; zero at inactive parameters."""
        ...

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        ...

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S), cheaper than the two calls."""
        ...

    def detach(self) -> ThetaDistribution:
        """The same distribution with all its parameters cut from the graph (for path gradients)."""
        ...

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> Tensor | None:
        """(B,) KL to N(location, scale^2) over the active parameters, or None without a closed form."""
        ...


@runtime_checkable
class Terms(Protocol):
    """A log joint that is a sum of functions of single numbers, in prior-whitened parameters z.

    log p(z) + log p(D | z) = -1/2 sum_j pull_j z_j^2 + sum_i f_i(a_i.z + c_i) + constant, with a term per observation
    and one per parameter whose prior is not normal. Nothing here carries a gradient.
    """

    location: Tensor  # (P,) theta = location + scale * z
    scale: Tensor  # (P,)
    active: Tensor  # (B, P) bool
    pull: Tensor  # (P,) positive; one where the prior is normal
    real: Tensor  # (B, M) bool, False = a padded row, or a prior that is normal

    @property
    def directions(self) -> Tensor:
        """(B, M, P) a, zero at inactive parameters."""
        ...

    @property
    def offsets(self) -> Tensor:
        """(B, M) c."""
        ...

    def __getitem__(self, index: Tensor) -> Terms:
        """Those of the chosen datasets."""
        ...

    def values(self, at: Tensor, places: Tensor | None = None) -> Tensor:
        """(B, R, S) f_i at numbers (B, R, S), of the terms ``places`` (B, R), or of all M = R."""
        ...
