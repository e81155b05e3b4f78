"""Models y ~ head(f(x; theta)): what linear and neural regression and classification share.

Scores are J ᵀ times the head's score, and curvature is Gauss-Newton: Jᵀ H J, with J the Jacobian of the
outputs and H the head's Fisher information (exact for linear outputs, where f has no curvature of its own).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional

from posteria.curvature import cholesky
from posteria.errors import DataError
from posteria.models.base import Expectation, Model, Spread
from posteria.models.extra_columns import ExtraColumn, check_at_most
from posteria.models.heads import Extra, GaussianHead, Head
from posteria.models.parameters import Layout, Parameter
from posteria.randomness import seeded
from posteria.types import Dataset, Geometry

_NUM_NODES = 32


class Linearization(Protocol):
    """Outputs at some thetas and the products with their Jacobian J. Q counts the parameters apart from the head's."""

    outputs: Tensor  # (B, S, N, K)

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """(B, S, Q) Jᵀ v for v (B, S, N, K)."""
        ...

    def pull_back_squared(self, root: Tensor) -> Tensor:
        """(B, S, Q) diagonal of Jᵀ root rootᵀ J for root (B, S, N, K, R)."""
        ...

    def jacobian(self, root: Tensor) -> Tensor:
        """(B, S, N * R, Q) rootᵀ J."""
        ...


class OutputModel(Model):
    """A model whose likelihood sees theta only through outputs (B, S, N, K) and a head."""

    curvature_is_positive_with_prior = True
    linear_outputs: ClassVar[bool] = False  # the outputs are linear in theta (not in x)
    linear_blocks: tuple[str, ...] = ()  # the blocks in which they are, whatever the others are

    def __init__(self, head: Head, parameters: tuple[Parameter, ...], axes: Mapping[str, int],
                 priors: Mapping[str, Distribution] | None, columns: tuple[ExtraColumn, ...] = ()):
        self.head = head
        self.target = head.target
        self.columns = (*columns, *head.columns)
        self.extra_columns = tuple(column.name for column in self.columns)
        super().__init__((*parameters, *head.parameters), axes, priors)

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @abstractmethod
    def linearize(self, theta: Tensor, dataset: Dataset) -> Linearization:
        """Outputs and Jacobian products at theta (B, S, P)."""

    def outputs(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, S, N, K) outputs at theta (B, S, P)."""
        return self.linearize(theta, dataset).outputs

    def row_log_prob(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return self.head.log_prob(self.outputs(theta, dataset), _target(dataset), self._extra(theta, dataset))

    def likelihood_score(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        return self._score_along(self.linearize(theta, dataset), theta, dataset)

    def likelihood_geometry(self, theta: Tensor, dataset: Dataset) -> Geometry:
        line = self.linearize(theta, dataset)
        log_likelihood, score = self._score_along(line, theta, dataset)
        seen = dataset.observed[:, None, :, None, None].to(theta.dtype)
        with torch.no_grad():  # a preconditioner; roots of vanishing probabilities have no gradient anyway
            extra = self._extra(theta, dataset)
            curvature = [line.pull_back_squared(self.head.root(line.outputs, extra) * seen),
                         self._own_curvature(line.outputs, dataset, extra)]
        return Geometry(log_likelihood, score, torch.cat(curvature, -1))

    def likelihood_gradient(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return self._gradient_along(self.linearize(theta, dataset), theta, dataset)

    def _score_along(self, line: Linearization, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        log_prob = self.head.log_prob(line.outputs, _target(dataset), self._extra(theta, dataset))
        rows = torch.where(dataset.observed[:, None], log_prob, 0.0)
        return rows.sum(-1), self._gradient_along(line, theta, dataset)

    def _gradient_along(self, line: Linearization, theta: Tensor, dataset: Dataset) -> Tensor:
        extra, y = self._extra(theta, dataset), _target(dataset)
        seen = dataset.observed[:, None, :, None].to(theta.dtype)
        score = [line.pull_back(self.head.score(line.outputs, y, extra) * seen),
                 self.head.own_score(line.outputs, y, dataset.observed, extra)]
        return torch.cat(score, -1)

    @torch.no_grad()
    def likelihood_rows(self, theta: Tensor, dataset: Dataset) -> Tensor:
        line = self.linearize(theta, dataset)
        seen = dataset.observed[:, None, :, None, None].to(theta.dtype)
        extra = self._extra(theta, dataset)
        jacobian = line.jacobian(self.head.root(line.outputs, extra) * seen)
        own = self._own_curvature(line.outputs, dataset, extra).mean(1)
        return self._with_own_rows(jacobian.flatten(1, 2) / theta.shape[1] ** 0.5, own)

    def _own_curvature(self, outputs: Tensor, dataset: Dataset, extra: Extra) -> Tensor:
        """(B, S, H) curvature in the head's own parameters: their information where parameters outnumber rows.

        There the mode is where the residuals vanish, far from the mass, and a search must not hurry towards it.
        """
        secant = self.head.own_curvature(outputs, _target(dataset), dataset.observed, extra)
        plenty = dataset.num_observations > 2 * self.active(dataset).sum(-1)
        information = self.head.own_information(outputs, dataset.observed, extra)
        return torch.where(plenty[:, None, None], secant, information)

    def _with_own_rows(self, jacobian: Tensor, own: Tensor) -> Tensor:
        """Rows of the curvature in all parameters, those of the head's own (B, H) included."""
        if not own.shape[-1]:
            return jacobian
        widened = functional.pad(jacobian, (0, own.shape[-1]))
        return torch.cat([widened, functional.pad(torch.diag_embed(own.sqrt()), (jacobian.shape[-1], 0))], 1)

    @torch.no_grad()
    def likelihood_expectation(self, theta: Tensor, spread: Spread, dataset: Dataset) -> Expectation | None:
        """Averages over the outputs, which are normal when theta is, because they are linear in it."""
        if not self.linear_outputs:
            return None
        line = self.linearize(theta[:, None], dataset)
        outputs, own = line.outputs[:, 0], len(self.head.parameters)
        unit = torch.eye(outputs.shape[-1]).to(outputs).expand(len(dataset), 1, outputs.shape[1], -1, -1)
        slopes = functional.pad(line.jacobian(unit)[:, 0], (0, own))  # (B, N K, P)
        widths = spread(slopes).unflatten(1, outputs.shape[1:])
        nodes = _nodes(outputs.shape[-1] + own).to(outputs)
        points = outputs + torch.einsum("bnkl,ql->qbnk", _root(widths @ widths.mT), nodes[:, :outputs.shape[-1]])
        points = points.transpose(0, 1)  # (B, Q, N, K)
        extra = self._extra_at(theta, spread, nodes[:, outputs.shape[-1]:], dataset)
        return self._average(points, extra, line, dataset)

    def _average(self, points: Tensor, extra: Extra, line: Linearization, dataset: Dataset) -> Expectation:
        """Score and curvature rows from outputs at the nodes (B, Q, N, K)."""
        y, seen = _target(dataset), dataset.observed[:, None, :, None].to(points.dtype)
        pulled, information = self.head.averages(points, y, extra)
        own = self.head.own_score(points, y, dataset.observed, extra).mean(1)
        score = torch.cat([line.pull_back(pulled * seen)[:, 0], own], -1)
        rows = line.jacobian(_root(information) * seen[..., None])[:, 0]
        return Expectation(score, self._with_own_rows(rows, self._own_curvature(points, dataset, extra).mean(1)))

    def _extra_at(self, theta: Tensor, spread: Spread, nodes: Tensor, dataset: Dataset) -> Extra:
        """The head's own parameters (B, Q) at the nodes (Q, H)."""
        layout, extra = self.layout_of(dataset), self._column_values(dataset)
        for i, parameter in enumerate(self.head.parameters):
            place = layout[parameter.name].start
            direction = functional.one_hot(torch.tensor(place), theta.shape[-1]).to(theta).expand(len(theta), 1, -1)
            width = spread(direction).square().sum(-1).sqrt()  # (B, 1)
            shifted = theta[:, None] + (width * nodes[:, i])[..., None] * direction
            extra[parameter.name] = layout[parameter.name].constrained(shifted)
        return extra

    @torch.no_grad()
    def likelihood_precision(self, theta: Tensor, dataset: Dataset) -> Tensor:
        rows = self.likelihood_rows(theta, dataset)
        return rows.mT @ rows

    def design(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, C or 1, N, R) coefficients of the ``linear_blocks`` in the single output, at the others' theta."""
        raise NotImplementedError

    def conjugate(self, layout: Layout) -> Tensor:
        named = torch.zeros(layout.size, dtype=torch.bool)
        if isinstance(self.head, GaussianHead):
            for name in self.linear_blocks:
                named[layout[name].span] = True
        return named if bool(layout.normal[named].all()) else torch.zeros_like(named)

    def conditional(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        """Bayesian linear regression on :meth:`design` (Bishop 2006, eq. 3.50), in double precision inside."""
        self._check_theta(theta, dataset)
        layout, kind = self.layout_of(dataset), theta.dtype
        places = self.conjugate(layout)
        if not places.any():
            return super().conditional(theta, dataset)
        location, scale = (moment[places].double().to(theta.device) for moment in layout.prior_moments)
        active = self.active(dataset)[:, None, places]
        root = self._root(theta, dataset)
        # One noise for all rows is taken out of the sums, which draws may then share.
        one = root.new_ones(())
        within, strength = (one, root.square()) if root.shape[2] == 1 else (root, one)
        within = within * dataset.observed[:, None, :, None]
        design = self.design(theta, dataset).double() * within
        design = design if active.all() else design * active[..., None, :]
        residual = _target(dataset).double()[..., None] * within - design @ location[:, None]
        prior = torch.where(active, scale**-2, 1.0)
        factor = cholesky(strength * (design.mT @ design) + torch.diag_embed(prior))
        mean = location + torch.cholesky_solve(strength * (design.mT @ residual), factor)[..., 0]
        return torch.where(active, mean, 0.0).to(kind), factor.to(kind)

    def _root(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, S, N, 1) one over the noise's standard deviation; (B, S, 1, 1) where it is that of all rows."""
        one_row = theta.new_zeros(*theta.shape[:2], 1, 1)
        return self.head.root(one_row, self._extra(theta, dataset))[..., 0].double()

    def simulate(self, theta: Tensor, inputs: Dataset, generator: torch.Generator | None = None) -> Dataset:
        with seeded(generator):
            y = self.predict(theta[:, None], inputs).sample()[:, 0].to(inputs.x.dtype)
        return Dataset(inputs.x, torch.where(inputs.observed, y, 0.0), inputs.observed, inputs.features)

    def predict(self, theta: Tensor, dataset: Dataset) -> Distribution:
        self._check_theta(theta, dataset)
        return self.head.distribution(self.outputs(theta, dataset), self._extra(theta, dataset))

    def _extra(self, theta: Tensor, dataset: Dataset) -> Extra:
        layout = self.layout_of(dataset)
        own = {p.name: layout[p.name].constrained(theta) for p in self.head.parameters}
        return own | self._column_values(dataset)

    def _column_values(self, dataset: Dataset) -> dict[str, Tensor]:
        """The extra columns by name, each (B, 1, N); padded rows hold a value of the column's support."""
        return {column.name: column.values(dataset, i) for i, column in enumerate(self.columns)}

    def _features(self, dataset: Dataset) -> Tensor:
        """(B, N, D) features without the extra columns, zero where masked."""
        count = len(self.columns)
        return dataset.x[..., count:] * dataset.features[:, None, count:]

    def draw_inputs(self, num_datasets: int, rows: int, columns: int, generator: torch.Generator | None,
                    device: torch.device | str = "cpu") -> Tensor:
        features = super().draw_inputs(num_datasets, rows, columns - len(self.columns), generator, device)
        extra = [column.draw((num_datasets, rows), generator, device)[..., None] for column in self.columns]
        return torch.cat([*extra, features], -1)

    def check(self, dataset: Dataset) -> None:
        super().check(dataset)
        for place, column in enumerate(self.columns):
            column.check(dataset, place)
        if self.head.limit is not None:
            check_at_most(dataset, self.head.limit, self._column_values(dataset)[self.head.limit][:, 0])

    def options(self) -> dict[str, Any]:
        return dict(self._options)

    _options: Mapping[str, Any] = {}


def _target(dataset: Dataset) -> Tensor:
    if dataset.y is None:
        raise DataError.of("y", "None", "a target for a regression or classification model")
    # One is in the support of every family, zero is not (and would make gradients NaN, masked or not).
    return torch.where(dataset.observed, dataset.y, 1.0)[:, None]


@lru_cache(maxsize=16)
def _nodes(dimensions: int) -> Tensor:
    """(Q, dimensions) equally weighted points of a standard normal, symmetric, with exact second moments.

    Quantiles in one dimension, a Sobol sequence in more. Equal weights suit likelihoods that are nearly steps
    (a small temperature), where Gauss-Hermite nodes lie too far apart.
    """
    if dimensions == 1:
        levels = ((torch.arange(_NUM_NODES, dtype=torch.float64) + 0.5) / _NUM_NODES)[:, None]
    else:
        levels = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=1).draw(_NUM_NODES, dtype=torch.float64)
        levels = levels.clamp(1e-4, 1 - 1e-4)
    points = torch.special.ndtri(levels)
    points = torch.cat([points, -points]) if dimensions > 1 else points
    moments = points.mT @ points / len(points)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(moments), points.mT, upper=False).mT


def _root(matrix: Tensor) -> Tensor:
    """Cholesky factor of small positive semi-definite matrices (..., K, K)."""
    if matrix.shape[-1] == 1:
        return matrix.sqrt()
    jitter = 1e-6 * matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + 1e-12
    return torch.linalg.cholesky_ex(matrix + jitter * torch.eye(matrix.shape[-1]).to(matrix))[0]
