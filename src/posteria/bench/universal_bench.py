"""`posteria bench universal`: what one network for every model loses to the best that its density can do.

A cell is a family of models under one condition: as in training, beyond its sizes, priors outside its range, or a
family that it never saw. Datasets come with models and priors of their own, in batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posteria.bench.runner import CaseCell, Figures
from posteria.bench.samplers import moments_of
from posteria.bench.scales import Scale
from posteria.bench.store import key_of
from posteria.bench.trust_accuracy import MOST_MEAN_ERROR, Errors, Reference, errors_of
from posteria.bench.universal_cases import CASES, DesignedCase, UniversalCase
from posteria.bench.universal_sizes import BY_SIZE, EVERY_FAMILY, SizesCell
from posteria.bench.universal_weights import checked, weights_of
from posteria.bench.variational import bound_of
from posteria.bench.workspace import Workspace
from posteria.densities.changed import ChangedTheta
from posteria.densities.exact_terms import ExactTermsTheta
from posteria.densities.mixed import MixedTheta
from posteria.densities.skewed import SkewedTheta
from posteria.errors import InputError
from posteria.estimator import Estimator
from posteria.every_model import Universal, universal
from posteria.mixing import mixed
from posteria.models import Model
from posteria.polishing import polished
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from posteria.reference import NUTS, BaselineRun, Empirical, run_baseline
from posteria.refinement.accuracy import Accuracy
from posteria.types import Dataset, ThetaDistribution

BENCH = "universal"
_VERSION = 3
_SEED = 77_004_211
# Of the reference, and draws of an answer that is compared with it.
_NUTS, _ANSWER_DRAWS = {"num_chains": 4, "num_samples": 2000, "target_accept": 0.95}, 8000
# Of parameters without moments beyond the second, sds take more draws than a cheap rung has: means alone, then.
_ANY_SD = 0.99
_BESIDE_NUTS = ("near", "near_up_to_chance", "nuts_seconds")


@dataclass(frozen=True)
class Sizes:
    """How much a scale spends: batches of datasets, those of them that are optimised one by one, and for how long."""

    batches: int
    batch_size: int
    optimised: int
    steps: int


# Of a scale: for most cases, and for large ones, whose datasets take much time and memory.
SIZES: dict[str, tuple[Sizes, Sizes]] = {
    "smoke": (Sizes(2, 5, 1, 20), Sizes(2, 1, 1, 20)), "laptop": (Sizes(40, 25, 40, 500), Sizes(5, 5, 1, 500)),
    "paper": (Sizes(40, 25, 40, 500), Sizes(40, 25, 10, 500))}
# Of families whose log joint takes long, so many batches are optimised.
_DEAR_OPTIMISED = 8


@dataclass(frozen=True)
class UniversalCell(CaseCell):
    """A family under a condition; see :class:`posteria.bench.runner.Cell`."""

    BENCH = BENCH
    condition: str
    signature: str
    seed: int = 0

    @property
    def method_key(self) -> str:
        return self.condition

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"bench": BENCH, "case": self.case, "condition": self.condition, "sizes": vars(self.sizes),
                "seed": self.seed, "weights": self.signature, "version": _VERSION}

    @property
    def sizes(self) -> Sizes:
        """How much is spent."""
        case = CASES[self.case][self.condition]
        found = SIZES[self.scale.name][case.large]
        if self.scale.name == "laptop" and case.laptop_batches is not None:
            found = replace(found, batches=case.laptop_batches)
        return replace(found, optimised=min(found.optimised, _DEAR_OPTIMISED)) if case.dear else found

    @property
    def group(self) -> str:
        return key_of(self.identity)

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        case, network, done = CASES[self.case][self.condition], universal(), workspace.partial(key_of(self.identity))
        columns = done.whole(dict.fromkeys(range(self.sizes.batches), self.sizes.batch_size),
                             lambda number: _measured(network, case, self.sizes, self.seed, number))
        done.clear()
        return figures_of(columns), {"parameters": [int(columns["parameters"].min()), int(columns["parameters"].max())]}


def universal_cells(scale: Scale, cases: Sequence[str] = (), conditions: Sequence[str] = ()) -> (
        list[UniversalCell | SizesCell]):
    """A cell per family and condition, and one of all families by sizes and priors.

    Raises:
        InputError: names that do not exist.
    """
    offered = {name: tuple(found) for name, found in CASES.items()} | {EVERY_FAMILY: (BY_SIZE,)}
    known = list(dict.fromkeys(condition for found in offered.values() for condition in found))
    for argument, names, choices in (("case", cases, offered), ("condition", conditions, known)):
        unknown = sorted(set(names) - set(choices))
        if unknown:
            raise InputError.of(argument, str(unknown), f"names among {list(choices)}")
    signature = signature_of(universal().network)
    wanted = [(case, condition) for case in cases or offered for condition in offered[case]
              if not conditions or condition in conditions]
    return [SizesCell(scale, case, signature) if case == EVERY_FAMILY else
            UniversalCell(scale, case, condition, signature) for case, condition in wanted]


def signature_of(estimator: Estimator) -> str:
    """Changes with the weights."""
    return f"{sum(float(p.detach().double().abs().sum()) for p in estimator.parameters()):.6f}"


# -- measuring ------------------------------------------------------------------------------------
def _measured(network: Universal, case: UniversalCase | DesignedCase, sizes: Sizes, seed: int, number: int) -> (
        dict[str, Tensor]):
    """Figures (b,) of the datasets of one batch."""
    generator = generator_for(_SEED + seed, number)
    task = case.task(generator)
    dataset, _ = task.draw(sizes.batch_size, generator)
    began = time.perf_counter()
    posterior = network.posterior(task.model, dataset)
    seconds = (time.perf_counter() - began) / len(dataset)
    columns = (_beside_nuts(posterior, case, seed) if case.beside_nuts else
               checked(posterior, seed) | _gaps(posterior, task.model, dataset, sizes, number))
    size = float(task.model.layout_of(dataset).size)
    return columns | {name: torch.full((len(dataset),), value, dtype=torch.double) for name, value in (
        ("seconds", seconds), ("parameters", size), ("batch", float(number)))}


def _beside_nuts(posterior: Posterior, case: UniversalCase | DesignedCase, seed: int) -> dict[str, Tensor]:
    """The same, asked for means alone; and for the first few datasets whether the means are those of NUTS.

    ``near`` is 1 where all means are within 0.1 sd, ``near_up_to_chance`` where they are but for three standard errors;
    NaN where there was no answer, or NUTS has not converged.
    """
    target = Accuracy(mean=case.mean_error, sd=_ANY_SD)
    refined = posterior.refine("laplace", target=target, num_draws=_ANSWER_DRAWS, seed=seed)
    chosen = torch.arange(min(case.beside_nuts, len(refined)))
    theta = refined.posterior.sample_theta(_ANSWER_DRAWS, seed)[chosen]
    run = run_baseline(posterior.model, posterior.dataset[chosen], NUTS, seed=seed, **_NUTS)
    errors = _errors(theta, run, run.converged & ~refined.failed[chosen])
    known = errors.mean.isfinite()
    compared = {"near": errors.mean <= MOST_MEAN_ERROR,
                "near_up_to_chance": errors.mean <= MOST_MEAN_ERROR + errors.allowance,
                "nuts_seconds": torch.full_like(errors.mean, run.seconds / len(chosen))}
    columns = weights_of(refined.diagnosis, ~refined.failed)
    for name, values in compared.items():
        columns[name] = torch.full((len(refined),), torch.nan, dtype=torch.double)
        columns[name][chosen] = torch.where(known, values.double(), torch.nan)
    return columns


def _errors(theta: Tensor, run: BaselineRun, usable: Tensor) -> Errors:
    """Of draws theta (B, S, P), over the parameters that the datasets have, which is the same for all of them."""
    active = run.model.active(run.dataset)

    def present(model: Model, dataset: Dataset, theta: Tensor) -> Tensor:
        return theta[..., active[0]]

    answer = Posterior(run.model, run.dataset, Empirical(theta, active))
    reference = Reference(moments_of(run.theta[..., active[0]]), usable, False)
    return errors_of(answer, reference, present, theta.shape[1])


def _gaps(posterior: Posterior, model: Model, dataset: Dataset, sizes: Sizes, number: int) -> dict[str, Tensor]:
    """(B,) nats per observation by which per-dataset optimization betters the bound; NaN where it was not run.

    Zero where it ends below the answer, which happens where single draws have gradients without bounds. Of a mixture
    every part is optimised, and they are mixed anew; of an answer with exact terms what it was before these.
    """
    if number >= sizes.optimised:
        return {"gap": torch.full((len(dataset),), torch.nan, dtype=torch.double)}
    own = posterior.distribution
    start = own.base if isinstance(own, ExactTermsTheta) else own
    if isinstance(start, MixedTheta):
        best = mixed([_reached(part, model, dataset, sizes.steps) for part in start.parts], model, dataset)
    else:
        best = _reached(start, model, dataset, sizes.steps)
    reached, answer = (bound_of(q, lambda theta: model.log_joint(theta, dataset)) for q in (best, own))
    return {"gap": (reached - answer).clamp(min=0.0) / dataset.num_observations}


def _reached(part: ThetaDistribution, model: Model, dataset: Dataset, steps: int) -> ThetaDistribution:
    """What optimization makes of a network's density; itself where it is exact."""
    own = part.base if isinstance(part, ChangedTheta) else part
    return polished(part, model, dataset, steps) if isinstance(own, SkewedTheta) else part


def figures_of(columns: Mapping[str, Tensor]) -> Figures:
    """Means and shares over datasets; standard errors over batches, whose datasets share a model."""
    figures: dict[str, Mapping[str, float | None]] = {"datasets": _entry(float(len(columns["passed"])))}
    for name in ("passed", "passed_cheaply", "ess", "unfit", "seconds"):
        figures[name] = _over_batches(columns[name], columns["batch"])
    for name in (name for name in _BESIDE_NUTS if name in columns):
        compared = columns[name][columns[name].isfinite()]
        figures |= {name: _entry(float(compared.mean())), "compared": _entry(float(len(compared)))}
    known = columns["gap"].isfinite() if "gap" in columns else torch.zeros(0)
    if known.any():
        gap = columns["gap"][known]
        figures |= {"gap": _over_batches(gap, columns["batch"][known]), "gap_median": _entry(float(gap.median())),
                    "gap_95": _entry(float(gap.quantile(0.95))), "optimised": _entry(float(len(gap)))}
    return figures


def _over_batches(values: Tensor, batch: Tensor) -> Mapping[str, float | None]:
    means = torch.stack([values[batch == number].mean() for number in batch.unique()])
    error = float(means.std() / len(means) ** 0.5) if len(means) > 1 else None
    return _entry(float(values.mean()), error)


def _entry(mean: float, error: float | None = None) -> Mapping[str, float | None]:
    return {"mean": mean if math.isfinite(mean) else None, "standard_error": error}
