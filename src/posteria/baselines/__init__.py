"""Baselines: what estimates a posterior from one dataset at a time, vectorised over thousands of them.

Every sampler is one file, read in the order build, State, init, update; it sees a model only through its log joint. A
new one costs a file, an import and an entry here. :func:`posteria.reference.run_baseline` runs them on a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from posteria.baselines import chees, hmc, langevin, laplace, optimization, prior
from posteria.baselines.base import Info, Sampler, State
from posteria.baselines.run import Budget, Draws, run


@dataclass(frozen=True)
class Baseline:
    """A sampler and the sizes that it is run with unless told otherwise.

    Attributes:
        build: (log_joint, **settings) -> :class:`Sampler`.
        num_chains, num_samples, thin, rounds: see :class:`Budget`.
        chains: draws follow each other in chains, so that convergence can be diagnosed.
        several: a chain gives more than one draw.
        steered: its trajectories may be led by gradients of less precision; ``build`` takes them as ``steer``.
    """

    build: Callable[..., Sampler]
    num_chains: int = 8
    num_samples: int = 500
    thin: int = 1
    rounds: int = 1
    chains: bool = True
    several: bool = True
    steered: bool = False


BASELINES: dict[str, Baseline] = {
    "prior": Baseline(prior.build, num_chains=1000, num_samples=1, chains=False, several=False),
    "optimization": Baseline(optimization.build, num_chains=25, num_samples=1, chains=False, several=False),
    "laplace": Baseline(laplace.build, num_samples=125, chains=False),
    "mala": Baseline(langevin.build, num_samples=1000, thin=5, rounds=3),
    "hmc": Baseline(hmc.build, rounds=4, steered=True),
    "chees": Baseline(chees.build, num_chains=16, num_samples=250, rounds=4),
    "paper_langevin": Baseline(langevin.build_paper, num_samples=1000, thin=5),
    "paper_hmc": Baseline(hmc.build_paper, num_samples=1000, thin=5),
}

__all__ = ["BASELINES", "Baseline", "Budget", "Draws", "Info", "Sampler", "State", "run"]
