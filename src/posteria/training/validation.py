"""Figures that say how good an estimator is, on a fixed set of datasets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from posteria.errors import UnsupportedError
from posteria.models.base import Model
from posteria.randomness import generator_for
from posteria.tasks.base import Task
from posteria.types import Dataset, ThetaDistribution

# Far from any training seed's stream: validation datasets are never trained on.
_SEED_OFFSET = 982_451_653
_HELD_OUT_ROWS = 16


class Estimates(Protocol):
    """The part of an estimator that validation needs."""

    model: Model

    def distribution(self, dataset: Dataset) -> ThetaDistribution:
        """q(theta | D), one per dataset."""
        ...


@dataclass(frozen=True)
class _Case:
    """A batch: datasets, the same datasets' held-out rows, and the exact posterior where there is one."""

    dataset: Dataset
    held_out: Dataset
    exact: MultivariateNormal | None


class Validation:
    """Validates on a few batches drawn from the task once, with a seed of their own.

    The figures, each where the model allows it:

    - ``symmetric_kl``: half the sum of both divergences between the estimate and the exact posterior,
      per parameter, in nats, by Monte Carlo (arXiv 2502.06601, appendix on metrics); 0 is perfect.
    - ``log_predictive``: log density of held-out rows under the posterior predictive, nats per row.
    - ``negative_elbo``: nats per observation.

    Args:
        task: where the datasets come from.
        model: whose posterior is estimated.
        seed: of the run.
        device: where to compute.
        num_batches, num_datasets, num_samples: batches, datasets in each, draws for each dataset.
    """

    def __init__(self, task: Task, model: Model, seed: int = 0, device: torch.device | str = "cpu",
                 num_batches: int = 4, num_datasets: int = 32, num_samples: int = 32):
        self.num_samples, self.device, self.seed = num_samples, torch.device(device), seed + _SEED_OFFSET
        self._cases = [self._draw(task, model, num_datasets, batch) for batch in range(num_batches)]
        self.model = model

    def __call__(self, estimator: Estimates) -> dict[str, float]:
        """The figures, best first: the first one is the headline."""
        with torch.no_grad():
            figures = [self._figures(estimator, case, number) for number, case in enumerate(self._cases)]
        names = dict.fromkeys(name for figure in figures for name in figure)
        return {name: _mean([figure[name] for figure in figures if name in figure]) for name in names}

    def _draw(self, task: Task, model: Model, num_datasets: int, batch: int) -> _Case:
        generator = generator_for(self.seed, batch, self.device)
        rows = _spread(task.rows, batch, parts=4) + _HELD_OUT_ROWS
        dataset, _ = task.draw(num_datasets, generator, self.device, rows=rows)
        context = _rows(dataset, slice(None, rows - _HELD_OUT_ROWS))
        return _Case(context, _rows(dataset, slice(rows - _HELD_OUT_ROWS, None)), _exact(model, context))

    def _figures(self, estimator: Estimates, case: _Case, number: int) -> dict[str, float]:
        generator = generator_for(self.seed, 1_000 + number, self.device)
        distribution = estimator.distribution(case.dataset)
        theta, log_q = distribution.rsample_and_log_prob(self.num_samples, generator)
        figures = {}
        if case.exact is not None:
            figures["symmetric_kl"] = self._symmetric_kl(distribution, case, theta, log_q)
        if self.model.has_likelihood:
            figures["log_predictive"] = self._log_predictive(theta, case.held_out)
            negative_elbo = log_q - self.model.log_joint(theta, case.dataset)
            figures["negative_elbo"] = (negative_elbo.mean(-1) / case.dataset.num_observations).mean().item()
        return figures

    def _symmetric_kl(self, distribution: ThetaDistribution, case: _Case, theta: Tensor, log_q: Tensor) -> float:
        assert case.exact is not None
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            exact_draws = case.exact.sample(torch.Size((self.num_samples,))).transpose(0, 1).to(theta)
        forward = self._exact_log_prob(case, exact_draws) - distribution.log_prob(exact_draws)
        backward = log_q - self._exact_log_prob(case, theta)
        return (0.5 * (forward + backward).mean(-1) / distribution.active.sum(-1)).mean().item()

    def _exact_log_prob(self, case: _Case, theta: Tensor) -> Tensor:
        """(B, S) over the active parameters; the others keep their prior, independent of these."""
        assert case.exact is not None
        inactive = ~self.model.active(case.dataset)[:, None]
        prior = self.model.layout_of(case.dataset).log_prior(theta, inactive)
        return case.exact.log_prob(theta.transpose(0, 1).to(case.exact.mean)).T - prior

    def _log_predictive(self, theta: Tensor, held_out: Dataset) -> float:
        rows = self.model.row_log_prob(theta, held_out).logsumexp(1) - math.log(self.num_samples)
        return rows[held_out.observed].mean().item()


def _exact(model: Model, dataset: Dataset) -> MultivariateNormal | None:
    try:
        return model.exact_posterior(dataset)
    except UnsupportedError:
        return None


def _rows(dataset: Dataset, rows: slice) -> Dataset:
    y = None if dataset.y is None else dataset.y[:, rows]
    return Dataset(dataset.x[:, rows], y, dataset.observed[:, rows], dataset.features)


def _spread(bounds: tuple[int, int], index: int, parts: int) -> int:
    """The middle of one of equal parts of a range, so that sizes are all looked at."""
    low, high = bounds
    return round(low + (high - low) * ((index % parts) + 0.5) / parts)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
