"""`posteria bench alternatives`: what a user would do otherwise, and how long it takes to be as accurate.

A cell is a case and a method. Answers are compared with long chains on the same datasets; a method with a budget is
given the next larger one until nine of ten answers are accurate.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from posteria.bench.alternatives_accuracy import errors_of_answer, known_reference
from posteria.bench.alternatives_answers import Answer, Solver
from posteria.bench.alternatives_cases import CASES, SIZES, AlternativesCase, Sizes
from posteria.bench.alternatives_cold import cold_seconds
from posteria.bench.alternatives_methods import METHODS, Alternative, Budget, unavailable
from posteria.bench.runner import CaseCell, Figures
from posteria.bench.scales import Scale
from posteria.bench.store import key_of
from posteria.bench.trust_accuracy import Reference
from posteria.bench.workspace import Workspace
from posteria.errors import InputError, UnsupportedError
from posteria.types import Dataset

BENCH = "alternatives"
ENOUGH = 0.9  # share of the datasets that must be accurate
MANY = 1000
_VERSION = 2
_WARM_CALLS = 5


@dataclass(frozen=True)
class AlternativesCell(CaseCell):
    """A method on a case; see :class:`posteria.bench.runner.Cell`."""

    BENCH = BENCH
    method: str
    seed: int = 0

    @property
    def method_key(self) -> str:
        return self.method

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """That the scale affords, the cheapest first."""
        return METHODS[self.method].budgets[:SIZES[self.scale.name].budgets]

    @property
    def identity(self) -> Mapping[str, Any]:
        sizes = {name: value for name, value in asdict(SIZES[self.scale.name]).items() if name != "cases"}
        return {"bench": BENCH, "case": asdict(CASES[self.case]), "method": self.method, "seed": self.seed,
                "budgets": [dict(budget) for budget in self.budgets], "sizes": sizes, "version": _VERSION}

    @property
    def group(self) -> str:
        # Methods of a case share a reference, and their times are compared.
        return key_of({"bench": BENCH, "case": self.case, "scale": self.scale.name})

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        case, method, sizes = CASES[self.case], METHODS[self.method], SIZES[self.scale.name]
        reference = known_reference(self.case, sizes, workspace)
        trials = _trials(case, method, self.budgets, sizes, reference, self.seed)
        best = trials[-1]
        figures = best.figures | _many_figures(case, method, best, sizes, self.seed)
        if sizes.cold:
            figures["cold_seconds"] = cold_seconds(self.case, self.method, best.budget, torch.get_num_threads())
        usable = int(reference.usable.sum())
        record = {"budget": dict(best.budget), "trials": [trial.record for trial in trials], "datasets": usable,
                  "no_reference": len(reference.usable) - usable, "exact": reference.exact,
                  "parameters": reference.moments.mean.shape[-1], "versions": method.versions}
        return {name: _entry(value) for name, value in figures.items()}, record


def alternatives_cells(scale: Scale, cases: Sequence[str] = (), methods: Sequence[str] = ()) -> list[AlternativesCell]:
    """A cell per case and method; without those whose libraries are not installed, unless they are asked for.

    Raises:
        InputError: a case or method that does not exist.
        UnsupportedError: a method that is asked for, and whose library is not installed.
    """
    for argument, names, known in (("case", cases, CASES), ("method", methods, METHODS)):
        if unknown := sorted(set(names) - set(known)):
            raise InputError.of(argument, str(unknown), f"names among {list(known)}")
    missing = unavailable()
    for name in methods:
        if name in missing:
            raise UnsupportedError.of("method", repr(name), f"an environment that has what it {missing[name]}")
    wanted = cases or SIZES[scale.name].cases
    return [AlternativesCell(scale, case, method) for case in CASES if case in wanted
            for method in METHODS if (not methods or method in methods) and method not in missing]


# -- measuring ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trial:
    """A method with one budget on the datasets of the comparison.

    Attributes:
        budget: its settings.
        share, strict: of the datasets with a reference, how many are accurate up to chance, and without allowance.
        mean_error: median over datasets of the largest error of a mean, in sds.
        first_seconds: of the first call in this process, compilation included.
        warm_seconds: of a later call with one dataset; the median of some.
        seconds_per_dataset: over all datasets, as the method takes them: together or one by one.
        solver: built and warm.
    """

    budget: Budget
    share: float
    strict: float
    mean_error: float
    first_seconds: float
    warm_seconds: float
    seconds_per_dataset: float
    solver: Solver

    @property
    def figures(self) -> dict[str, float]:
        """By name."""
        return {"share": self.share, "share_strict": self.strict, "mean_error": self.mean_error,
                "warm_seconds": self.warm_seconds, "reached": float(self.share >= ENOUGH)}

    @property
    def record(self) -> dict[str, Any]:
        """JSON values."""
        return {"budget": dict(self.budget), "share": self.share, "share_strict": self.strict,
                "first_seconds": self.first_seconds, "warm_seconds": self.warm_seconds,
                "seconds_per_dataset": self.seconds_per_dataset}


def _trials(case: AlternativesCase, method: Alternative, budgets: Sequence[Budget], sizes: Sizes, reference: Reference,
            seed: int) -> list[Trial]:
    """Of one budget after the other, until one is enough."""
    dataset, found = case.draw(sizes.accuracy), []
    for budget in budgets:
        found.append(_trial(case, method, budget, dataset, reference, seed))
        if not found[-1].share < ENOUGH:  # NaN where no dataset has a reference: more would be in vain
            break
    return found


def _trial(case: AlternativesCase, method: Alternative, budget: Budget, dataset: Dataset, reference: Reference,
           seed: int) -> Trial:
    began = time.perf_counter()
    solver = method.builder(case.model(), **budget)
    solver(dataset[:1], seed)
    first = time.perf_counter() - began
    answer, singles, each = (_timed_together if method.batched else _timed_singly)(solver, dataset, seed)
    errors = errors_of_answer(answer, reference)
    return Trial(budget, _share(errors.accurate_up_to_chance, reference), _share(errors.accurate, reference),
                 float(errors.mean.nanmedian()), first, statistics.median(singles), each, solver)


def _timed_together(solver: Solver, dataset: Dataset, seed: int) -> tuple[Answer, list[float], float]:
    """Answers, seconds of some single calls, and seconds per dataset."""
    began = time.perf_counter()
    answer = solver(dataset, seed)
    each = (time.perf_counter() - began) / len(dataset)
    return answer, _timed_singly(solver, dataset[:_WARM_CALLS], seed)[1], each


def _timed_singly(solver: Solver, dataset: Dataset, seed: int) -> tuple[Answer, list[float], float]:
    answers, seconds = [], []
    for i in range(len(dataset)):
        began = time.perf_counter()
        answers.append(solver(dataset[i:i + 1], seed))
        seconds.append(time.perf_counter() - began)
    return Answer.joined(answers), seconds, statistics.mean(seconds)


def _many_figures(case: AlternativesCase, method: Alternative, best: Trial, sizes: Sizes, seed: int) -> (
        dict[str, float]):
    """Seconds for a thousand datasets: measured where they go together and time allows, else in proportion."""
    if not method.batched or sizes.many * best.seconds_per_dataset > sizes.most_seconds:
        return {"many_seconds": MANY * best.seconds_per_dataset, "many_measured": 0.0}
    dataset = case.draw(sizes.many, number=1)
    began = time.perf_counter()
    best.solver(dataset, seed)
    each = (time.perf_counter() - began) / sizes.many
    return {"many_seconds": MANY * each, "many_measured": float(sizes.many == MANY)}


def _share(accurate: torch.Tensor, reference: Reference) -> float:
    return float(accurate[reference.usable].double().mean())


def _entry(value: float) -> Mapping[str, float | None]:
    return {"mean": value if math.isfinite(value) else None, "standard_error": None}
