"""Models y ~ head(f(x; theta)): what linear and neural regression and classification share.

Scores are J ᵀ times the head's score, and curvature is Gauss-Newton: Jᵀ H J, with J the Jacobian of the
outputs and H the head's Fisher information (exact for linear outputs, where f has no curvature of its own).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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

# Nodes of an average over one number a row, at least and at most, and twice as many over more numbers. Where rows are
# few they say less, so that the average is over a wider region: about so many nodes times rows.
_LEAST_NODES, _MOST_NODES, _NODES_TIMES_ROWS = 32, 512, 8192
# Numbers that are averaged together: what fits a processor's cache.
_BLOCK_NUMBERS = 2**18


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
                         self._own_terms(line.outputs, dataset, extra)[1]]
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
        score, own = self.head.scores(line.outputs, y, dataset.observed, extra)
        return torch.cat([line.pull_back(score * seen), own], -1)

    @torch.no_grad()
    def likelihood_rows(self, theta: Tensor, dataset: Dataset) -> Tensor:
        line = self.linearize(theta, dataset)
        seen = dataset.observed[:, None, :, None, None].to(theta.dtype)
        extra = self._extra(theta, dataset)
        jacobian = line.jacobian(self.head.root(line.outputs, extra) * seen)
        own = self._own_terms(line.outputs, dataset, extra)[1].mean(1)
        return self._with_own_rows(jacobian.flatten(1, 2) / theta.shape[1] ** 0.5, own)

    def _own_terms(self, outputs: Tensor, dataset: Dataset, extra: Extra,
                   score: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, S, H) score and curvature in the head's own parameters.

        The latter is their information where parameters outnumber rows: there the mode is where the residuals vanish,
        far from the mass, and a search must not hurry towards it. A score that is known already can be given.
        """
        y, observed = _target(dataset), dataset.observed
        score = self.head.own_score(outputs, y, observed, extra) if score is None else score
        information = self.head.own_information(outputs, observed, extra)
        secant = self.head.own_curvature(outputs, y, observed, extra, score, information)
        plenty = dataset.num_observations > 2 * self.active(dataset).sum(-1)
        return score, torch.where(plenty[:, None, None], secant, information)

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
        outputs = line.outputs[:, 0]
        size = outputs.shape[-1]
        unit = torch.eye(size).to(outputs).expand(len(dataset), 1, outputs.shape[1], -1, -1)
        slopes = functional.pad(line.jacobian(unit)[:, 0], (0, len(self.head.parameters)))  # (B, N K, P)
        widths = spread(slopes).unflatten(1, outputs.shape[1:])
        region = _Region(theta, outputs, _root(widths @ widths.mT), self._own_widths(theta, spread, dataset))
        found = [(index, self._average(region[index], num, dataset[index]))
                 for index, num in _node_groups(dataset, size + len(self.head.parameters))]
        order = torch.cat([index for index, _ in found]).argsort()
        pulled, root, score, curvature = (torch.cat(whole)[order] for whole in zip(*(a for _, a in found), strict=True))
        seen = dataset.observed[:, None, :, None].to(theta.dtype)
        rows = line.jacobian(root * seen[..., None])[:, 0]
        score = torch.cat([line.pull_back(pulled * seen)[:, 0], score], -1)
        return Expectation(score, self._with_own_rows(rows, curvature))

    def _average(self, region: _Region, num: int, dataset: Dataset) -> tuple[Tensor, ...]:
        """The outputs' score (B, 1, N, K) and curvature's root (B, 1, N, K, K), averaged over so many nodes.

        And the head's own parameters' score and curvature, (B, H) each.
        """
        size = region.outputs.shape[-1]
        nodes = _nodes(size + region.own_widths.shape[-1], num).to(region.outputs)
        points = region.outputs + torch.einsum("bnkl,ql->qbnk", region.root, nodes[:, :size])
        points = points.transpose(0, 1)  # (B, Q, N, K)
        extra, y = self._extra_at(region, nodes[:, size:], dataset), _target(dataset)
        score, own = self.head.scores(points, y, dataset.observed, extra) if self.head.parameters else (None, None)
        pulled, information = self.head.averages(points, y, extra, score)
        own, curvature = self._own_terms(points, dataset, extra, own)
        return pulled, _root(information), own.mean(1), curvature.mean(1)

    def _own_widths(self, theta: Tensor, spread: Spread, dataset: Dataset) -> Tensor:
        """(B, H) standard deviations of the head's own parameters."""
        layout = self.layout_of(dataset)
        places = torch.tensor([layout[p.name].start for p in self.head.parameters], dtype=torch.long)
        directions = functional.one_hot(places, theta.shape[-1]).to(theta).expand(len(theta), -1, -1)
        return spread(directions).square().sum(-1).sqrt()

    def _extra_at(self, region: _Region, nodes: Tensor, dataset: Dataset) -> Extra:
        """The head's own parameters (B, Q) at the nodes (Q, H)."""
        layout, extra = self.layout_of(dataset), self.column_values(dataset)
        for i, parameter in enumerate(self.head.parameters):
            direction = functional.one_hot(torch.tensor(layout[parameter.name].start), region.theta.shape[-1])
            shifts = (region.own_widths[:, i, None] * nodes[:, i])[..., None] * direction.to(region.theta)
            extra[parameter.name] = layout[parameter.name].constrained(region.theta[:, None] + shifts)
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
        if not self.conjugate(self.layout_of(dataset)).any():
            return super().conditional(theta, dataset)
        design, target, strength = self.regression(theta, dataset)
        return self._given_products(theta, dataset, strength * (design.mT @ design), strength * (design.mT @ target))

    def _given_products(self, theta: Tensor, dataset: Dataset, products: Tensor, pulls: Tensor) -> (
            tuple[Tensor, Tensor]):
        """:meth:`conditional`, by products of the design with itself (B, C, R, R) and the target (B, C, R, 1)."""
        layout, kind = self.layout_of(dataset), theta.dtype
        places = self.conjugate(layout)
        location, scale = (moment[places].double().to(theta.device) for moment in layout.prior_moments)
        active = self.active(dataset)[:, None, places]
        prior = torch.where(active, scale**-2, 1.0)
        factor = cholesky(products + torch.diag_embed(prior))
        mean = location + torch.cholesky_solve(pulls - products @ location[:, None], factor)[..., 0]
        return torch.where(active, mean, 0.0).to(kind), factor.to(kind)

    def regression(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        active = self.active(dataset)[:, None, self.conjugate(self.layout_of(dataset))]
        root = self._root(theta, dataset)
        design, target = self.design(theta, dataset).double(), _target(dataset).double()[..., None]
        design = design if active.all() else design * active[..., None, :]
        # One noise for all rows is taken out of the sums, which draws may then share.
        one = root.new_ones(1, 1, 1, 1)
        within, strength = (one, root.square()) if root.shape[2] == 1 else (root, one)
        if root.shape[2] == 1 and dataset.observed.all():
            return design, target, strength
        within = within * dataset.observed[:, None, :, None]
        return design * within, target * within, strength

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
        return own | self.column_values(dataset)

    def column_values(self, dataset: Dataset) -> dict[str, Tensor]:
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
            check_at_most(dataset, self.head.limit, self.column_values(dataset)[self.head.limit][:, 0])

    def options(self) -> dict[str, Any]:
        return dict(self._options)

    _options: Mapping[str, Any] = {}


def _target(dataset: Dataset) -> Tensor:
    if dataset.y is None:
        raise DataError.of("y", "None", "a target for a regression or classification model")
    # One is in the support of every family, zero is not (and would make gradients NaN, masked or not).
    return torch.where(dataset.observed, dataset.y, 1.0)[:, None]


@dataclass(frozen=True)
class _Region:
    """A normal guess of theta, as the likelihood sees it: its centre (B, P), and what that makes of the outputs.

    Their means are (B, N, K), roots of their covariances (B, N, K, K); of the head's own parameters there are standard
    deviations (B, H).
    """

    theta: Tensor
    outputs: Tensor
    root: Tensor
    own_widths: Tensor

    def __getitem__(self, index: Tensor) -> _Region:
        """That of the datasets (b,)."""
        return _Region(self.theta[index], self.outputs[index], self.root[index], self.own_widths[index])


def _node_groups(dataset: Dataset, dimensions: int) -> Iterator[tuple[Tensor, int]]:
    """Places (b,) of datasets that are averaged together, and over how many nodes.

    A dataset's own rows decide how many, so that neither padding nor the datasets beside it change its answer.
    """
    wanted = (_NODES_TIMES_ROWS / dataset.num_observations.clamp(min=1)).clamp(_LEAST_NODES, _MOST_NODES)
    number = 2 ** wanted.log2().floor().long() * (1 if dimensions == 1 else 2)
    for num in number.unique().tolist():
        together = max(1, _BLOCK_NUMBERS // (num * dimensions * dataset.x.shape[1]))
        for index in (number == num).nonzero()[:, 0].split(together):
            yield index, num


@lru_cache(maxsize=64)
def _nodes(dimensions: int, num: int) -> Tensor:
    """(num, dimensions) equally weighted points of a standard normal, symmetric, with exact second moments.

    Quantiles in one dimension, a Sobol sequence in more. Equal weights suit likelihoods that are nearly steps
    (a small temperature), where Gauss-Hermite nodes lie too far apart.
    """
    if dimensions == 1:
        levels = ((torch.arange(num, dtype=torch.float64) + 0.5) / num)[:, None]
    else:
        levels = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=1).draw(num // 2, dtype=torch.float64)
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
