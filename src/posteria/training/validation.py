"""Figures that say how good an estimator is, on a fixed set of datasets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from posteria.errors import UnsupportedError
from posteria.metrics import elbo, log_predictive_density, monte_carlo_symmetric_kl
from posteria.models.base import Model
from posteria.randomness import generator_for, seeded
from posteria.tasks.base import Task
from posteria.types import Dataset, ThetaDistribution

# Far from any training seed's stream: validation datasets are never trained on.
_SEED_OFFSET = 982_451_653
_HELD_OUT_ROWS = 16


class Estimates(Protocol):
    """The part of an estimator that validation needs."""

    def distribution(self, dataset: Dataset) -> ThetaDistribution:
        """q(theta | D), one per dataset."""
        ...

    def for_model(self, model: Model) -> Estimates:
        """The same networks for another model; itself where it is the one it is made for."""
        ...


@dataclass(frozen=True)
class _Case:
    """A batch: its model, datasets, the same datasets' held-out rows, and the exact posterior where there is one."""

    model: Model
    dataset: Dataset
    held_out: Dataset
    exact: MultivariateNormal | None


class Validation:
    """Validates on a few batches drawn from the task once, with a seed of their own.

    The figures, each where the model allows it:

    - ``symmetric_kl``: half the sum of both divergences between the estimate and the exact posterior,
      per parameter, in nats, by Monte Carlo (:func:`symmetric_kl_to`); 0 is perfect.
    - ``log_predictive``: log density of held-out rows under the posterior predictive, nats per row.
    - ``negative_elbo``: nats per observation.

    Args:
        task: where the datasets come from.
        model: whose posterior is estimated, unless the task brings a model with every batch.
        seed: of the run.
        device: where to compute.
        num_batches, num_datasets, num_samples: batches, datasets in each, draws for each dataset.
    """

    def __init__(self, task: Task, model: Model, seed: int = 0, device: torch.device | str = "cpu",
                 num_batches: int = 4, num_datasets: int = 32, num_samples: int = 32):
        self.num_samples, self.device, self.seed = num_samples, torch.device(device), seed + _SEED_OFFSET
        self._cases = [self._draw(task, model, num_datasets, batch) for batch in range(num_batches)]

    def __call__(self, estimator: Estimates) -> dict[str, float]:
        """The figures, best first: the first one is the headline."""
        with torch.no_grad():
            figures = [self._figures(estimator, case, number) for number, case in enumerate(self._cases)]
        names = dict.fromkeys(name for figure in figures for name in figure)
        return {name: _mean([figure[name] for figure in figures if name in figure]) for name in names}

    def _draw(self, task: Task, model: Model, num_datasets: int, batch: int) -> _Case:
        generator = generator_for(self.seed, batch, self.device)
        picked = task.pick(generator)
        task, model = picked, model if picked is task else picked.model
        rows = _spread(task.rows, batch, parts=4) + _HELD_OUT_ROWS
        dataset, _ = task.draw(num_datasets, generator, self.device, rows=rows)
        context, held_out = split_rows(dataset, rows - _HELD_OUT_ROWS)
        return _Case(model, context, held_out, exact_posterior(model, context))

    def _figures(self, estimator: Estimates, case: _Case, number: int) -> dict[str, float]:
        generator = generator_for(self.seed, 1_000 + number, self.device)
        distribution = estimator.for_model(case.model).distribution(case.dataset)
        theta, log_q = distribution.rsample_and_log_prob(self.num_samples, generator)
        figures = {}
        if case.exact is not None:
            estimate = symmetric_kl_to(case.exact, distribution, case.model, case.dataset, theta, log_q, generator)
            figures["symmetric_kl"] = estimate.mean().item()
        if case.model.has_likelihood:
            figures |= self._likelihood_figures(case, theta, log_q)
        return figures

    def _likelihood_figures(self, case: _Case, theta: Tensor, log_q: Tensor) -> dict[str, float]:
        """Summed on the CPU: not every device has the double precision that metrics sum in."""
        row_log_prob = case.model.row_log_prob(theta, case.held_out).cpu()
        log_predictive = log_predictive_density(row_log_prob, case.held_out.observed.cpu())
        bound = elbo(case.model.log_joint(theta, case.dataset).cpu(), log_q.cpu()).value
        per_row = bound / case.dataset.num_observations.cpu()
        return {"log_predictive": log_predictive.mean().item(), "negative_elbo": -per_row.mean().item()}


def symmetric_kl_to(exact: MultivariateNormal, distribution: ThetaDistribution, model: Model, dataset: Dataset,
                    theta: Tensor, log_q: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) half the sum of both divergences to the exact posterior per active parameter, by Monte Carlo.

    Args:
        exact: posterior over theta; inactive parameters keep their prior.
        distribution: the estimate.
        model, dataset: what the posterior is of.
        theta, log_q: (B, S, P) draws of the estimate and (B, S) their log density.
        generator: of as many exact draws.
    """
    draws = draw_exact(exact, theta.shape[1], generator).to(theta)
    estimate = monte_carlo_symmetric_kl(
        log_q, _exact_log_prob(exact, model, dataset, theta),
        _exact_log_prob(exact, model, dataset, draws), distribution.log_prob(draws), distribution.active.sum(-1))
    return estimate.value


def exact_posterior(model: Model, dataset: Dataset) -> MultivariateNormal | None:
    """The model's exact posterior, or None where it has none."""
    try:
        return model.exact_posterior(dataset)
    except UnsupportedError:
        return None


def draw_exact(exact: MultivariateNormal, num_samples: int, generator: torch.Generator) -> Tensor:
    """(B, S, P) draws of an exact posterior."""
    with seeded(generator):
        return exact.sample(torch.Size((num_samples,))).transpose(0, 1)


def split_rows(dataset: Dataset, rows: int) -> tuple[Dataset, Dataset]:
    """The first ``rows`` rows of every dataset, and the others."""
    return _rows(dataset, slice(None, rows)), _rows(dataset, slice(rows, None))


def _exact_log_prob(exact: MultivariateNormal, model: Model, dataset: Dataset, theta: Tensor) -> Tensor:
    """(B, S) over the active parameters; the others keep their prior, independent of these."""
    prior = model.layout_of(dataset).log_prior(theta, ~model.active(dataset)[:, None])
    return exact.log_prob(theta.transpose(0, 1).to(exact.mean)).T - prior


def _rows(dataset: Dataset, rows: slice) -> Dataset:
    y = None if dataset.y is None else dataset.y[:, rows]
    return Dataset(dataset.x[:, rows], y, dataset.observed[:, rows], dataset.features)


def _spread(bounds: tuple[int, int], index: int, parts: int) -> int:
    """The middle of one of equal parts of a range, so that sizes are all looked at."""
    low, high = bounds
    return round(low + (high - low) * ((index % parts) + 0.5) / parts)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
