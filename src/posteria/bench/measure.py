"""Figures of a method on a setup's test datasets, as the paper defines them (arXiv 2502.06601, appendices E, G).

Per draw: the mean over 25 posterior draws of the error of predicting held-out rows with that draw; ensembled: the error
of the prediction averaged over the draws. In many dimensions the error per draw rewards over-confidence: read it beside
the log predictive density and the symmetric KL or the Wasserstein distance to the reference.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from posteria.bench.cases import BATCH, Case, draw_cases, joined
from posteria.bench.samplers import labelling_free, predictions
from posteria.bench.scales import Scale
from posteria.bench.setups import ROWS, Setup
from posteria.bench.workspace import Workspace, training_record
from posteria.calibrate import exact_posterior_of
from posteria.densities.gaussian import GaussianTheta
from posteria.densities.symmetric import permutations_of_axis
from posteria.errors import UnsupportedError
from posteria.evaluation import symmetric_kl
from posteria.metrics import (
    accuracy_ensembled,
    accuracy_per_draw,
    expected_calibration_error,
    l2_ensembled,
    l2_nearest,
    l2_per_draw,
    labelling_shares,
    log_predictive_density,
    wasserstein2_squared,
)
from posteria.metrics.convergence import Convergence
from posteria.models import Model
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from posteria.reference import Empirical, run_baseline
from posteria.tasks import SimulatedTask
from posteria.training import TrainConfig
from posteria.types import Dataset

# Part of every cell's identity: count it up when figures change their meaning.
VERSION = 1
NUM_DRAWS = 25
_KL_DRAWS = 2000
_LEAST_SHARE = 0.2
EXACT, REFERENCE = "exact", "hmc"
EXACT_TASKS = ("gaussian_mean", "linear_regression")
# Chains of a network from different starts do not meet, so that they are no reference for its parameters.
_CHAIN_TASKS = ("gaussian_mixture", "linear_classification")
# Converged chains are for sizes where they take minutes.
MOST_CHAIN_FEATURES = 5
# What of a model's parameters the likelihood identifies: chains may keep to different labellings.
_IDENTIFIED = {"gaussian_mixture": labelling_free, "nonlinear_regression": predictions,
               "nonlinear_classification": predictions}
Figures = dict[str, dict[str, float | None]]
PerDatasetFigures = dict[str, Tensor]


def measure_trained(setup: Setup, scale: Scale, config: TrainConfig, workspace: Workspace,
                    looks: Mapping[str, int] | None = None) -> tuple[Figures, Mapping[str, Any]]:
    """Train (or load) an estimator and measure it on the setup's test datasets, with ``looks`` as its search if any."""
    estimator = workspace.trained(config)
    estimator = estimator.looking(**looks) if looks else estimator
    reference = reference_draws(setup, scale, workspace)
    figures = (figures_of(estimator.posterior(case.dataset), case, _of_case(reference, case), scale)
               for case in cases_of(setup, scale))
    return summarise(figures), training_record(estimator)


def measure_baseline(setup: Setup, scale: Scale, name: str, seed: int, workspace: Workspace) -> (
        tuple[Figures, Mapping[str, Any]]):
    """Run a per-dataset baseline on the setup's test datasets, and measure it."""
    cases = cases_of(setup, scale)
    posterior, record = _baseline(setup, name, joined(cases), seed, scale)
    parts = [posterior[case.number * BATCH:case.number * BATCH + len(case.dataset)] for case in cases]
    if name == REFERENCE and setup.task in _CHAIN_TASKS:
        draws = [part.sample_theta(scale.num_reference, case.generator(7))
                 for case, part in zip(cases, parts, strict=True)]
        _save_reference(setup, scale, workspace, draws)
    reference = reference_draws(setup, scale, workspace)
    figures = (figures_of(part, case, _of_case(reference, case), scale)
               for case, part in zip(cases, parts, strict=True))
    return summarise(figures), record


def cases_of(setup: Setup, scale: Scale) -> list[Case]:
    """The setup's test datasets, simulated from its model."""
    task = SimulatedTask(setup.build_model(), ROWS, (setup.dim, setup.dim))
    return list(draw_cases(task, scale.num_datasets))


@torch.no_grad()
def figures_of(posterior: Posterior, case: Case, reference: Tensor | None, scale: Scale) -> PerDatasetFigures:
    """Figures (B,) of a posterior on a batch of test datasets.

    Args:
        posterior: of the batch.
        case: the batch.
        reference: (B, S, P) draws of the true posterior, or None.
        scale: how many draws are compared with the reference's.
    """
    theta = posterior.sample_theta(NUM_DRAWS, case.generator())
    figures = predictive_figures(posterior.model, theta, _padded_like(case.held_out, posterior))
    exact = _exact_posterior(posterior)
    if exact is not None:
        figures["symmetric_kl"] = symmetric_kl(posterior.distribution, exact, posterior.model, posterior.dataset,
                                               _KL_DRAWS, case.generator(1))
    if posterior.model.exchangeable_axes == ("components",) and case.theta is not None:
        figures |= _labelling_figures(posterior, case, scale)
    if reference is not None and reference.shape[-1] == posterior.layout.size:
        draws = posterior.sample_theta(scale.num_reference, case.generator(2))
        figures["w2"] = wasserstein2_squared(draws.double(), reference.double()).sqrt()
    return figures


def _labelling_figures(posterior: Posterior, case: Case, scale: Scale) -> PerDatasetFigures:
    """Two clusters: percent of the datasets whose draws have both labellings, each in at least a fifth of them."""
    if posterior.model.axes["components"] != 2:
        return {}
    assert case.theta is not None
    true_layout = posterior.model.layout_of(case.dataset)
    draws = posterior.layout["means"].constrained(posterior.sample_theta(scale.num_reference, case.generator(3)))
    truth = true_layout["means"].constrained(case.theta)
    shares = labelling_shares(draws[..., :truth.shape[-1]], truth)
    return {"both_labellings": 100.0 * (shares.amin(-1) >= _LEAST_SHARE).double()}


def predictive_figures(model: Model, theta: Tensor, held_out: Dataset) -> PerDatasetFigures:
    """Figures (B,) of predicting held-out rows with the draws theta (B, S, P)."""
    figures = {"log_predictive": log_predictive_density(model.row_log_prob(theta, held_out), held_out.observed)}
    distribution = model.predict(theta, held_out)
    if isinstance(distribution, Categorical):
        assert held_out.y is not None
        probabilities, labels = distribution.probs, held_out.y
        return figures | {
            "accuracy_per_draw": 100 * accuracy_per_draw(probabilities, labels, held_out.observed),
            "accuracy_ensembled": 100 * accuracy_ensembled(probabilities, labels, held_out.observed),
            "calibration_error": expected_calibration_error(probabilities.mean(1), labels, held_out.observed)}
    if isinstance(distribution, MixtureSameFamily):
        means = distribution.component_distribution.mean[:, :, 0]  # the same at every row
        return figures | {"l2_per_draw": l2_nearest(means, held_out.x, held_out.observed, held_out.features)}
    if held_out.y is None:
        arguments = distribution.mean, held_out.x, held_out.observed, held_out.features
    else:
        arguments = distribution.mean[..., None], held_out.y[..., None], held_out.observed
    return figures | {"l2_per_draw": l2_per_draw(*arguments), "l2_ensembled": l2_ensembled(*arguments)}


def summarise(batches: Iterable[PerDatasetFigures]) -> Figures:
    """Means and standard errors over all datasets; numbers that are not finite become None."""
    collected: dict[str, list[Tensor]] = {}
    for figures in batches:
        for name, values in figures.items():
            collected.setdefault(name, []).append(values.double().cpu())
    return {name: _mean_and_error(torch.cat(values)) for name, values in collected.items()}


def _mean_and_error(values: Tensor) -> dict[str, float | None]:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": _finite(float(values.mean())), "standard_error": _finite(error)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _padded_like(held_out: Dataset, posterior: Posterior) -> Dataset:
    """Held-out rows with the columns that the estimator's theta is laid out for."""
    return held_out.padded(held_out.x.shape[1], posterior.dataset.x.shape[-1])


def _exact_posterior(posterior: Posterior) -> MultivariateNormal | None:
    """The exact posterior, where there is one and the density can be evaluated."""
    try:
        posterior.distribution.log_prob(posterior.distribution.rsample(1))
        return posterior.model.exact_posterior(posterior.dataset)
    except UnsupportedError:
        return None


# -- baselines and references -----------------------------------------------------------------


def _baseline(setup: Setup, name: str, dataset: Dataset, seed: int, scale: Scale) -> (
        tuple[Posterior, dict[str, Any]]):
    """A baseline's posterior of all datasets, and the record of how it went."""
    model = setup.build_model()
    if name == EXACT:
        return _exact_run(model, dataset), {}
    if name == "prior":
        return _prior_run(model, dataset), {}
    run = run_baseline(model, dataset, name, seed=seed, **scale.baseline(name, setup))
    if run.convergence is None:
        return run.posterior, {}
    identified = _IDENTIFIED.get(setup.task)
    convergence = run.convergence if identified is None else Convergence.of(
        identified(model, dataset, run.theta.to(dataset.x.dtype)).double())
    worst = {key: float(values.amax() if key == "r_hat" else values.amin())
             for key, values in convergence.worst.items()}
    posterior = run.posterior
    if name == REFERENCE and setup.task == "gaussian_mixture":
        theta = _relabelled(run.theta.flatten(1, 2).to(dataset.x.dtype), setup)
        posterior = Posterior(model, dataset, Empirical(theta, model.active(dataset)))
    return posterior, {"converged": float(convergence.converged().double().mean()),
                       "divergences": int(run.divergences.sum()),
                       **{f"worst_{key}": _finite(value) for key, value in worst.items()}}


def _prior_run(model: Model, dataset: Dataset) -> Posterior:
    """All the paper's priors are normal, so that they have a density to compare."""
    location, scale = model.layout_of(dataset).prior_moments
    active = model.active(dataset)
    return Posterior(model, dataset, GaussianTheta(location.expand(active.shape), scale.expand(active.shape), active))


def _exact_run(model: Model, dataset: Dataset) -> Posterior:
    exact, kind = exact_posterior_of(model)(dataset), dataset.x.dtype
    assert exact.factor is not None
    return Posterior(model, dataset, replace(exact, mean=exact.mean.to(kind), scale=exact.scale.to(kind),
                                             factor=exact.factor.to(kind)))


def reference_draws(setup: Setup, scale: Scale, workspace: Workspace) -> Tensor | None:
    """(datasets, draws, P) of the true posteriors: exact, or of converged chains; None for sizes without either."""
    if setup.variable:
        return None
    if setup.task in EXACT_TASKS:
        model = setup.build_model()
        return torch.cat([_exact_run(model, case.dataset).sample_theta(scale.num_reference, case.generator(7))
                          for case in cases_of(setup, scale)])
    if setup.dim > MOST_CHAIN_FEATURES or setup.task not in _CHAIN_TASKS:
        return None
    path = _reference_path(setup, scale, workspace)
    if not path.exists():
        measure_baseline(setup, scale, REFERENCE, 0, workspace)
    return safetensors.torch.load_file(path)["draws"]


def _reference_path(setup: Setup, scale: Scale, workspace: Workspace) -> Path:
    return workspace.references / f"{setup.key}-{scale.name}.safetensors"


def _save_reference(setup: Setup, scale: Scale, workspace: Workspace, batches: list[Tensor]) -> None:
    """Keep a reference's draws."""
    draws = torch.cat(batches)
    workspace.references.mkdir(parents=True, exist_ok=True)
    path = _reference_path(setup, scale, workspace)
    temporary = path.with_suffix(f".{os.getpid()}.new")
    safetensors.torch.save_file({"draws": draws.contiguous()}, temporary)
    os.replace(temporary, path)


def _relabelled(draws: Tensor, setup: Setup) -> Tensor:
    """Every draw of a mixture with one of its equally likely labellings, at random."""
    layout = setup.build_model().layout(setup.dim)
    orders = permutations_of_axis(layout.roles, layout.groups["components"])
    chosen = torch.randint(len(orders), draws.shape[:2], generator=generator_for(0))
    return draws.gather(-1, orders[chosen])


def _of_case(reference: Tensor | None, case: Case) -> Tensor | None:
    """The reference's draws for the datasets of one batch."""
    if reference is None:
        return None
    start = case.number * BATCH
    return reference[start:start + len(case.dataset)]
