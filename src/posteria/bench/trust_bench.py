"""`posteria bench trust`: does a label keep its word, in distribution and out of it, and what does it cost?

A cell is a model under one shift of its data, see :mod:`posteria.bench.trust_shifts`, or one kind of posterior that is
wrong on purpose, see :mod:`posteria.bench.trust_broken`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from posteria.bench.runner import CaseCell, Figures
from posteria.bench.scales import Scale
from posteria.bench.store import key_of
from posteria.bench.trust_accuracy import DEAR, Errors, Reference, errors_of, reference_of_some
from posteria.bench.trust_broken import FAULTS, caught
from posteria.bench.trust_cases import CASES, TrustCase
from posteria.bench.trust_shifts import IN_DISTRIBUTION, SHIFTS, draw_shifted
from posteria.bench.trust_units import LENGTHS
from posteria.bench.workspace import Partial, Workspace, training_record
from posteria.errors import InputError, UnsupportedError
from posteria.estimator import Estimator
from posteria.refinement.ladder import STATUSES
from posteria.refinement.weights import load_arviz
from posteria.training import TrainConfig
from posteria.trust import Refined
from posteria.types import Dataset

BENCH, BROKEN = "trust", "broken"
_VERSION = 1
# Counted up when the chains change that answer nearly everything in a cell.
_LADDER = 3
# Datasets go through the ladder together up to so many, and so many times parameters: bounds memory, and what a kill
# loses.
_MOST_TOGETHER, _MOST_ENTRIES = 250, 2_600
_MOST_EXAMPLES = 20


@dataclass(frozen=True)
class Sizes:
    """How much a scale spends.

    Attributes:
        num_datasets, num_home, num_exact: datasets per cell: under a shift, in distribution, and wherever there is an
            exact posterior.
        num_draws: of an answer. Their Monte Carlo error counts as the answer's.
        chains: of the reference, see :func:`posteria.reference.run_baseline`.
        min_ess: effective draws below which chains are no reference.
        num_nuts: datasets on which NUTS is timed.
        nuts: its settings.
    """

    num_datasets: int
    num_home: int
    num_exact: int
    num_draws: int
    chains: Mapping[str, int]
    min_ess: float
    num_nuts: int
    nuts: Mapping[str, int]


_LONG = {"num_chains": 8, "num_samples": 1000, "rounds": 3}
_NUTS = {"num_chains": 4, "num_warmup": 1000, "num_samples": 1000, "attempts": 1}
SIZES: Mapping[str, Sizes] = {
    "smoke": Sizes(8, 8, 8, 1000, {"num_chains": 4, "num_samples": 400, "rounds": 1}, 100.0, 1,
                   {"num_chains": 2, "num_warmup": 100, "num_samples": 100, "attempts": 1}),
    "laptop": Sizes(100, 1000, 1000, 4000, _LONG, 2000.0, 5, _NUTS),
    "paper": Sizes(1000, 1000, 1000, 4000, _LONG, 2000.0, 10, _NUTS),
}


@dataclass(frozen=True)
class TrustCell(CaseCell):
    """A case under a shift; see :class:`posteria.bench.runner.Cell`."""

    BENCH = BENCH
    shift: str = IN_DISTRIBUTION
    seed: int = 0
    most: int | None = None  # datasets; a cell of more takes over those that were measured

    @property
    def method_key(self) -> str:
        return self.shift

    @property
    def config(self) -> TrainConfig:
        """Of the estimator."""
        return CASES[self.case].config(self.scale, self.seed)

    @property
    def num_datasets(self) -> int:
        """B."""
        return self.num_whole if self.most is None else min(self.most, self.num_whole)

    @property
    def num_whole(self) -> int:
        """B where nothing less is asked for."""
        sizes, case = SIZES[self.scale.name], CASES[self.case]
        home = self.shift == IN_DISTRIBUTION or self.weighted is not None
        if self.scale.name == "laptop" and self.shift in case.laptop_datasets:
            return case.laptop_datasets[self.shift]
        if case.exact:
            return sizes.num_exact
        return sizes.num_home if home else sizes.num_datasets

    @property
    def weighted(self) -> str | None:
        """What the reference is, beside Hamiltonian chains."""
        return CASES[self.case].weighted.get(self.shift)

    @property
    def identity(self) -> Mapping[str, Any]:
        sizes = SIZES[self.scale.name]
        found = {"bench": BENCH, "case": self.case, "shift": self.shift, "config": self.config.model_dump(mode="json"),
                 "num_datasets": self.num_datasets, "num_draws": sizes.num_draws, "chains": dict(sizes.chains),
                 "min_ess": sizes.min_ess, "num_nuts": sizes.num_nuts, "nuts": dict(sizes.nuts), "seed": self.seed,
                 "version": _VERSION}
        longest = {"sweeps": 2 * LENGTHS[-1], "ladder": _LADDER} if self.weighted in DEAR else {}
        return found if self.weighted is None else found | {"reference": self.weighted, **longest}

    @property
    def parts_key(self) -> str:
        """Of what is known of its datasets, whatever their number: those of a seed are the first of a larger number."""
        return key_of({**self.identity, "num_datasets": None})

    @property
    def group(self) -> str:
        return key_of(self.identity["config"])

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        case, sizes = CASES[self.case], SIZES[self.scale.name]
        estimator = workspace.trained(self.config).to("cpu")
        dataset = draw_shifted(estimator.model, case.columns, SHIFTS[self.shift], self.num_datasets, self.seed)
        done = workspace.partial(self.parts_key)
        whole = self._whole(estimator, dataset, done)
        figures = figures_of(whole)
        if self.shift == IN_DISTRIBUTION:
            figures |= nuts_figures(estimator, dataset, sizes, self.seed)
        record = training_record(estimator) | {"examples": examples_of(whole), "exact": case.exact,
                                               "parameters": estimator.model.layout_of(dataset).size}
        return _entries(figures), record

    def _whole(self, estimator: Estimator, dataset: Dataset, done: Partial) -> Mapping[str, Tensor]:
        """Figures (B,) of every dataset, chunk by chunk; those that a run that was killed has left are read.

        They are kept: one can ask later which datasets had a wrong answer, or no reference.
        """
        load_arviz()  # takes seconds once, which are not the ladder's
        parameters = estimator.model.layout_of(dataset).size
        chunk = max(1, min(_MOST_TOGETHER, _MOST_ENTRIES // parameters))
        chunks = {first: dataset[first:first + chunk] for first in range(0, len(dataset), chunk)}
        case, sizes = CASES[self.case], SIZES[self.scale.name]

        def measure(first: int) -> dict[str, Tensor]:
            return _measured(estimator, chunks[first], case, sizes, self.seed, self.weighted, first)

        return done.whole({first: len(rows) for first, rows in chunks.items()}, measure)


@dataclass(frozen=True)
class BrokenCell(CaseCell):
    """A kind of wrong posterior; see :class:`posteria.bench.runner.Cell`."""

    BENCH = BENCH
    fault: str
    seed: int = 0

    @property
    def method_key(self) -> str:
        return self.fault

    @property
    def num_datasets(self) -> int:
        """B."""
        return SIZES[self.scale.name].num_datasets

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"bench": BENCH, "fault": self.fault, "num_datasets": self.num_datasets, "version": _VERSION}

    @property
    def group(self) -> str:
        return key_of(self.identity)

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        figures = {"datasets": float(self.num_datasets), **caught(self.fault, self.num_datasets)}
        return _entries(figures), {}


def trust_cells(scale: Scale, cases: Sequence[str] = (), shifts: Sequence[str] = (), most: int | None = None) -> (
        list[TrustCell | BrokenCell]):
    """A cell per case and shift, and those of the broken posteriors, unless some cases or shifts are asked for.

    Args:
        scale: how much they spend.
        cases, shifts: names; all by default.
        most: datasets of a cell under a shift.

    Raises:
        InputError: a case or shift that does not exist.
    """
    wanted = _chosen("case", cases, [*CASES, BROKEN])
    changes = _chosen("shift", shifts, list(SHIFTS))
    broken = BROKEN in wanted and (BROKEN in cases or not shifts)
    found: list[TrustCell | BrokenCell] = [BrokenCell(scale, BROKEN, name) for name in FAULTS] if broken else []
    return found + [TrustCell(scale, case, shift, most=most) for shift in changes for case in wanted
                    if case != BROKEN and CASES[case].columns >= SHIFTS[shift].least_features]


def _chosen(argument: str, names: Sequence[str], known: list[str]) -> list[str]:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError.of(argument, str(unknown), f"names among {known}")
    return [name for name in known if name in names] or known


# -- measuring ------------------------------------------------------------------------------------
def _measured(estimator: Estimator, rows: Dataset, case: TrustCase, sizes: Sizes, seed: int, weighted: str | None,
              first: int) -> dict[str, Tensor]:
    """Figures (b,) of some datasets, of which the first is that of the cell."""
    began = time.perf_counter()
    own = estimator.posterior(rows)
    refined = own.refine(num_draws=sizes.num_draws, seed=seed)
    seconds = (time.perf_counter() - began) / len(rows)
    wanted = refined.trusted if weighted in DEAR else torch.ones(len(rows), dtype=torch.bool)
    reference = reference_of_some(wanted, estimator.model, rows, case.quantities, sizes.chains, sizes.min_ess,
                                  seed + first if weighted else seed, weighted)
    reference = reference.beside(refined.posterior, sizes.num_draws)
    compare = partial(errors_of, reference=reference, quantities=case.quantities, num_draws=sizes.num_draws)
    return _columns(refined, reference, compare(refined.posterior), compare(own), seconds)


def _columns(refined: Refined, reference: Reference, errors: Errors, before: Errors, seconds: float) -> (
        dict[str, Tensor]):
    status = torch.tensor([STATUSES.index(name) for name in refined.status])
    return {"status": status, "trusted": refined.trusted, "usable": reference.usable, "mean_error": errors.mean,
            "narrowest": errors.narrowest, "widest": errors.widest, "accurate": errors.accurate,
            "accurate_up_to_chance": errors.accurate_up_to_chance, "wrong": errors.wrong,
            "q_mean_error": before.mean, "q_wrong": before.wrong, "evaluations": refined.evaluations,
            "seconds": torch.full((len(refined),), seconds, dtype=torch.double)}


def figures_of(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """Shares and errors over the datasets of a cell; accuracy over those with a usable reference."""
    usable, trusted = columns["usable"], columns["trusted"]
    checked = usable & trusted
    figures = {"datasets": float(len(usable)), "no_reference": float((~usable).sum())}
    figures |= {f"share_{name}": _share(columns["status"] == i) for i, name in enumerate(STATUSES)}
    figures |= {"trusted": _share(trusted), "trusted_checked": float(checked.sum())}
    figures |= {f"trusted_{name}": _share(columns[name][checked]) for name in ("accurate", "accurate_up_to_chance")}
    figures |= {"wrong": float(columns["wrong"].sum()), "wrong_trusted": float((columns["wrong"] & checked).sum()),
                "q_wrong": float((columns["q_wrong"] & usable).sum()),
                "q_wrong_kept": float((columns["q_wrong"] & usable & (columns["status"] == 0)).sum()),
                "q_median_error": _median(columns["q_mean_error"][usable]),
                "median_error": _median(columns["mean_error"][usable]),
                "worst_trusted_error": _largest(columns["mean_error"][checked]),
                "least_trusted_sd_ratio": -_largest(-columns["narrowest"][checked]),
                "most_trusted_sd_ratio": _largest(columns["widest"][checked])}
    for i, name in enumerate(STATUSES):
        mine = columns["mean_error"][usable & (columns["status"] == i)]
        figures |= {f"{name}_median_error": _median(mine), f"{name}_worst_error": _largest(mine)}
    figures |= {"evaluations": float(columns["evaluations"].double().mean()),
                "seconds_per_dataset": float(columns["seconds"].mean())}
    return figures


def nuts_figures(estimator: Estimator, dataset: Dataset, sizes: Sizes, seed: int) -> dict[str, float]:
    """Median seconds of NUTS per dataset on the first few, without compilation; empty where NumPyro is missing."""
    try:
        from posteria.referee import run_nuts
    except UnsupportedError:
        return {}
    done = run_nuts(estimator.model, dataset[:sizes.num_nuts], seed=seed, num_chains=sizes.nuts["num_chains"],
                    num_warmup=sizes.nuts["num_warmup"], num_samples=sizes.nuts["num_samples"],
                    attempts=sizes.nuts["attempts"])
    return {"nuts_seconds_per_dataset": float(done.seconds.median()), "nuts_compile_seconds": done.compile_seconds,
            "nuts_converged": _share(done.convergence.converged())}


def examples_of(columns: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The datasets that failed, and those trusted without being accurate; the worst first, 20 at most."""
    odd = columns["usable"] & columns["trusted"] & ~columns["accurate"] | ~columns["trusted"]
    places = odd.nonzero()[:, 0]
    order = columns["mean_error"][places].nan_to_num(-1.0).argsort(descending=True)[:_MOST_EXAMPLES]
    return [{"dataset": i, "status": STATUSES[int(columns["status"][i])],
             **{name: _number(columns[name][i]) for name in ("mean_error", "narrowest", "widest", "q_mean_error")}}
            for i in places[order].tolist()]


def _number(value: Tensor) -> float | None:
    return round(float(value), 4) if math.isfinite(float(value)) else None


def _share(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else math.nan


def _median(values: Tensor) -> float:
    return float(values.median()) if len(values) else math.nan


def _largest(values: Tensor) -> float:
    return float(values.amax()) if len(values) else math.nan


def _entries(figures: Mapping[str, float]) -> Figures:
    return {name: {"mean": value if math.isfinite(value) else None, "standard_error": None}
            for name, value in figures.items()}
