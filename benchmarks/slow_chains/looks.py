"""How far off are chains of networks at every look, and which looks do they pass?

    python benchmarks/slow_chains/looks.py --shift heavy_tails --datasets 614 701

Takes datasets of neural regression in 1D of `posteria bench trust`, lets the ladder's chains go on for 640 sweeps
whether they pass or not, and prints the largest error of a mean at eight inputs at each look, in posterior sds, against
chains of 4,096 sweeps of which half is forgotten: a minute per dataset, on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from bench import CASE, COUNT, QUANTITIES, SEED, SIZE, say
from posteria.bench.samplers import Moments
from posteria.bench.scales import SCALES
from posteria.bench.trust_bench import TrustCell
from posteria.bench.trust_cases import CASES
from posteria.bench.trust_shifts import SHIFTS, draw_shifted
from posteria.bench.trust_units import unit_moments
from posteria.bench.workspace import Workspace
from posteria.estimator import Estimator
from posteria.randomness import generator_for
from posteria.refinement import Accuracy, chains
from posteria.trust.posing import problem_of, to_theta
from posteria.types import Dataset

LOOKS, LENGTH = 5, 2_048


def main() -> None:
    """Print the errors of every look."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--shift", default="heavy_tails", choices=["scale_x5", "heavy_tails", "outliers", "n_1000"])
    ask.add_argument("--datasets", type=int, nargs="+", default=[614, 701], help="their numbers")
    ask.add_argument("--chains", type=int, default=2, help="runs of 64 chains per dataset")
    ask.add_argument("--runs", type=Path, default=Path("benchmarks/paper"), help="folder of the bench's estimators")
    asked = ask.parse_args()
    cell = TrustCell(SCALES["laptop"], CASE, asked.shift)
    estimator = Workspace(asked.runs).trained(cell.config).to("cpu")
    shifted = draw_shifted(estimator.model, CASES[CASE].columns, SHIFTS[asked.shift], COUNT, SEED)
    for number in asked.datasets:
        dataset = shifted[number:number + 1]
        known, _, _ = unit_moments(estimator.model, dataset, QUANTITIES, SIZE.min_ess, COUNT + number, (LENGTH,))
        for seed in range(asked.chains):
            say(f"{number}: {', '.join(looks(estimator, dataset, known, seed))}")


@torch.no_grad()
def looks(estimator: Estimator, dataset: Dataset, known: Moments, seed: int) -> list[str]:
    """What is off at every look, with a star where the chains pass it."""
    problem, generator = problem_of(estimator.model, dataset), generator_for(SEED, seed)
    draws = estimator.posterior(dataset).sample_theta(SIZE.num_draws, seed).double()
    whitened = (draws - problem.joint.location) / problem.joint.scale
    z = chains.overdispersed(problem, whitened).repeat_interleave(chains._CHAINS, 1)
    drawn: list[Tensor] = []
    found = []
    assert problem.moves is not None
    for stretch in chains._OWN_STRETCHES[:LOOKS]:
        length = stretch * chains._NUM_SAMPLES
        while len(drawn) < chains._forgotten(length) + length:
            z = problem.moves(z, generator)
            drawn.append(z)
        kept = torch.stack(drawn[-length:], 2)
        passed = chains._judged(problem, kept[:, :, stretch - 1::stretch], Accuracy()).converged
        values = QUANTITIES(estimator.model, dataset.double(), to_theta(problem, kept.flatten(1, 2))[:, None])[:, 0]
        error = ((values.mean(1) - known.mean) / known.sd).abs().amax()
        found.append(f"{float(error):.3f}{'*' if passed.all() else ''}")
    return found


if __name__ == "__main__":
    main()
