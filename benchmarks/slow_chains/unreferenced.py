"""Are trusted answers accurate for which `posteria bench trust` has no reference? Some of them, taken at random.

    python benchmarks/slow_chains/unreferenced.py --shift outliers --count 20

Reads from the bench's store which answers of a cell these are, puts some of their datasets through the ladder again,
each by itself, and compares what is trusted with chains of 16,384 sweeps of which half is forgotten, whether they agree
or not: two minutes per dataset, on one core. The numbers of all that there are come first.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from bench import CASE, COUNT, QUANTITIES, SEED, SIZE, asked_for, off, posed, say
from posteria.bench.scales import SCALES
from posteria.bench.trust_bench import TrustCell
from posteria.bench.trust_units import unit_moments
from posteria.bench.workspace import Workspace
from posteria.posterior import Posterior
from posteria.randomness import generator_for

REFERENCE_SEED = 2_000


def main() -> None:
    """Print the errors of some."""
    count = {"type": int, "default": 20, "help": "how many to take"}
    length = {"type": int, "default": 8_192, "help": "draws kept per chain, after as many"}
    only = {"type": int, "nargs": "+", "help": "numbers of other datasets to take, such as those of earlier versions"}
    asked = asked_for(__doc__, {"--count": count, "--length": length, "--only": only})
    estimator, shifted = posed(asked)
    for number in asked.only or some(unreferenced(asked.runs, asked.shift), asked.count):
        began = time.perf_counter()
        refined = estimator.posterior(shifted[number:number + 1]).refine(num_draws=SIZE.num_draws, seed=SEED + number)
        found = "failed"
        if refined.trusted.all():
            found = compared(refined.posterior, REFERENCE_SEED + number, asked.length)
        say(f"{number}: {found} ({time.perf_counter() - began:.0f} s)")


def some(numbers: Tensor, count: int) -> list[int]:
    """A few of them, at random."""
    say(f"{len(numbers)} trusted without a reference: {numbers.tolist()}")
    return numbers[torch.randperm(len(numbers), generator=generator_for(SEED))][:count].tolist()


def unreferenced(runs: Path, shift: str) -> Tensor:
    """Numbers of a cell's trusted datasets that had no usable reference."""
    cell = TrustCell(SCALES["laptop"], CASE, shift, SEED)
    parts = Workspace(runs).partial(cell.parts_key)
    known = [(first, part) for first in range(COUNT) if (part := parts.get(first)) is not None]
    return torch.tensor([first + place for first, part in known
                         for place in (part["trusted"] & ~part["usable"]).nonzero()[:, 0].tolist()])


def compared(answer: Posterior, seed: int, length: int) -> str:
    """How far one answer is off, and whether the chains agree with each other that say so."""
    moments, agree, _ = unit_moments(answer.model, answer.dataset, QUANTITIES, SIZE.min_ess, seed, (length,))
    return f"{off(answer, moments)}, chains {'agree' if agree.all() else 'do not agree'}"


if __name__ == "__main__":
    main()
