"""Running a sampler: warm-up, sampling, and more of both for the datasets that have not converged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.baselines.base import Sampler, at_least
from posteria.errors import InputError
from posteria.metrics.convergence import Convergence

# Given the indices (b,) of some datasets, a sampler for them alone; ``longer`` multiplies its warm-up.
Rebuild = Callable[[Tensor, int], Sampler]


@dataclass(frozen=True)
class Budget:
    """How much to sample.

    Args:
        num_samples: S, draws that are kept per chain.
        thin: every so many iterations a draw is kept.
        rounds: how often the datasets that have not converged may run again, from where their chains are, with twice
            the warm-up and twice the thinning each time; 1 is a single run.
        max_r_hat, min_ess: what counts as converged, see :class:`posteria.metrics.convergence.Convergence`.

    Raises:
        InputError: a number out of its range.
    """

    num_samples: int = 500
    thin: int = 1
    rounds: int = 1
    max_r_hat: float = 1.01
    min_ess: float = 400.0

    def __post_init__(self) -> None:
        for name in ("num_samples", "thin", "rounds"):
            at_least(name, getattr(self, name), 1)
        if not self.max_r_hat > 1.0:
            raise InputError.of("max_r_hat", repr(self.max_r_hat), "a number above 1")


@dataclass(frozen=True)
class Draws:
    """What a sampler has drawn for B datasets.

    Attributes:
        z: (B, C, S, P) in prior-whitened parameters, zero where inactive.
        accept: (B,) mean acceptance probability while sampling.
        divergences: (B,) long, divergent transitions while sampling.
        step_size: (B,) mean while sampling.
        rounds: (B,) long, how many rounds each dataset took.
        seconds: of all of it.
        convergence: diagnostics of the chains; None for draws that are not chains.
        converged: (B,) bool; True throughout for draws that are not chains.
    """

    z: Tensor
    accept: Tensor
    divergences: Tensor
    step_size: Tensor
    rounds: Tensor
    seconds: float
    convergence: Convergence | None
    converged: Tensor


@torch.no_grad()
def run(rebuild: Rebuild, z: Tensor, active: Tensor, generator: torch.Generator, budget: Budget,
        diagnose: bool = True, block: int | None = None) -> Draws:
    """Warm up, sample, and go on with the datasets that have not converged, as far as the budget goes.

    Args:
        rebuild: makes a sampler for some of the datasets.
        z: (B, C, P) where the chains start.
        active: (B, P) bool, the parameters whose convergence counts.
        generator: the source of randomness.
        budget: how much to sample.
        diagnose: the draws are chains; otherwise there is one round and nothing to diagnose.
        block: how many datasets go together, one block after the other; default all of them. Trajectories of a block
            take as long as its longest one, and a processor is quickest while a block fits its cache.

    Examples:
        >>> everything = run(lambda index, longer: hmc.build(joint_of(index)), z, active,
        ...                  generator, Budget())                                      # doctest: +SKIP
    """
    began = time.perf_counter()
    parts = torch.arange(len(z), device=z.device).split(block or len(z))
    draws = _joined([_run_block(rebuild, part, z[part], active[part], generator, budget, diagnose) for part in parts])
    return replace(draws, seconds=time.perf_counter() - began)


def _run_block(rebuild: Rebuild, block: Tensor, z: Tensor, active: Tensor, generator: torch.Generator, budget: Budget,
               diagnose: bool) -> Draws:
    """All rounds of the datasets (b,) of a block, at z (b, C, P)."""
    draws = _collect(rebuild(block, 1), z, generator, budget)
    if not diagnose:
        return draws
    draws = _diagnosed(draws, active, budget)
    for number in range(1, budget.rounds):
        index = (~draws.converged).nonzero()[:, 0]
        if not len(index):
            break
        longer = 2**number
        again = _collect(rebuild(block[index], longer), draws.z[index, :, -1], generator,
                         replace(budget, thin=longer * budget.thin))
        draws = _diagnosed(_merged(draws, again, index), active, budget)
    return draws


def _collect(sampler: Sampler, z: Tensor, generator: torch.Generator, budget: Budget) -> Draws:
    """One round, not diagnosed."""
    state = sampler.init(z, generator)
    for _ in range(sampler.num_warmup):
        state, _ = sampler.update(state, generator)
    kept, accept, step = [], z.new_zeros(len(z)), z.new_zeros(len(z))
    divergences = torch.zeros(len(z), dtype=torch.long, device=z.device)
    for _ in range(budget.num_samples):
        for _ in range(budget.thin):
            state, info = sampler.update(state, generator)
            accept, step = accept + info.accept.mean(1), step + info.step_size
            divergences = divergences + info.divergent.sum(1)
        kept.append(state.z)
    total = budget.num_samples * budget.thin
    return Draws(torch.stack(kept, 2), accept / total, divergences, step / total, torch.ones_like(divergences), 0.0,
                 None, torch.ones_like(divergences, dtype=torch.bool))


def _joined(parts: list[Draws]) -> Draws:
    """The blocks as one."""
    whole = {name: torch.cat([getattr(part, name) for part in parts])
             for name in ("z", "accept", "divergences", "step_size", "rounds", "converged")}
    diagnosed = [part.convergence for part in parts if part.convergence is not None]
    return replace(parts[0], **whole, convergence=_all_of(diagnosed) if diagnosed else None)


def _all_of(parts: list[Convergence]) -> Convergence:
    whole = {name: torch.cat([getattr(part, name) for part in parts])
             for name in ("r_hat", "ess_bulk", "ess_tail", "divergences", "active")}
    return replace(parts[0], **whole)


def _merged(draws: Draws, again: Draws, index: Tensor) -> Draws:
    """The draws, with those of the datasets (b,) that have run again in place of their old ones."""
    new = {name: getattr(draws, name).index_copy(0, index, getattr(again, name))
           for name in ("z", "accept", "divergences", "step_size")}
    return replace(draws, **new, rounds=draws.rounds.index_add(0, index, torch.ones_like(index)))


def _diagnosed(draws: Draws, active: Tensor, budget: Budget) -> Draws:
    convergence = Convergence.of(draws.z, active, draws.divergences)
    return replace(draws, convergence=convergence,
                   converged=convergence.converged(budget.max_r_hat, budget.min_ess))
