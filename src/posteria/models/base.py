"""Model: a prior and a likelihood, over named parameters. Never the neural network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from posteria.errors import DataError, InputError, UnsupportedError
from posteria.models.blocks import in_blocks
from posteria.models.parameters import Layout, Parameter
from posteria.models.rectified import Rectified
from posteria.randomness import randn
from posteria.types import Dataset, Geometry

Spread = Callable[[Tensor], Tensor]
Target = Literal["none", "real", "class", "count", "positive"]
# Up to this many parameters a dense Hessian by automatic differentiation is affordable; past it, row scores.
_EXACT_HESSIAN_PARAMETERS = 64


class Expectation(NamedTuple):
    """Averages over a normal: score (B, P); curvature as rows J (B, M, P) with Jᵀ J, and a diagonal (B, P) on top."""

    score: Tensor
    rows: Tensor
    diagonal: Tensor | None = None


class Model(ABC):
    """Base class: a subclass names its parameters and gives the row-wise likelihood, simulation, prediction.

    Flattening, bijections, priors, masks, scores and curvatures come from here (by automatic
    differentiation; a subclass that knows better overrides the ``likelihood_*`` methods).

    Class attributes:
        name: its key in the registry and in checkpoints.
        target: what y is: "none", "real", "class" (0..K-1), "count" or "positive".
        extra_columns: leading columns of x that are not features (an exposure, say).
        num_classes: number of classes when y is a class index, else 0.
        has_likelihood: False for a simulator.
        exchangeable_axes: parameter axes (mixture components, hidden units) along which a joint permutation
            of all blocks leaves the likelihood unchanged.
        hyperparameters: names of the few parameters given which all others are nearly normal a posteriori, such as
            the scales of a hierarchical model; empty where there are none. Refinement proposes them first.
        normal_given_hyperparameters: the likelihood is that of a linear model with normal noise in all others, so that
            with normal priors they are exactly normal given the hyperparameters.
        independent_axis: the parameter axis (groups) whose entries are independent a posteriori given the
            hyperparameters and the parameters off that axis; empty where there is none.
        separate_entries: there is such an axis, every row's likelihood depends on the own parameters of one of its
            entries, and :meth:`likelihood_by_entry` is known.
        separate_units: the only exchangeable axis is one of hidden units, of which each has a parameter that
            :meth:`conjugate` names, in the axis' order; its column of :meth:`regression`'s design depends on the unit's
            own parameters alone.
    """

    name: ClassVar[str] = ""
    target: Target = "real"
    extra_columns: tuple[str, ...] = ()
    num_classes: int = 0
    has_likelihood: bool = True
    exchangeable_axes: tuple[str, ...] = ()
    hyperparameters: tuple[str, ...] = ()
    normal_given_hyperparameters: bool = False
    independent_axis: str = ""
    separate_entries: bool = False
    separate_units: bool = False
    # The curvature of the likelihood (Gauss-Newton, Fisher), together with that of a normal prior, is positive definite
    # wherever it is evaluated.
    curvature_is_positive_with_prior: bool = False

    def __init__(self, parameters: tuple[Parameter, ...], axes: Mapping[str, int] | None = None,
                 priors: Mapping[str, Distribution] | None = None):
        self.axes = dict(axes or {})
        self.parameters = _with_priors(parameters, priors or {})
        self._layouts: dict[int, Layout] = {}
        # Kept by :func:`posteria.models.whitened.whitened`.
        self.in_normal_units: Model | None = None

    # -- parameters ---------------------------------------------------------------------------
    def layout(self, num_columns: int) -> Layout:
        """The flat layout for datasets with this many columns of x."""
        num_features = num_columns - len(self.extra_columns)
        if num_features < 1:
            raise DataError.of("x", f"{num_columns} columns", f"{self.extra_columns} and at least one feature")
        if num_features not in self._layouts:
            self._layouts[num_features] = Layout(self.parameters, self.axes, num_features)
        return self._layouts[num_features]

    def forget_layouts(self) -> None:
        """Lay parameters out anew: for a copy whose parameters were changed."""
        self._layouts, self.in_normal_units = {}, None

    def layout_of(self, dataset: Dataset) -> Layout:
        """The flat layout for these datasets."""
        return self.layout(dataset.x.shape[-1])

    def active(self, dataset: Dataset) -> Tensor:
        """(B, P) bool: the parameters that the dataset's real features use."""
        return self.layout_of(dataset).active(dataset.features[:, len(self.extra_columns):])

    def sample_prior(self, dataset: Dataset, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) draws from the prior."""
        return self.layout_of(dataset).sample_prior((len(dataset), num_samples), generator, dataset.device)

    def log_prior(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, S) log prior of theta (B, S, P), over the active parameters, in unconstrained space."""
        return self.layout_of(dataset).log_prior(theta, self.active(dataset)[:, None])

    # -- likelihood ---------------------------------------------------------------------------
    @abstractmethod
    def row_log_prob(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, S, N) log p(row | theta) for theta (B, S, P); values at padded rows are ignored."""

    def log_likelihood(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, S) log p(D | theta) for theta (B, S, P): every draw against its own dataset."""
        self._check_theta(theta, dataset)
        return in_blocks(self._summed, theta, dataset)[0]

    def _summed(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor]:
        rows = self.row_log_prob(theta, dataset)
        return (torch.where(dataset.observed[:, None], rows, 0.0).sum(-1),)

    def log_joint(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, S) log prior + log likelihood in unconstrained space."""
        return self.log_prior(theta, dataset) + self.log_likelihood(theta, dataset)

    def likelihood_score(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        """Log likelihood (B, C) and its gradient (B, C, P) at theta (B, C, P), both differentiable."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            point = theta if theta.requires_grad else theta.detach().requires_grad_()
            log_likelihood = self.log_likelihood(point, dataset)
            (score,) = torch.autograd.grad(log_likelihood.sum(), point, create_graph=differentiable)
        return (log_likelihood, score) if differentiable else (log_likelihood.detach(), score.detach())

    def likelihood_gradient(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, C, P) the score of :meth:`likelihood_score` alone, for samplers, which do without the rest."""
        return self.likelihood_score(theta, dataset)[1]

    def likelihood_geometry(self, theta: Tensor, dataset: Dataset) -> Geometry:
        """Log likelihood, score and diagonal curvature at theta (B, C, P); all but the curvature differentiable."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            point = theta if theta.requires_grad else theta.detach().requires_grad_()
            log_likelihood = self.log_likelihood(point, dataset)
            (score,) = torch.autograd.grad(log_likelihood.sum(), point, create_graph=True)
            curvature = self._dense_curvature(point, score, dataset).diagonal(dim1=-2, dim2=-1).abs()
        if differentiable:
            return Geometry(log_likelihood, score, curvature)
        return Geometry(log_likelihood.detach(), score.detach(), curvature)

    def likelihood_precision(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, P, P) negative Hessian of the log likelihood, or a positive stand-in, averaged over theta (B, C, P).

        Carries no gradient.
        """
        with torch.enable_grad():
            point = theta.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.log_likelihood(point, dataset).sum(), point, create_graph=True)
            return self._dense_curvature(point, score, dataset).mean(1)

    def likelihood_rows(self, theta: Tensor, dataset: Dataset) -> Tensor | None:
        """(B, M, P) J with Jᵀ J the curvature averaged over theta (B, C, P), where the model has such a root."""
        return None

    def likelihood_blocks(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None:
        """Score (B, C, P) and curvature, among all but hyperparameters, at each theta (B, C, P); or None.

        For models with an :attr:`independent_axis` of G entries, along which E parameters each lie; K lie off it. Both
        in the order of the flat vector; no gradient.

        Returns:
            The score; and the curvature between the parameters off the axis (B, C, K, K), between those and an entry's
            (B, C, G, E, K), and within an entry (B, C, G, E, E).
        """
        return None

    def likelihood_by_entry(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, C, G) log likelihood of the rows of each entry of the :attr:`independent_axis`, at each theta (B, C, P).

        Raises:
            UnsupportedError: unless :attr:`separate_entries`.
        """
        raise UnsupportedError(f"{self.name or type(self).__name__} has no rows that belong to entries of an axis")

    def likelihood_expectation(self, theta: Tensor, spread: Spread, dataset: Dataset) -> Expectation | None:
        """Score and curvature averaged over a normal around theta (B, P), or None.

        For models where that average is cheap and exact (one-dimensional integrals per row); no gradient.
        ``spread`` maps rows J (B, M, P) to J L with L Lᵀ the normal's covariance.
        """
        return None

    # -- parameters that can be integrated out ------------------------------------------------
    def conjugate(self, layout: Layout) -> Tensor:
        """(P,) bool: the parameters whose posterior is normal, and known, given the others; none by default."""
        return torch.zeros(layout.size, dtype=torch.bool)

    def conditional(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        """That posterior given the others' values in theta (B, C, P); differentiable in them.

        Returns:
            Its mean (B, C, R), zero at inactive parameters, and the lower Cholesky factor of its precision
            (B, C, R, R), with identity rows and columns there.

        Raises:
            UnsupportedError: :meth:`conjugate` names none.
        """
        raise UnsupportedError(f"{self.name or type(self).__name__} has no parameters whose posterior given the others "
                               "is known")

    def regression(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        """The linear regression that :meth:`conditional` is the answer of, given the others' values in theta (B, C, P).

        Returns:
            Its design (B, C or 1, N, R), target (B, C or 1, N, 1), zero where no row is observed, and precision of the
            noise of both (B or 1, C or 1, 1, 1), in double precision.

        Raises:
            UnsupportedError: :meth:`conjugate` names no parameters.
        """
        raise UnsupportedError(f"{self.name or type(self).__name__} has no parameters in which it is a regression")

    def rectified(self, theta: Tensor, dataset: Dataset) -> Rectified | None:
        """:meth:`regression` of one dataset, where its design is rectified lines of one feature; else None."""
        return None

    def _dense_curvature(self, point: Tensor, score: Tensor, dataset: Dataset) -> Tensor:
        """(B, C, P, P), detached: exact negative Hessian when small, else the sum of outer row scores."""
        size = point.shape[-1]
        if size > _EXACT_HESSIAN_PARAMETERS:
            rows = self._row_scores(point, dataset)
            return rows.mT @ rows
        if not score.requires_grad:  # a likelihood linear in theta
            return torch.zeros(*point.shape, size, dtype=point.dtype, device=point.device)
        basis = torch.eye(size, dtype=point.dtype, device=point.device)[:, None, None].expand(-1, *point.shape)
        (columns,) = torch.autograd.grad(score, point, basis, is_grads_batched=True, retain_graph=True,
                                         allow_unused=True, materialize_grads=True)
        hessian = columns.movedim(0, -1).detach()
        return -0.5 * (hessian + hessian.mT)

    def _row_scores(self, point: Tensor, dataset: Dataset) -> Tensor:
        """(B, C, N, P) gradient of every row's log density."""
        rows = torch.where(dataset.observed[:, None], self.row_log_prob(point, dataset), 0.0)
        basis = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
        basis = basis[:, None, None].expand(-1, *rows.shape[:-1], -1)
        (scores,) = torch.autograd.grad(rows, point, basis, is_grads_batched=True, retain_graph=True)
        return scores.movedim(0, -2).detach()

    # -- simulation and prediction ------------------------------------------------------------
    def draw_inputs(self, num_datasets: int, rows: int, columns: int, generator: torch.Generator | None,
                    device: torch.device | str = "cpu") -> Tensor:
        """(B, N, D) inputs for simulation: standard normal by default."""
        return randn(num_datasets, rows, columns, like=torch.zeros((), device=device), generator=generator)

    @abstractmethod
    def simulate(self, theta: Tensor, inputs: Dataset, generator: torch.Generator | None = None) -> Dataset:
        """Datasets drawn at theta (B, P), with the inputs' x (where the model conditions on it) and masks."""

    @abstractmethod
    def predict(self, theta: Tensor, dataset: Dataset) -> Distribution:
        """Distribution of a new observation at each row of x, batch shape (B, S, N), for theta (B, S, P)."""

    def exact_posterior(self, dataset: Dataset) -> MultivariateNormal:
        """The exact posterior over theta (B, P), where it is known; inactive parameters keep their prior.

        Raises:
            UnsupportedError: this model has none.
        """
        raise UnsupportedError(f"{self.name or type(self).__name__} has no exact posterior in closed form")

    def in_units(self, draws: Mapping[str, Tensor], x_location: Tensor, x_scale: Tensor, y_location: float,
                 y_scale: float) -> dict[str, Tensor] | None:
        """Constrained draws fitted to standardised data, for the data in their own units; None where there are none.

        Args:
            draws: named values (..., *shape).
            x_location, x_scale: (F,) of the features: own units = location + scale * standardised.
            y_location, y_scale: of the target.
        """
        return None

    # -- configuration ------------------------------------------------------------------------
    def options(self) -> dict[str, Any]:
        """Keyword arguments (JSON values) that build this model again, priors apart."""
        return {}

    def check(self, dataset: Dataset) -> None:
        """Raise a DataError when the dataset cannot come from this model."""
        if self.target == "none" and dataset.y is not None:
            raise DataError.of("y", "a target", f"None: {self.name} models x alone")
        if self.target != "none" and dataset.y is None:
            raise DataError.of("y", "None", f"a target of kind {self.target!r} for {self.name}")
        if self.target in ("class", "count") and dataset.y is not None:
            self._check_whole(torch.where(dataset.observed, dataset.y, 0.0))
        if self.target == "positive" and dataset.y is not None and (dataset.observed & (dataset.y <= 0)).any():
            raise DataError.of("y", "values that are zero or negative", "positive values")
        self.layout_of(dataset)

    def _check_whole(self, y: Tensor) -> None:
        if ((y < 0) | (y != y.round())).any():
            raise DataError.of("y", "values that are negative or not whole", f"{self.target} values 0, 1, 2, ...")
        if self.num_classes and y.max() >= self.num_classes:
            raise DataError.of("y", f"class {int(y.max())}", f"classes 0 to {self.num_classes - 1}")

    def _check_theta(self, theta: Tensor, dataset: Dataset) -> None:
        size = self.layout_of(dataset).size
        if theta.ndim != 3 or theta.shape[0] != len(dataset) or theta.shape[-1] != size:
            raise InputError.of("theta", f"shape {tuple(theta.shape)}", f"shape ({len(dataset)}, draws, {size})")


def _with_priors(parameters: tuple[Parameter, ...], priors: Mapping[str, Distribution]) -> tuple[Parameter, ...]:
    unknown = sorted(set(priors) - {p.name for p in parameters})
    if unknown:
        raise InputError.of("priors", str(unknown), f"names among {[p.name for p in parameters]}")
    return tuple(Parameter(p.name, p.shape, p.support, priors.get(p.name, p.prior)) for p in parameters)
