"""How good an estimator is on fresh datasets simulated from its model: what ``posteria evaluate`` computes.

Each dataset comes with held-out rows from the same parameters; ``posteria.metrics`` defines the figures. In many
dimensions the error per draw rewards over-confidence: read it beside the log predictive density, the CRPS or the
energy score, and the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, MixtureSameFamily, MultivariateNormal

from posteria.densities.gaussian import GaussianTheta
from posteria.densities.low_rank import LowRankTheta
from posteria.errors import InputError, UnsupportedError
from posteria.estimator import Estimator
from posteria.metrics import (
    accuracy_ensembled,
    accuracy_per_draw,
    crps,
    energy_score,
    expected_calibration_error,
    gaussian_symmetric_kl,
    l2_ensembled,
    l2_nearest,
    l2_per_draw,
    log_predictive_density,
)
from posteria.models.base import Model
from posteria.randomness import generator_for, seeded
from posteria.tasks import SimulatedTask
from posteria.training.validation import draw_exact, exact_posterior, split_rows, symmetric_kl_to
from posteria.types import Dataset, ThetaDistribution

LEVELS = (0.5, 0.8, 0.95)
_HELD_OUT_ROWS = 100
# Datasets of one batch have one size; small batches so that many sizes are seen.
_BATCH = 10
_EVALUATION_SALT = 694_847_539
# Sampled observations have a stream of their own: the same for every posterior, and no other figure depends on them.
_PREDICTIVE_SALT = 32_416_190
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Measured:
    """A figure averaged over datasets, with its standard error over them.

    The spread over datasets contains the Monte Carlo error of each dataset's figure, which is independent from one to
    the next: the standard error covers both.
    """

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
    - ``expected_calibration_error``: of the class probabilities averaged over draws. With 100 held-out rows it is
      above zero for the exact posterior too.
    - ``crps``: of held-out numbers, from sampled observations, in the units of y.
    - ``energy_score``: the same for the rows of a model of x alone.
    - ``log_predictive``: log posterior predictive density of a held-out row, in nats.
    - ``coverage_50``, ``coverage_80``, ``coverage_95``: how often the central interval of the draws holds the
      parameter that generated the data; equals the level for a calibrated estimator.
    - ``symmetric_kl``: half the sum of both divergences to the exact posterior, per parameter; in closed form for
      Gaussian densities, else by Monte Carlo, whose error the standard error over datasets covers.
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
        count, stream = min(_BATCH, num_datasets - start), (seed + _PREDICTIVE_SALT, start)
        for name, values in _batch(estimator, task, count, num_samples, generator, stream).items():
            collected.setdefault(name, []).append(values.double().cpu())
        if progress is not None:
            progress(min(start + _BATCH, num_datasets))
    figures = {name: _figure(torch.cat(values)) for name, values in collected.items()}
    return Evaluation(figures, num_datasets, num_samples, rows, columns, seed)


def symmetric_kl(distribution: ThetaDistribution, exact: MultivariateNormal, model: Model, dataset: Dataset,
                 num_samples: int, generator: torch.Generator) -> Tensor:
    """(B,) half the sum of both divergences per active parameter: closed form for Gaussians, else by Monte Carlo.

    By Monte Carlo, a dataset's figure has a standard error over draws (``posteria.metrics.monte_carlo_symmetric_kl``
    gives it). It is not returned: independent between datasets, it is part of the spread over them, so that the
    standard error of a mean over datasets covers it.

    Args:
        distribution: the estimate.
        exact: posterior over theta; inactive parameters keep their prior.
        model, dataset: what the posterior is of.
        num_samples: draws of each, where there is no closed form.
        generator: of the draws.
    """
    closed = closed_form_symmetric_kl(distribution, exact)
    if closed is not None:
        return closed
    theta, log_q = distribution.rsample_and_log_prob(num_samples, generator)
    return symmetric_kl_to(exact, distribution, model, dataset, theta, log_q, generator)


def closed_form_symmetric_kl(distribution: ThetaDistribution, exact: MultivariateNormal) -> Tensor | None:
    """(B,) as :func:`symmetric_kl` without Monte Carlo error; None for a density that is not Gaussian."""
    if not isinstance(distribution, GaussianTheta | LowRankTheta):
        return None
    precise = _in_double(distribution)
    return gaussian_symmetric_kl(precise.mean, precise.covariance, exact.mean, exact.covariance_matrix,
                                 distribution.active)


def _in_double(distribution: GaussianTheta | LowRankTheta) -> GaussianTheta | LowRankTheta:
    """The same density with its parameters in double precision, so that its covariance is positive definite there."""
    if isinstance(distribution, GaussianTheta):
        return replace(distribution, mean=distribution.mean.double(), scale=distribution.scale.double(),
                       factor=_double(distribution.factor))
    frame = distribution.frame
    frame = replace(frame, location=frame.location.double(), scale=frame.scale.double(), factor=_double(frame.factor))
    return replace(distribution, frame=frame, loadings=distribution.loadings.double())


def _double(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.double()


def coverage(theta: Tensor, draws: Tensor, active: Tensor, level: float) -> Tensor:
    """(B,) fraction of the active parameters theta (B, P) inside the central interval of draws (B, S, P)."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], device=draws.device, dtype=draws.dtype)
    low, high = torch.quantile(draws, tails, dim=1)
    inside = (theta >= low) & (theta <= high) & active
    return inside.sum(-1) / active.sum(-1)


@torch.no_grad()
def _batch(estimator: Estimator, task: SimulatedTask, count: int, num_samples: int,
           generator: torch.Generator, stream: tuple[int, int]) -> dict[str, Tensor]:
    """Figures per dataset, each (count,); ``stream`` names the random numbers of sampled observations."""
    model, (least, most) = estimator.model, task.rows
    sizes = torch.randint(least, most + 1, (1,), generator=generator, device=generator.device)
    rows = int(sizes)
    both, theta = task.draw(count, generator, estimator.device, rows=rows + _HELD_OUT_ROWS)
    context, held_out = split_rows(both, rows)
    posterior = estimator.posterior(context)
    draws = posterior.sample_theta(num_samples, generator)
    figures = _predictive(model, draws, held_out, stream)
    figures |= {f"coverage_{level:.0%}".rstrip("%"): coverage(theta, draws, posterior.active, level)
                for level in LEVELS}
    exact = exact_posterior(model, context)
    if exact is not None:
        figures["symmetric_kl"] = symmetric_kl(posterior.distribution, exact, model, context, num_samples, generator)
        exact_draws = draw_exact(exact, num_samples, generator).to(draws)
        figures |= {f"exact_{name}": values
                    for name, values in _predictive(model, exact_draws, held_out, stream).items()}
    return figures


def _predictive(model: Model, theta: Tensor, held_out: Dataset, stream: tuple[int, int]) -> dict[str, Tensor]:
    """Predictive figures (B,) of draws (B, S, P) on held-out rows."""
    figures = {}
    if model.has_likelihood:
        figures["log_predictive"] = log_predictive_density(model.row_log_prob(theta, held_out), held_out.observed)
    try:
        distribution = model.predict(theta, held_out)
    except UnsupportedError:  # a simulator
        return figures
    if isinstance(distribution, Categorical):
        return figures | _of_classes(distribution.probs, held_out)
    # Rows of x have one distribution: a single one is sampled, which all share.
    sampled = distribution if held_out.y is not None else model.predict(theta, split_rows(held_out, 1)[0])
    return figures | _errors(distribution, held_out) | _scores(sampled, held_out, generator_for(*stream, theta.device))


def _errors(distribution: Distribution, held_out: Dataset) -> dict[str, Tensor]:
    if isinstance(distribution, MixtureSameFamily):
        # Means of rows of x are the same at every row.
        means = distribution.component_distribution.mean
        means = means[:, :, 0] if held_out.y is None else means[..., None]
        return {"l2_per_draw": _finite_only(l2_nearest, means, *_target(held_out))}
    mean = distribution.mean if held_out.y is None else distribution.mean[..., None]
    return {"l2_per_draw": _finite_only(l2_per_draw, mean, *_target(held_out)),
            "l2_ensembled": _finite_only(l2_ensembled, mean, *_target(held_out))}


def _target(held_out: Dataset) -> tuple[Tensor, Tensor, Tensor | None]:
    """What is predicted, (B, N, D) or (B, N, 1), and the masks of its rows and columns."""
    if held_out.y is None:
        return held_out.x, held_out.observed, held_out.features
    return held_out.y[..., None], held_out.observed, None


def _scores(distribution: Distribution, held_out: Dataset, generator: torch.Generator) -> dict[str, Tensor]:
    """Proper scores of sampled observations, for numbers."""
    if isinstance(distribution, Bernoulli):
        return {}
    with seeded(generator):
        samples = distribution.sample()
    if held_out.y is None:
        return {"energy_score": _finite_only(energy_score, samples, *_target(held_out))}
    return {"crps": _finite_only(crps, samples, held_out.y, held_out.observed)}


def _of_classes(probs: Tensor, held_out: Dataset) -> dict[str, Tensor]:
    rest = (held_out.y, held_out.observed)
    return {"accuracy_per_draw": _finite_only(accuracy_per_draw, probs, *rest),
            "accuracy_ensembled": _finite_only(accuracy_ensembled, probs, *rest),
            "expected_calibration_error": _finite_only(expected_calibration_error, probs.mean(1), *rest)}


def _finite_only(metric: Callable[..., Tensor], prediction: Tensor, *rest: Tensor | None) -> Tensor:
    """A figure (B,); NaN for datasets whose prediction overflows, which must not take the others' figures away."""
    finite = prediction.isfinite().flatten(1).all(-1)
    if finite.all():
        return metric(prediction, *rest)
    clean = torch.where(finite.view(-1, *[1] * (prediction.ndim - 1)), prediction, 0.0)
    return torch.where(finite, metric(clean, *rest), torch.nan)


def _figure(values: Tensor) -> Measured:
    return Measured(float(values.mean()), float(values.std() / math.sqrt(len(values))))
