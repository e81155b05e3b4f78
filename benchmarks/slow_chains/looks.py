"""How far off are chains of networks at every look, and which looks do they pass?

    python benchmarks/slow_chains/looks.py --shift heavy_tails --datasets 614 701 628

Takes datasets of neural regression in 1D of `posteria bench trust`, lets the ladder's chains go on whatever they pass,
and prints the largest error of a mean at eight inputs at each look, in posterior sds, against chains of 4,096 sweeps of
which half is forgotten: a minute per dataset, on one core.
"""

from __future__ import annotations

from itertools import islice

import torch

from bench import QUANTITIES, SEED, SIZE, asked_for, posed, say
from posteria.bench.samplers import Moments
from posteria.bench.trust_units import unit_moments
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from posteria.refinement import Accuracy
from posteria.refinement.chains import overdispersed, own_looks
from posteria.trust.posing import problem_of, to_theta, to_z

LOOKS, LENGTH, REFERENCE_SEED = 5, 2_048, 1_000


def main() -> None:
    """Print the errors of every look."""
    datasets = {"type": int, "nargs": "+", "default": [614, 701, 628], "help": "their numbers"}
    runs_of_each = {"type": int, "default": 2, "help": "runs of 64 chains per dataset"}
    asked = asked_for(__doc__, {"--datasets": datasets, "--chains": runs_of_each})
    estimator, shifted = posed(asked)
    for number in asked.datasets:
        own = estimator.posterior(shifted[number:number + 1])
        known, _, _ = unit_moments(own.model, own.dataset, QUANTITIES, SIZE.min_ess, REFERENCE_SEED + number, (LENGTH,))
        for seed in range(asked.chains):
            say(f"{number}: {', '.join(errors(own, known, seed))}")


@torch.no_grad()
def errors(own: Posterior, known: Moments, seed: int) -> list[str]:
    """What is off at every look, with a star where the chains pass it."""
    problem, dataset = problem_of(own.model, own.dataset), own.dataset.double()
    starts = overdispersed(problem, to_z(problem, own.sample_theta(SIZE.num_draws, seed)))
    found = []
    for run in islice(own_looks(problem, starts, Accuracy(), generator_for(SEED, seed)), LOOKS):
        values = QUANTITIES(own.model, dataset, to_theta(problem, run.z)[:, None])[:, 0]
        error = ((values.mean(1) - known.mean) / known.sd).abs().amax()
        found.append(f"{float(error):.3f}{'*' if run.converged.all() else ''}")
    return found


if __name__ == "__main__":
    main()
