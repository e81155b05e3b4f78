"""How good an estimator is on fresh datasets simulated from its model: what ``posteria evaluate`` computes.

Each dataset comes with held-out rows from the same parameters. Per draw, a figure is the mean over posterior
draws of the error of predicting with that draw; ensembled, it is the error of the prediction averaged over draws
(arXiv 2502.06601, appendix on metrics). In many dimensions the error per draw rewards over-confidence: read it
beside the log predictive density and the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

from posteria.errors import InputError, UnsupportedError
from posteria.estimator import Estimator
from posteria.models.base import Model
from posteria.randomness import generator_for, seeded
from posteria.tasks import SimulatedTask
from posteria.types import Dataset, ThetaDistribution

LEVELS = (0.5, 0.8, 0.95)
_HELD_OUT_ROWS = 100
# Datasets of one batch have one size; small batches so that many sizes are seen.
_BATCH = 10
_EVALUATION_SALT = 694_847_539
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Measured:
    """A figure averaged over datasets, with its standard error over them."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Evaluation:
    """Figures by name, and on what they were computed."""

    figures: dict[str, Measured]
    num_datasets: int
    num_samples: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """JSON values; every figure as its mean and standard error."""
        return {
            "num_datasets": self.num_datasets, "num_samples": self.num_samples, "rows": list(self.rows),
            "columns": list(self.columns), "held_out_rows": _HELD_OUT_ROWS, "seed": self.seed,
            "metrics": {name: {"mean": f.mean, "standard_error": f.standard_error} for name, f in self.figures.items()},
        }


def evaluate(estimator: Estimator, num_datasets: int = 100, num_samples: int = 100, seed: int = 0,
             rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None,
             progress: Progress | None = None) -> Evaluation:
    """Evaluate an estimator on datasets simulated from its model.

    Figures, where the model allows them:

    - ``l2_per_draw``, ``l2_ensembled``: squared error of held-out observations (summed over columns for a model of
      x alone; to the nearest mean for a mixture).
    - ``accuracy_per_draw``, ``accuracy_ensembled``: of held-out classes.
    - ``log_predictive``: log posterior predictive density of a held-out row, in nats.
    - ``coverage_50``, ``coverage_80``, ``coverage_95``: how often the central interval of the draws holds the
      parameter that generated the data; equals the level for a calibrated estimator.
    - ``symmetric_kl``: half the sum of both divergences to the exact posterior, per parameter.
    - ``exact_...``: the same predictive figures for the exact posterior.

    Args:
        estimator: what to evaluate.
        num_datasets: how many datasets.
        num_samples: posterior draws for each; at least 20.
        seed: of the datasets and of the draws.
        rows, columns: (least, most) rows and columns of x; default those it was trained on.
        progress: called with the number of datasets done after each batch.

    Raises:
        InputError: numbers that are too small.
    """
    if num_datasets < 2:
        raise InputError.of("num_datasets", num_datasets, "2 or more")
    if num_samples < 20:
        raise InputError.of("num_samples", num_samples, "20 or more")
    rows, columns = rows or estimator.info.rows, columns or estimator.info.columns
    vary = "dataset" if estimator.fixed_size else "batch"
    task = SimulatedTask(estimator.model, rows, columns, vary_features=vary)
    collected: dict[str, list[Tensor]] = {}
    for start in range(0, num_datasets, _BATCH):
        generator = generator_for(seed + _EVALUATION_SALT, start, estimator.device)
        for name, values in _batch(estimator, task, min(_BATCH, num_datasets - start), num_samples, generator).items():
            collected.setdefault(name, []).append(values.double().cpu())
        if progress is not None:
            progress(min(start + _BATCH, num_datasets))
    figures = {name: _figure(torch.cat(values)) for name, values in collected.items()}
    return Evaluation(figures, num_datasets, num_samples, rows, columns, seed)


def symmetric_kl(distribution: ThetaDistribution, exact: MultivariateNormal, model: Model, dataset: Dataset,
                 num_samples: int, generator: torch.Generator) -> Tensor:
    """(B,) half the sum of both divergences per active parameter, by Monte Carlo."""
    theta, log_q = distribution.rsample_and_log_prob(num_samples, generator)
    draws = _exact_draws(exact, num_samples, generator).to(theta)
    backward = log_q - _exact_log_prob(exact, model, dataset, theta)
    forward = _exact_log_prob(exact, model, dataset, draws) - distribution.log_prob(draws)
    return 0.5 * (forward + backward).mean(-1) / distribution.active.sum(-1)


def coverage(theta: Tensor, draws: Tensor, active: Tensor, level: float) -> Tensor:
    """(B,) fraction of the active parameters theta (B, P) inside the central interval of draws (B, S, P)."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], device=draws.device, dtype=draws.dtype)
    low, high = torch.quantile(draws, tails, dim=1)
    inside = (theta >= low) & (theta <= high) & active
    return inside.sum(-1) / active.sum(-1)


@torch.no_grad()
def _batch(estimator: Estimator, task: SimulatedTask, count: int, num_samples: int,
           generator: torch.Generator) -> dict[str, Tensor]:
    """Figures per dataset, each (count,)."""
    model, (least, most) = estimator.model, task.rows
    sizes = torch.randint(least, most + 1, (1,), generator=generator, device=generator.device)
    rows = int(sizes)
    both, theta = task.draw(count, generator, estimator.device, rows=rows + _HELD_OUT_ROWS)
    context, held_out = _rows(both, slice(None, rows)), _rows(both, slice(rows, None))
    posterior = estimator.posterior(context)
    draws = posterior.sample_theta(num_samples, generator)
    figures = _predictive(model, draws, held_out)
    figures |= {f"coverage_{level:.0%}".rstrip("%"): coverage(theta, draws, posterior.active, level)
                for level in LEVELS}
    exact = _exact(model, context)
    if exact is not None:
        figures["symmetric_kl"] = symmetric_kl(posterior.distribution, exact, model, context, num_samples, generator)
        exact_draws = _exact_draws(exact, num_samples, generator).to(draws)
        figures |= {f"exact_{name}": values for name, values in _predictive(model, exact_draws, held_out).items()}
    return figures


def _predictive(model: Model, theta: Tensor, held_out: Dataset) -> dict[str, Tensor]:
    """Predictive figures (B,) of draws (B, S, P) on held-out rows."""
    figures = {}
    if model.has_likelihood:
        log_prob = torch.logsumexp(model.row_log_prob(theta, held_out), 1) - math.log(theta.shape[1])
        figures["log_predictive"] = log_prob.mean(-1)
    try:
        distribution = model.predict(theta, held_out)
    except UnsupportedError:  # a simulator
        return figures
    return figures | _errors(distribution, held_out)


def _errors(distribution: Distribution, held_out: Dataset) -> dict[str, Tensor]:
    if isinstance(distribution, Categorical):
        assert held_out.y is not None
        return _accuracies(distribution.probs, held_out.y)
    value = held_out.x if held_out.y is None else held_out.y
    if isinstance(distribution, MixtureSameFamily):
        means = distribution.component_distribution.mean
        squares = (means - value[:, None, :, None]) ** 2
        return {"l2_per_draw": _summed(squares, held_out).amin(-1).mean((1, 2))}
    mean = distribution.mean
    per_draw = _summed((mean - value[:, None]) ** 2, held_out)
    ensembled = _summed((mean.mean(1) - value) ** 2, held_out)
    return {"l2_per_draw": per_draw.mean((1, 2)), "l2_ensembled": ensembled.mean(-1)}


def _accuracies(probabilities: Tensor, y: Tensor) -> dict[str, Tensor]:
    per_draw = probabilities.argmax(-1) == y[:, None]
    ensembled = probabilities.mean(1).argmax(-1) == y
    return {"accuracy_per_draw": per_draw.double().mean((1, 2)), "accuracy_ensembled": ensembled.double().mean(-1)}


def _summed(squares: Tensor, held_out: Dataset) -> Tensor:
    """Sum over the real columns where the observation is a row of x."""
    if held_out.y is not None:
        return squares
    real = held_out.features.view(len(held_out), *[1] * (squares.ndim - 2), -1)
    return torch.where(real, squares, 0.0).sum(-1)


def _exact(model: Model, dataset: Dataset) -> MultivariateNormal | None:
    try:
        return model.exact_posterior(dataset)
    except UnsupportedError:
        return None


def _exact_draws(exact: MultivariateNormal, num_samples: int, generator: torch.Generator) -> Tensor:
    with seeded(generator):
        return exact.sample(torch.Size((num_samples,))).transpose(0, 1)


def _exact_log_prob(exact: MultivariateNormal, model: Model, dataset: Dataset, theta: Tensor) -> Tensor:
    """(B, S) over the active parameters; the others keep their prior, independent of these."""
    prior = model.layout_of(dataset).log_prior(theta, ~model.active(dataset)[:, None])
    return exact.log_prob(theta.transpose(0, 1).to(exact.mean)).T - prior


def _rows(dataset: Dataset, rows: slice) -> Dataset:
    y = None if dataset.y is None else dataset.y[:, rows]
    return Dataset(dataset.x[:, rows], y, dataset.observed[:, rows], dataset.features)


def _figure(values: Tensor) -> Measured:
    return Measured(float(values.mean()), float(values.std() / math.sqrt(len(values))))
