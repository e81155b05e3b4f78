"""Posterior: what an estimator returns for datasets. Names and constraints outside, flat theta inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from posteria.densities.picked import Picked
from posteria.errors import DataError, InputError
from posteria.labels import Coords, Labels, summarise
from posteria.models.base import Model
from posteria.models.ordering import InOrder
from posteria.models.parameters import FEATURES
from posteria.prediction import Prediction
from posteria.randomness import generator_for
from posteria.types import Dataset, ThetaDistribution

if TYPE_CHECKING:
    from arviz import InferenceData

    from posteria.refinement import Accuracy
    from posteria.trust import Diagnosis, Familiarity, Refined

Seed = int | torch.Generator | None
_LARGEST_SEED = 2**62
_MOMENT_DRAWS, _MOMENT_CHUNK = 4000, 500


class TrainedOn(Protocol):
    """What is known of the datasets an estimator was trained on: (least, most) rows and columns of x."""

    @property
    def rows(self) -> tuple[int, int]: ...

    @property
    def columns(self) -> tuple[int, int]: ...


@dataclass(frozen=True, eq=False)
class Encoding:
    """What an estimator's encoder made of B datasets.

    Attributes:
        summary: (B, E).
        familiarity: what training datasets look like, or None where the estimator does not know.
    """

    summary: Tensor
    familiarity: Familiarity | None = None


@dataclass(frozen=True)
class Label:
    """How far each of B answers can be trusted: its status on the trust ladder, and why."""

    status: tuple[str, ...]
    reason: tuple[str, ...]


class Posterior:
    """The posterior over a model's parameters, given B datasets.

    Args:
        model: gives the names, supports and predictions.
        dataset: what was observed.
        distribution: over flat unconstrained theta, one per dataset.
        info: what the estimator was trained on, for :attr:`notes`; optional.
        coords: labels along the named axes of parameters; see :meth:`with_coords`.
        encoding: what the encoder made of the datasets, for :meth:`diagnose`; optional.
        label: where the trust ladder ended, see :meth:`refine`; optional.

    Indexing gives the posterior of some of the datasets. Features that no dataset has are dropped from
    named values; where datasets of one batch have different features, named arrays keep the features that
    any of them has (at others they hold a constant), and tables drop what a dataset does not have.

    Examples:
        >>> posterior = estimator.posterior(Dataset.of(x, y))            # doctest: +SKIP
        >>> posterior.sample(1000, seed=0)["weights"].shape              # doctest: +SKIP
        torch.Size([1, 1000, 2])
        >>> posterior.summary()                                          # doctest: +SKIP
    """

    def __init__(self, model: Model, dataset: Dataset, distribution: ThetaDistribution,
                 info: TrainedOn | None = None, coords: Coords | None = None, encoding: Encoding | None = None,
                 label: Label | None = None):
        self.model, self.dataset, self.distribution, self.info = model, dataset, distribution, info
        self.encoding, self.label = encoding, label
        self.layout = model.layout_of(dataset)
        self.active = distribution.active
        if tuple(self.active.shape) != (len(dataset), self.layout.size):
            raise InputError.of("distribution", f"(datasets, parameters) {tuple(self.active.shape)}",
                                f"{(len(dataset), self.layout.size)}, those of model and dataset")
        features = dataset.features[:, len(model.extra_columns):]
        shown = features.any(0).nonzero()[:, 0]
        self.labels = Labels(self.layout, shown, features[:, shown], dict(coords or {}))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | slice) -> Posterior:
        """The posterior of one dataset (still a batch, of one) or of a slice of them."""
        chosen = _as_index(index, len(self))
        features = self.dataset.features[chosen][:, len(self.model.extra_columns):]
        kept = features.any(0)[self.labels.shown].tolist()
        coords = {axis: [label for label, keep in zip(labels, kept, strict=True) if keep] if axis == FEATURES
                  else labels for axis, labels in self.labels.coords.items()}
        picked = Picked(self.distribution, chosen)
        encoding = None if self.encoding is None else Encoding(self.encoding.summary[chosen], self.encoding.familiarity)
        label = None if self.label is None else Label(*(tuple(part[i] for i in chosen.tolist()) for part in (
            self.label.status, self.label.reason)))
        return Posterior(self.model, self.dataset[chosen], picked, self.info, coords, encoding, label)

    def __iter__(self) -> Iterator[Posterior]:
        return (self[i] for i in range(len(self)))

    def with_coords(self, **coords: Sequence[str]) -> Posterior:
        """The same posterior with readable names along axes, such as ``features=["age", "height"]``.

        Raises:
            InputError: an axis that the model does not have, or a wrong number of labels.
        """
        for axis, labels in coords.items():
            length = self._axis_length(axis)
            if len(labels) != length:
                raise InputError.of(axis, f"{len(labels)} labels", f"{length} labels")
        merged = {**self.labels.coords, **{axis: [str(v) for v in labels] for axis, labels in coords.items()}}
        return Posterior(self.model, self.dataset, self.distribution, self.info, merged, self.encoding, self.label)

    def with_distribution(self, distribution: ThetaDistribution) -> Posterior:
        """Another distribution over the same parameters, with the same names; without a label."""
        return Posterior(self.model, self.dataset, distribution, self.info, self.labels.coords, self.encoding)

    def in_order(self) -> Posterior:
        """The same posterior with what can change places in a fixed order, where the model has any: mixture components
        and hidden units, in order along the data's widest direction.

        The likelihood does not tell their orders apart, and a posterior that contains all of them has the same mean for
        every component. Densities are not available then.

        Examples:
            >>> estimator.posterior(data).in_order().summary()           # doctest: +SKIP
        """
        if not self.model.exchangeable_axes:
            return self
        ordered = InOrder(self.distribution, self.model, self.dataset)
        return Posterior(self.model, self.dataset, ordered, self.info, self.labels.coords, self.encoding, self.label)

    def with_label(self, status: Sequence[str], reason: Sequence[str]) -> Posterior:
        """The same posterior with a status and a reason per dataset, which tables and ArviZ then show.

        Raises:
            InputError: not one of each per dataset.
        """
        if len(status) != len(self) or len(reason) != len(self):
            raise InputError.of("status", f"{len(status)} and {len(reason)} reasons", f"{len(self)} of each")
        return Posterior(self.model, self.dataset, self.distribution, self.info, self.labels.coords, self.encoding,
                         Label(tuple(status), tuple(reason)))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how the datasets differ from those the estimator was trained on; empty when they do not."""
        if self.info is None:
            return ()
        columns, extra = self.dataset.features.sum(-1), len(self.model.extra_columns)
        few, many = (bound - extra for bound in self.info.columns)
        rows = _outside("n", "rows", self.dataset.observed.sum(-1), *self.info.rows)
        return rows + _outside("features", "features", columns - extra, few, many)

    # -- trust --------------------------------------------------------------------------------
    def diagnose(self, num_samples: int = 1000, seed: int = 0) -> Diagnosis:
        """What is known of how good the posterior is: importance weights, distance from training, predictive checks.

        Args:
            num_samples: draws per dataset, 100 or more.
            seed: of the draws.

        Examples:
            >>> diagnosis = posterior.diagnose()                         # doctest: +SKIP
            >>> diagnosis.pareto_k, diagnosis.log_evidence, diagnosis.to_frame()     # doctest: +SKIP
        """
        from posteria.trust import diagnose

        return diagnose(self, num_samples, seed)

    def refine(self, method: str = "auto", target: Accuracy | None = None, num_samples: int = 1000,
               num_draws: int = 2000, seed: int = 0) -> Refined:
        """The cheapest answer for each dataset that can be trusted, with a label that says which and why.

        Args:
            method: "auto" climbs from q to its weighted draws, to a proposal of the dataset's own, to many short
                chains; "reweight", "laplace" and "mcmc" use those rungs alone; "map" gives modes, points only.
            target: largest error of posterior means and sds, default 0.1 sd and 10%.
            num_samples: draws of q that are weighed, 100 or more.
            num_draws: draws of an answer that is not q's own.
            seed: of all randomness.

        Raises:
            InputError: an unknown method or numbers that are too small.
            UnsupportedError: a simulator with a method other than "auto".

        Examples:
            >>> refined = posterior.refine()                             # doctest: +SKIP
            >>> refined.status, refined.posterior.summary()              # doctest: +SKIP
        """
        from posteria.trust import refine

        return refine(self, method, target, num_samples, num_draws, seed)

    # -- draws and densities ------------------------------------------------------------------
    def sample_theta(self, num_samples: int = 1000, seed: Seed = None) -> Tensor:
        """(B, S, P) draws of flat unconstrained theta; zero at inactive parameters."""
        if num_samples < 1:
            raise InputError.of("num_samples", num_samples, "1 or more")
        with torch.no_grad():
            return self.distribution.rsample(num_samples, _generator(seed, self.dataset.device))

    def sample(self, num_samples: int = 1000, seed: Seed = None) -> dict[str, Tensor]:
        """Named constrained draws, each (B, S, *shape).

        Args:
            num_samples: S, draws per dataset.
            seed: a number or a generator makes the draws repeatable; None takes fresh ones.
        """
        return self.constrain(self.sample_theta(num_samples, seed))

    def constrain(self, theta: Tensor) -> dict[str, Tensor]:
        """Named constrained values (B, S, *shape) of theta (B, S, P), as :meth:`sample` gives them."""
        return {block.name: self.labels.select(block, block.constrained(theta)) for block in self.layout.blocks}

    def log_prob(self, theta: Tensor | Mapping[str, Tensor]) -> Tensor:
        """(B, S) log posterior density, over the active parameters.

        Args:
            theta: flat (B, S, P), for the density in unconstrained space; or named constrained values as
                :meth:`sample` gives them, for the density in constrained space (-inf outside the support).
        """
        if isinstance(theta, Mapping):
            return self._constrained_log_prob(theta)
        if theta.ndim != 3 or theta.shape[::2] != (len(self), self.layout.size):
            raise InputError.of("theta", f"shape {tuple(theta.shape)}",
                                f"shape ({len(self)}, draws, {self.layout.size})")
        with torch.no_grad():
            return self.distribution.log_prob(theta)

    @property
    def mean(self) -> dict[str, Tensor]:
        """Named posterior means (B, *shape) of constrained values, from draws with a fixed seed."""
        return self._moments[0]

    @property
    def sd(self) -> dict[str, Tensor]:
        """Named posterior standard deviations (B, *shape) of constrained values, from draws with a fixed seed."""
        return self._moments[1]

    # -- predictions --------------------------------------------------------------------------
    def predict(self, x: Any = None, num_samples: int = 1000, seed: Seed = None) -> Prediction:
        """Posterior predictive distribution at new rows.

        Args:
            x: a Dataset, or (N, columns) or (B, N, columns) numbers scaled as the dataset was, with the
                dataset's columns; None predicts at the dataset's own rows.
            num_samples: S, draws of theta, each a component of the predictive mixture.
            seed: as for :meth:`sample`.

        Examples:
            >>> prediction = posterior.predict(x_new, seed=0)      # doctest: +SKIP
            >>> prediction.mean, prediction.interval(0.9)          # doctest: +SKIP
        """
        inputs = self.dataset if x is None else self._inputs(x)
        generator = _generator(seed, self.dataset.device)
        theta = self.sample_theta(num_samples, generator)
        draw_seed = int(torch.randint(_LARGEST_SEED, (1,), generator=generator, device=generator.device))
        with torch.no_grad():
            return Prediction(self.model.predict(theta, inputs.beside(theta)), inputs.observed, draw_seed)

    # -- tables -------------------------------------------------------------------------------
    def to_frame(self, num_samples: int = 1000, seed: Seed = None,
                 draws: Mapping[str, Tensor] | None = None) -> pd.DataFrame:
        """Draws as a table: a row per draw, a column per named scalar.

        Several datasets give row index (dataset, draw), with NaN where a dataset lacks a feature.
        ``draws`` (as :meth:`sample` gives them, or in other units) replaces fresh ones.
        """
        frames = self.labels.frames(self.sample(num_samples, seed) if draws is None else draws)
        if len(frames) == 1:
            return frames[0].rename_axis("draw")
        return pd.concat(frames, keys=range(len(frames)), names=["dataset", "draw"])

    def summary(self, quantiles: Sequence[float] = (0.025, 0.5, 0.975), num_samples: int = _MOMENT_DRAWS,
                seed: Seed = 0, draws: Mapping[str, Tensor] | None = None) -> pd.DataFrame:
        """Mean, sd and quantiles of every named scalar; inactive ones are dropped.

        Returns:
            Row index ``parameter``, or (``dataset``, ``parameter``) for several datasets. After :meth:`refine` there
            is a column ``status``.
        """
        if not quantiles or not all(0 <= q <= 1 for q in quantiles):
            raise InputError.of("quantiles", repr(tuple(quantiles)), "numbers from 0 to 1")
        frames = self.labels.frames(self.sample(num_samples, seed) if draws is None else draws)
        tables = [summarise(frame, quantiles) for frame in frames]
        if self.label is not None:
            tables = [table.assign(status=status) for table, status in zip(tables, self.label.status, strict=True)]
        return tables[0] if len(tables) == 1 else pd.concat(tables, keys=range(len(tables)), names=["dataset"])

    def to_arviz(self, num_samples: int = 1000, seed: Seed = 0, predictive: bool = False) -> InferenceData:
        """ArviZ ``InferenceData``: groups ``posterior``, ``observed_data``, ``constant_data`` (x).

        Dimensions are named after the axes of the parameters; several datasets add a dimension
        ``dataset``, with NaN where a dataset lacks a feature or a row. After :meth:`refine` the attributes of the
        whole say ``status`` and ``reason`` per dataset.

        Args:
            num_samples: draws, in one chain.
            seed: as for :meth:`sample`.
            predictive: add the group ``posterior_predictive``, sampled at the dataset's own rows.
        """
        from posteria.arviz_export import inference_data

        return inference_data(self, num_samples, seed, predictive)

    def __repr__(self) -> str:
        return f"Posterior({self.model.name}, {len(self)} datasets, {int(self.active[0].sum())} parameters)"

    # -- inside -------------------------------------------------------------------------------
    @cached_property
    def _moments(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Means and sds in double precision, chunk by chunk so that large batches fit in memory."""
        generator = _generator(0, self.dataset.device)
        chunk = self.sample(_MOMENT_CHUNK, generator)
        origin = {name: value.double().mean(1, keepdim=True) for name, value in chunk.items()}
        first = {name: torch.zeros_like(value[:, 0]) for name, value in origin.items()}
        second = {name: torch.zeros_like(value[:, 0]) for name, value in origin.items()}
        for _ in range(_MOMENT_DRAWS // _MOMENT_CHUNK):
            for name, value in chunk.items():
                off = value.double() - origin[name]
                first[name] += off.sum(1) / _MOMENT_DRAWS
                second[name] += (off**2).sum(1) / _MOMENT_DRAWS
            chunk = self.sample(_MOMENT_CHUNK, generator)
        unbiased = _MOMENT_DRAWS / (_MOMENT_DRAWS - 1)
        kind = {name: value.dtype for name, value in chunk.items()}
        mean = {name: (origin[name][:, 0] + first[name]).to(kind[name]) for name in kind}
        variance = {name: (second[name] - first[name] ** 2).clamp(min=0) * unbiased for name in kind}
        return mean, {name: value.sqrt().to(kind[name]) for name, value in variance.items()}

    def _constrained_log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        active = self.active[:, None]
        origin = torch.zeros(self.layout.size, dtype=self.dataset.x.dtype, device=self.dataset.device)
        fillers = self.layout.constrain(origin)
        wide = {block.name: self.labels.widen(block, values[block.name], fillers[block.name])
                for block in self.layout.blocks if block.name in values}
        theta = self.layout.unconstrain(wide | {name: values[name] for name in values if name not in wide})
        theta = torch.where(active, theta, 0.0)
        inside = torch.isfinite(theta).all(-1)
        theta = torch.where(inside[..., None], theta, 0.0)
        density = self.log_prob(theta) - self._log_jacobian(theta)
        return torch.where(inside, density, -torch.inf)

    def _log_jacobian(self, theta: Tensor) -> Tensor:
        """(B, S) log |d constrained / d theta| over the active parameters."""
        total = theta.new_zeros(theta.shape[:2])
        for block in self.layout.blocks:
            free = block.take(theta)
            terms = block.bijection.log_abs_det_jacobian(free, block.constrained(theta))
            if tuple(terms.shape[2:]) == block.flat_shape:  # entrywise; coupled entries are always active
                present = self.active[:, None, block.span].reshape(len(self), 1, *block.flat_shape)
                terms = torch.where(present, terms, 0.0)
            total = total + terms.reshape(*theta.shape[:2], -1).sum(-1)
        return total

    def _inputs(self, x: Any) -> Dataset:
        """x as a batch of datasets with the columns that theta is laid out for."""
        given = x if isinstance(x, Dataset) else Dataset.of(x)
        given = given.to(self.dataset.device)
        columns, real = self.dataset.x.shape[-1], self._columns
        if given.x.shape[-1] not in (columns, len(real)):
            raise DataError.of("x", f"{given.x.shape[-1]} columns", f"{len(real)} columns, those of the dataset")
        if len(given) not in (1, len(self)):
            raise DataError.of("x", f"{len(given)} datasets", f"1 or {len(self)} datasets")
        values = given.x.to(self.dataset.x.dtype)
        if values.shape[-1] != columns:
            wide = values.new_zeros(*values.shape[:2], columns)
            values = wide.index_copy(-1, real, values)
        rows = values.shape[1]
        values = values.expand(len(self), rows, columns) * self.dataset.features[:, None]
        return Dataset(values, None, given.observed.expand(len(self), rows), self.dataset.features)

    @property
    def _columns(self) -> Tensor:
        """Columns of x that at least one dataset has."""
        return self.dataset.features.any(0).nonzero()[:, 0]

    def _axis_length(self, axis: str) -> int:
        for block in self.layout.blocks:
            if axis in block.parameter.shape:
                return len(self.labels.axis(block, block.parameter.shape.index(axis)))
        named = sorted({a for b in self.layout.blocks for a in b.parameter.shape if isinstance(a, str)})
        raise InputError.of("axis", repr(axis), f"one of {named}")


def _generator(seed: Seed, device: torch.device) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    if seed is None:
        fresh = torch.Generator(device=device)
        fresh.seed()
        return fresh
    return generator_for(seed, device=device)


def _as_index(index: int | slice, length: int) -> Tensor:
    places = torch.arange(length)
    if isinstance(index, slice):
        if not len(places[index]):
            raise InputError.of("index", str(index), f"at least one of the {length} datasets")
        return places[index]
    if not -length <= index < length:
        raise IndexError(f"index: got {index}; takes -{length} to {length - 1}")
    return places[index % length][None]


def _outside(argument: str, unit: str, sizes: Tensor, least: int, most: int) -> tuple[str, ...]:
    low, high = int(sizes.min()), int(sizes.max())
    if least <= low and high <= most:
        return ()
    got = f"{low}" if low == high else f"{low} to {high}"
    trained = f"{least}" if least == most else f"{least} to {most}"
    return (f"{argument}: {got} {unit}, outside the {trained} that the estimator was trained on; "
            "the posterior may be wrong",)
