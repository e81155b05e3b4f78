"""Figures of predictions on the held-out folds of real tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal

from posteria.bench.real_tables import TableCases
from posteria.bench.runner import Figures
from posteria.metrics import (
    accuracy_ensembled,
    accuracy_per_draw,
    crps,
    expected_calibration_error,
    l2_ensembled,
    l2_per_draw,
    log_predictive_density,
)
from posteria.models import Model
from posteria.posterior import Posterior
from posteria.randomness import generator_for, seeded
from posteria.types import Dataset

# Draws behind figures per draw and ensembled, as in the paper; and behind proper scores.
NUM_DRAWS, SCORE_DRAWS = 25, 250
DRAW_SEED, _NOISE_SEED = 2_502_066_014, 2_502_066_015
_LEVEL = 0.9
# Between a figure and its table.
AT = "@"
Scores = Mapping[str, Tensor]


@torch.no_grad()
def scores_of_posterior(posterior: Posterior, held_out: Dataset) -> Scores:
    """Figures (B,) of predicting held-out rows with draws of a posterior.

    Args:
        posterior: of B contexts.
        held_out: B datasets with as many columns as the contexts had, or more.
    """
    columns = posterior.dataset.x.shape[-1]
    held_out = held_out.to(posterior.dataset.device)
    wide = held_out.padded(held_out.x.shape[1], columns)
    theta = posterior.sample_theta(SCORE_DRAWS, generator_for(DRAW_SEED, device=wide.device))
    return scores_of_draws(posterior.model, theta, wide)


@torch.no_grad()
def scores_of_draws(model: Model, theta: Tensor, held_out: Dataset) -> Scores:
    """Figures (B,) of predicting held-out rows with draws theta (B, S, P) of the model's parameters.

    One dataset after the other: the hidden units of 250 networks at hundreds of rows then stay in a processor's cache.
    """
    parts = [scores_of(model.predict(theta[i:i + 1], held_out[i:i + 1]), held_out[i:i + 1]) for i in range(len(theta))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def scores_of(prediction: Distribution, held_out: Dataset) -> Scores:
    """Figures (B,) of a predictive mixture.

    Args:
        prediction: S even components of batch shape (B, S, N), normal or of classes; the first 25 are the draws of
            figures per draw and ensembled.
        held_out: B datasets of N rows.
    """
    assert held_out.y is not None
    log_prob = prediction.log_prob(held_out.y[:, None])
    figures = {"log_predictive": log_predictive_density(log_prob, held_out.observed)}
    if isinstance(prediction, Categorical):
        return figures | _of_classes(prediction.probs, held_out)
    assert isinstance(prediction, Normal)
    return figures | _of_numbers(prediction, held_out)


def _of_classes(probs: Tensor, held_out: Dataset) -> dict[str, Tensor]:
    assert held_out.y is not None
    given, few = (held_out.y, held_out.observed), probs[:, :NUM_DRAWS]
    return {"accuracy_per_draw": 100 * accuracy_per_draw(few, *given),
            "accuracy_ensembled": 100 * accuracy_ensembled(few, *given),
            "calibration_error": expected_calibration_error(probs.mean(1), *given)}


def _of_numbers(prediction: Normal, held_out: Dataset) -> dict[str, Tensor]:
    assert held_out.y is not None
    few = prediction.mean[:, :NUM_DRAWS, :, None], held_out.y[..., None], held_out.observed
    with seeded(generator_for(_NOISE_SEED, device=held_out.device)):
        samples = prediction.sample(() if prediction.mean.shape[1] > 1 else (SCORE_DRAWS,))
    samples = samples if samples.ndim == 3 else samples[:, :, 0].transpose(0, 1)
    return {"l2_per_draw": l2_per_draw(*few), "l2_ensembled": l2_ensembled(*few),
            "crps": crps(samples, held_out.y, held_out.observed),
            "coverage_90": 100 * _coverage(prediction, held_out)}


def _coverage(prediction: Normal, held_out: Dataset) -> Tensor:
    """(B,) how often y lies in the central 90% interval of the mixture, by its distribution function."""
    assert held_out.y is not None
    place = prediction.cdf(held_out.y[:, None]).double().mean(1)
    inside = (place - 0.5).abs() <= _LEVEL / 2
    return (inside & held_out.observed).double().sum(-1) / held_out.observed.sum(-1)


def summarise_tables(batches: Iterable[tuple[TableCases, Scores]]) -> Figures:
    """Every figure on average over tables (equal weights) and, as ``figure@table``, of each table.

    A table's mean is over its folds, of the mean over the contexts of a fold; its standard error is the folds'
    standard deviation over the root of their number. Errors of tables are independent. Numbers that are not finite
    become None.
    """
    by_table: dict[str, dict[str, tuple[float, float]]] = {}
    for cases, scores in batches:
        by_table[cases.table] = {name: _over_folds(values.double().cpu(), cases.fold)
                                 for name, values in scores.items()}
    names = list(dict.fromkeys(name for figures in by_table.values() for name in figures))
    averages = {name: _over_tables([figures[name] for figures in by_table.values()]) for name in names}
    parts = {f"{name}{AT}{table}": entry for table, figures in by_table.items() for name, entry in figures.items()}
    return {name: _stored(*entry) for name, entry in (averages | parts).items()}


def _over_folds(values: Tensor, fold: Tensor) -> tuple[float, float]:
    means = torch.stack([values[fold == number].mean() for number in fold.unique()])
    return float(means.mean()), float(means.std() / math.sqrt(len(means))) if len(means) > 1 else math.nan


def _over_tables(entries: list[tuple[float, float]]) -> tuple[float, float]:
    means, errors = zip(*entries, strict=True)
    return sum(means) / len(means), math.hypot(*errors) / len(errors)


def _stored(mean: float, error: float) -> dict[str, float | None]:
    return {"mean": mean if math.isfinite(mean) else None, "standard_error": error if math.isfinite(error) else None}
