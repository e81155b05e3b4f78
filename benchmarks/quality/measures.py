"""Figures of an estimator on test datasets, each with its standard error over them."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from rows import Row
from torch import Tensor
from torch.distributions import MixtureSameFamily, MultivariateNormal

from posteria.ascent import climb
from posteria.bench.cases import Case
from posteria.densities.gaussian import GaussianTheta
from posteria.densities.low_rank import LowRankTheta
from posteria.estimator import Estimator
from posteria.evaluation import closed_form_symmetric_kl
from posteria.evaluation import symmetric_kl as estimated_symmetric_kl
from posteria.metrics import (
    accuracy_ensembled,
    accuracy_per_draw,
    l2_ensembled,
    l2_nearest,
    l2_per_draw,
    log_predictive_density,
)
from posteria.metrics.labellings import labelling_shares
from posteria.models import Model
from posteria.models.log_joint import ModelLogJoint
from posteria.posterior import Posterior
from posteria.types import Dataset, ThetaDistribution

Figures = dict[str, tuple[float, float]]  # mean and standard error
# Draws where a divergence has no closed form.
_DIVERGENCE_DRAWS = 2000
_MOST_CLIMBS = 200
_DENSE_UP_TO = 256
_TIMED, _WARM_UP = 20, 5
_LATENCY_ROWS = 100
_SHARE = (0.2, 0.8)


def _per_case(figures_of: Callable[[Posterior, Case, int], dict[str, Tensor]]) -> Callable[..., Figures]:
    """A measure out of a function from a batch's posterior to figures (B,)."""

    @torch.no_grad()
    def measure(estimator: Estimator, cases: Sequence[Case], row: Row) -> Figures:
        collected: dict[str, list[Tensor]] = {}
        for case in cases:
            for name, values in figures_of(estimator.posterior(case.dataset), case, row.draws).items():
                collected.setdefault(name, []).append(values.double())
        return {name: mean_and_error(torch.cat(values)) for name, values in collected.items()}

    return measure


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error of values (B,), one per dataset."""
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


# -- exact posteriors -------------------------------------------------------------------------


def symmetric_kl(distribution: ThetaDistribution, exact: MultivariateNormal, model: Model, case: Case) -> Tensor:
    """(B,) half the sum of both divergences, divided by the number of parameters; exact for Gaussian densities."""
    closed = closed_form_symmetric_kl(distribution, exact)
    if closed is not None:
        return closed
    return estimated_symmetric_kl(distribution, exact, model, case.dataset, _DIVERGENCE_DRAWS, case.generator())


def _conjugate(posterior: Posterior, case: Case, draws: int) -> dict[str, Tensor]:
    model, exact = posterior.model, posterior.model.exact_posterior(case.dataset)
    figures = {"symmetric_kl": symmetric_kl(posterior.distribution, exact, model, case)}
    theta = posterior.sample_theta(draws, case.generator())
    figures |= _errors(model, theta, case.held_out)
    if case.held_out.y is None or not isinstance(posterior.distribution, GaussianTheta | LowRankTheta):
        return figures
    # Outputs linear in theta: the prediction of the mean is the mean of the predictions.
    figures["posterior_mean_error"] = _error_of_mean(model, posterior.distribution.mean, case.held_out)
    figures["exact_posterior_mean_error"] = _error_of_mean(model, exact.mean.to(theta), case.held_out)
    return figures


def _error_of_mean(model: Model, mean: Tensor, held_out: Dataset) -> Tensor:
    return _errors(model, mean[:, None], held_out)["l2_per_draw"]


# -- predictions ------------------------------------------------------------------------------


def _errors(model: Model, theta: Tensor, held_out: Dataset) -> dict[str, Tensor]:
    """Squared error (B,) of held-out observations, per draw and for the mean over draws theta (B, S, P)."""
    mean = model.predict(theta, held_out).mean
    if held_out.y is None:
        arguments = mean, held_out.x, held_out.observed, held_out.features
    else:
        arguments = mean[..., None], held_out.y[..., None], held_out.observed
    return {"l2_per_draw": l2_per_draw(*arguments), "l2_ensembled": l2_ensembled(*arguments)}


def _regression(posterior: Posterior, case: Case, draws: int) -> dict[str, Tensor]:
    return _errors(posterior.model, posterior.sample_theta(draws, case.generator()), case.held_out)


def _classification(posterior: Posterior, case: Case, draws: int) -> dict[str, Tensor]:
    model = posterior.model
    per_draw, ensembled = _accuracies(model, posterior.sample_theta(draws, case.generator()), case.held_out)
    best, gain = maximum(model, case.dataset)
    map_accuracy, _ = _accuracies(model, best[:, None], case.held_out)
    return {"accuracy_per_draw": per_draw, "accuracy_ensembled": ensembled, "map_accuracy": map_accuracy,
            "map_gap": map_accuracy - ensembled, "map_nats_left": gain}


def _accuracies(model: Model, theta: Tensor, held_out: Dataset) -> tuple[Tensor, Tensor]:
    """Percent (B,) of held-out classes, per draw and for probabilities averaged over draws."""
    assert held_out.y is not None
    probabilities = model.predict(theta, held_out).probs  # pyright: ignore[reportAttributeAccessIssue]
    arguments = probabilities, held_out.y, held_out.observed
    return 100 * accuracy_per_draw(*arguments), 100 * accuracy_ensembled(*arguments)


def maximum(model: Model, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """MAP theta (B, P), and the nats (B,) that one more step promises: about zero at convergence."""
    log_joint = ModelLogJoint(model, dataset)
    start = torch.zeros(log_joint.active.shape)
    guess = climb(log_joint, start, _MOST_CLIMBS, 0.0, _DENSE_UP_TO)
    return log_joint.theta(guess.z), (guess.score * guess.step).sum(-1)


# -- mixtures ---------------------------------------------------------------------------------


def _mixture(posterior: Posterior, case: Case, draws: int) -> dict[str, Tensor]:
    model, theta = posterior.model, posterior.sample_theta(draws, case.generator())
    block = model.layout_of(case.dataset)["means"]
    shares = labelling_shares(block.constrained(theta), block.constrained(case.theta))
    both = ((shares >= _SHARE[0]) & (shares <= _SHARE[1])).all(-1)
    truth = case.theta[:, None]
    loss = _log_predictive(model, truth, case.held_out) - _log_predictive(model, theta, case.held_out)
    return {"both_labellings": 100.0 * both.double(), "smaller_share": shares.amin(-1), "predictive_loss": loss,
            "l2_per_draw": _nearest(model, theta, case.held_out), "true_l2": _nearest(model, truth, case.held_out)}


def _log_predictive(model: Model, theta: Tensor, held_out: Dataset) -> Tensor:
    """(B,) log density of a held-out row, averaged over draws inside the logarithm and over rows outside."""
    return log_predictive_density(model.row_log_prob(theta, held_out), held_out.observed)


def _nearest(model: Model, theta: Tensor, held_out: Dataset) -> Tensor:
    """(B,) squared distance of held-out rows to the nearest mean, averaged over draws."""
    distribution = model.predict(theta, held_out)
    assert isinstance(distribution, MixtureSameFamily)
    means = distribution.component_distribution.mean[:, :, 0]  # the same at every row
    return l2_nearest(means, held_out.x, held_out.observed, held_out.features)


# -- other measures ---------------------------------------------------------------------------


def _latency(estimator: Estimator, cases: Sequence[Case], row: Row) -> Figures:
    """Milliseconds from a dataset to named draws, by an estimator loaded from disk; the spread is over repeats."""
    x = cases[0].held_out.x[:1, :_LATENCY_ROWS]
    y = cases[0].held_out.y
    assert y is not None
    with tempfile.TemporaryDirectory() as folder:
        estimator.save(folder)
        loaded = Estimator.load(folder)
    times = []
    for turn in range(_WARM_UP + _TIMED):
        began = time.perf_counter()
        loaded.posterior(Dataset.of(x, y[:1, :_LATENCY_ROWS])).sample(row.draws, seed=turn)
        times.append(1000 * (time.perf_counter() - began))
    timed = times[_WARM_UP:]
    return {"milliseconds": (statistics.median(timed), statistics.stdev(timed) / math.sqrt(len(timed)))}


def _nuts(estimator: Estimator, cases: Sequence[Case], row: Row) -> Figures:
    from nuts import compare  # NumPyro is needed for these rows alone

    return compare(estimator, cases, row.draws)


MEASURES: dict[str, Callable[[Estimator, Sequence[Case], Row], Figures]] = {
    "conjugate": _per_case(_conjugate),
    "classification": _per_case(_classification),
    "regression": _per_case(_regression),
    "mixture": _per_case(_mixture),
    "nuts": _nuts,
    "latency": _latency,
}
