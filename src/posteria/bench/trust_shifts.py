"""Datasets unlike the training data, for `posteria bench trust`.

A shift changes a batch of simulated datasets, whose theta (B, P) is known; what is then asked for is the posterior of
the assumed model, wrong as that model may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posteria.bench.setups import ROWS
from posteria.errors import UnsupportedError
from posteria.models import Model
from posteria.randomness import generator_for
from posteria.tasks import OtherModelTask, SimulatedTask
from posteria.types import Dataset

Change = Callable[[Model, Dataset, Tensor, torch.Generator], Dataset]
_SEED = 2_502_066_012
_BATCH = 10
_SCALE = 5.0
_SHARE_OF_OUTLIERS, _FAR = 0.05, 20.0
_CORRELATION = 0.95
_LARGEST_RATE = 1e3


def _as_it_is(model: Model, dataset: Dataset, theta: Tensor, generator: torch.Generator) -> Dataset:
    return dataset


def _scaled(model: Model, dataset: Dataset, theta: Tensor, generator: torch.Generator) -> Dataset:
    scaled = _with_features(model, dataset, _SCALE * _features(model, dataset))
    return replace(scaled, y=_SCALE * _y(scaled)) if model.target == "real" else scaled


def _heavy_tails(model: Model, dataset: Dataset, theta: Tensor, generator: torch.Generator) -> Dataset:
    """Student's t with two degrees on top, in units of the model's noise."""
    if model.target == "real":
        return replace(dataset, y=_y(dataset) + _noise_sd(model, dataset, theta) * _student(_y(dataset), generator))
    features = _features(model, dataset)
    return _with_features(model, dataset, features + _student(features, generator))


def _outliers(model: Model, dataset: Dataset, theta: Tensor, generator: torch.Generator) -> Dataset:
    """Five rows of a hundred, one at least, twenty noise sds off: in y, or in all features where y is no number."""
    chance = torch.rand(dataset.observed.shape, generator=generator)
    hit = (chance < _SHARE_OF_OUTLIERS) | (chance == chance.amin(-1, keepdim=True))
    sign = torch.where(torch.rand(hit.shape, generator=generator) < 0.5, -1.0, 1.0)
    jump = torch.where(hit, _FAR * sign, 0.0)
    if model.target == "real":
        return replace(dataset, y=_y(dataset) + jump * _noise_sd(model, dataset, theta))
    return _with_features(model, dataset, _features(model, dataset) + jump[..., None])


def _correlated(model: Model, dataset: Dataset, theta: Tensor, generator: torch.Generator) -> Dataset:
    """Features that share 95% of their variance, and y of these; a model of x gets noise common to all columns."""
    features = _features(model, dataset)
    common = torch.randn(*features.shape[:2], 1, generator=generator)
    if model.target == "none":
        return _with_features(model, dataset, features + common)
    mixed = (1 - _CORRELATION)**0.5 * features + _CORRELATION**0.5 * common
    return model.simulate(theta, replace(_with_features(model, dataset, mixed), y=None), generator)


def _other_labels(model: Model, dataset: Dataset, theta: Tensor, generator: torch.Generator) -> Dataset:
    if model.name not in SOURCES:
        return _squared_rate(model, dataset, generator)
    columns = (dataset.x.shape[-1],) * 2
    task = OtherModelTask(model, dict(SOURCES[model.name]), ROWS, columns)
    return task.draw(len(dataset), generator, rows=dataset.x.shape[1])[0]


def _squared_rate(model: Model, dataset: Dataset, generator: torch.Generator) -> Dataset:
    """Counts whose rate is the square of a linear function."""
    if model.target != "count":
        raise UnsupportedError.of("model", repr(model.name), f"a model of counts, or one of {sorted(SOURCES)}")
    features = _features(model, dataset)
    slopes = torch.randn(len(dataset), features.shape[-1], 1, generator=generator)
    rate = (features @ slopes)[..., 0].square().clamp(max=_LARGEST_RATE)
    return replace(dataset, y=torch.poisson(rate, generator=generator))


# Assumed model -> what makes the data in its place.
SOURCES: Mapping[str, Mapping[str, Any]] = {
    "gaussian_mean": {"name": "gaussian_mixture", "options": {"components": 3}},
    "gaussian_mixture": {"name": "gaussian_mean"},
    "linear_regression": {"name": "neural_regression", "options": {"activation": "tanh"}},
    "neural_regression": {"name": "linear_regression", "options": {"noise": 0.25}},
    "linear_classification": {"name": "neural_classification", "options": {"activation": "tanh", "classes": 2}},
}


@dataclass(frozen=True)
class Shift:
    """A way in which datasets are unlike the training data.

    Attributes:
        title: readable.
        change: what is done to simulated datasets.
        rows: (least, most) observations.
        least_features: it means nothing with fewer.
    """

    title: str
    change: Change = _as_it_is
    rows: tuple[int, int] = ROWS
    least_features: int = 1


IN_DISTRIBUTION = "in_distribution"
SHIFTS: Mapping[str, Shift] = {
    IN_DISTRIBUTION: Shift("In distribution"),
    "scale_x5": Shift("All real numbers times 5", _scaled),
    "heavy_tails": Shift("Heavy-tailed noise: Student's t with 2 degrees of freedom on top", _heavy_tails),
    "outliers": Shift("5% of rows 20 noise sds off", _outliers),
    "n_8": Shift("8 rows", rows=(8, 8)),
    "n_1000": Shift("1,000 rows", rows=(1000, 1000)),
    "correlated": Shift("Features that share 95% of their variance", _correlated, least_features=2),
    "other_labels": Shift("Data of another model", _other_labels),
}


def draw_shifted(model: Model, columns: int, shift: Shift, count: int, seed: int = 0) -> Dataset:
    """``count`` datasets, padded to the most rows; a batch of ten shares its number of rows.

    Args:
        model: the assumed model, which simulates what is shifted.
        columns: of x, extra columns included.
        shift: what is done to them.
        count: B.
        seed: of all randomness. Datasets of a seed are the first ones of a larger count.
    """
    task = SimulatedTask(model, shift.rows, (columns, columns))
    parts = []
    for number in range(-(-count // _BATCH)):
        generator = generator_for(_SEED + seed, number)
        dataset, theta = task.draw(_BATCH, generator)
        parts.append(shift.change(model, dataset, theta, generator))
    rows = max(part.x.shape[1] for part in parts)
    parts = [part.padded(rows, columns) for part in parts]
    y = None if parts[0].y is None else torch.cat([_y(part) for part in parts])
    whole = Dataset(torch.cat([p.x for p in parts]), y, torch.cat([p.observed for p in parts]),
                    torch.cat([p.features for p in parts]))
    return whole[:count]


def _features(model: Model, dataset: Dataset) -> Tensor:
    return dataset.x[..., len(model.extra_columns):]


def _with_features(model: Model, dataset: Dataset, features: Tensor) -> Dataset:
    return replace(dataset, x=torch.cat([dataset.x[..., :len(model.extra_columns)], features], -1))


def _y(dataset: Dataset) -> Tensor:
    assert dataset.y is not None  # of a model with a target
    return dataset.y


def _noise_sd(model: Model, dataset: Dataset, theta: Tensor) -> Tensor:
    """(B, N) of y at the parameters that made it."""
    return model.predict(theta[:, None], dataset).stddev[:, 0]


def _student(like: Tensor, generator: torch.Generator) -> Tensor:
    """t with two degrees of freedom: a normal over the root of an exponential."""
    normal = torch.randn(like.shape, generator=generator)
    return normal / (-torch.rand(like.shape, generator=generator).clamp(min=1e-12).log()).sqrt()
