"""Are answers accurate whose posteriors take slow chains? References as those of `posteria bench trust`, but longer.

    python benchmarks/slow_chains/bench.py --shift outliers --first 0 --longest 4096

Takes 27 datasets of neural regression in 1D, as that bench does, puts them through the ladder, and prints the errors of
every answer with a trusted label: three minutes, and up to five for every answer, on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from posteria.bench.samplers import Moments
from posteria.bench.scales import SCALES
from posteria.bench.trust_accuracy import Reference, errors_of
from posteria.bench.trust_bench import SIZES, TrustCell
from posteria.bench.trust_cases import CASES
from posteria.bench.trust_shifts import SHIFTS, draw_shifted
from posteria.bench.trust_units import LENGTHS, unit_moments
from posteria.bench.workspace import Workspace
from posteria.estimator import Estimator
from posteria.posterior import Posterior
from posteria.types import Dataset

CASE, TOGETHER, COUNT, SEED = "nlr_relu1_1d", 27, 1_000, 0
QUANTITIES, SIZE = CASES[CASE].quantities, SIZES["laptop"]


def main() -> None:
    """Print the errors of trusted answers."""
    first = {"type": int, "default": 0, "help": f"number of the first of {TOGETHER} datasets, a multiple of it"}
    longest = {"type": int, "default": 4 * LENGTHS[-1], "help": "draws kept per chain"}
    only = {"type": int, "nargs": "+", "help": "numbers of the datasets to compare; all with a trusted label otherwise"}
    asked = asked_for(__doc__, {"--first": first, "--longest": longest, "--only": only})
    estimator, shifted = posed(asked)
    rows = shifted[asked.first:asked.first + TOGETHER]
    refined = estimator.posterior(rows).refine(num_draws=SIZE.num_draws, seed=SEED)
    trusted = refined.trusted.nonzero()[:, 0].tolist()
    say(f"{asked.shift} from {asked.first} on: {len(trusted)} of {len(rows)} trusted")
    for place, number in enumerate(trusted):
        if asked.only is None or asked.first + number in asked.only:
            found = compared(refined.posterior[number], SEED + asked.first + place, asked.longest)
            say(f"{asked.first + number}: {found}")


def asked_for(description: str | None, own: Mapping[str, Mapping[str, Any]]) -> argparse.Namespace:
    """What the command line says, with options of the script's own."""
    ask = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--shift", default="outliers", choices=["scale_x5", "heavy_tails", "outliers", "n_1000"])
    ask.add_argument("--runs", type=Path, default=Path("benchmarks/paper"), help="folder of the bench's estimators")
    for name, options in own.items():
        ask.add_argument(name, **options)
    return ask.parse_args()


def posed(asked: argparse.Namespace) -> tuple[Estimator, Dataset]:
    """The bench's estimator, and its datasets under a shift."""
    estimator = Workspace(asked.runs).trained(TrustCell(SCALES["laptop"], CASE, asked.shift).config).to("cpu")
    return estimator, draw_shifted(estimator.model, CASES[CASE].columns, SHIFTS[asked.shift], COUNT, SEED)


def say(line: str) -> None:
    """At once, so that a run that is cut off has told what it knew."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def compared(answer: Posterior, seed: int, longest: int) -> str:
    """The errors of one answer, and how long it took to know them."""
    began = time.perf_counter()
    lengths = [2**k for k in range(6, 30) if 2**k <= longest]
    moments, usable, _ = unit_moments(answer.model, answer.dataset, QUANTITIES, SIZE.min_ess, seed, lengths)
    found = off(answer, moments) if usable.all() else "no reference"
    return f"{found} ({time.perf_counter() - began:.0f} s)"


def off(answer: Posterior, moments: Moments) -> str:
    """The errors of one answer."""
    known = Reference(moments, torch.ones(1, dtype=torch.bool), exact=False)
    errors = errors_of(answer, known, QUANTITIES, SIZE.num_draws)
    return (f"mean {errors.mean.item():.3f} sd off, sds times {errors.narrowest.item():.3f} to "
            f"{errors.widest.item():.3f}")


if __name__ == "__main__":
    main()
