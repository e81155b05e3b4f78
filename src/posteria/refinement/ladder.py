"""The ladder: each dataset climbs only as far as it must.

1. amortized: q itself meets the target, as far as its importance weights can tell.
2. reweighted: the weights are reliable, and enough draws of q are cheap.
3. refined: the same with a proposal of the dataset's own: hyperparameters first, then the others given these, where the
   model declares some; natural-gradient steps from q's mean, then moments of the weighted draws, elsewhere.
4. mcmc: many short chains; not for networks of more than a few hundred weights, unless they are asked for.
5. failed.

Before the first rung, climbs from over-dispersed points look for modes that q has left out: weights cannot see those.
Where one is found the dataset starts on the third rung, with all modes in the proposal.

Rungs 1 to 3 give a dataset the same answer whatever else is in the batch, for given draws of q; chains share their
random numbers with the batch, so that theirs agree within Monte Carlo error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posteria.refinement.accuracy import Accuracy, Change, Moments
from posteria.refinement.chains import MAX_R_HAT, ChainRun, least_evaluations, overdispersed, run_chains
from posteria.refinement.modes import Modes, missed_modes, unvisited_modes
from posteria.refinement.nested import nested, nests
from posteria.refinement.problem import Problem
from posteria.refinement.tailored import LEAST_ESS, Tailored, tailored
from posteria.refinement.weights import MAX_PARETO_K, Weights, resample

STATUSES = ("amortized", "reweighted", "refined", "mcmc", "failed")
AMORTIZED, REWEIGHTED, REFINED, MCMC, FAILED = range(len(STATUSES))
# Which rungs a method may use.
METHODS: Mapping[str, tuple[int, ...]] = {
    "auto": (AMORTIZED, REWEIGHTED, REFINED, MCMC),
    "reweight": (AMORTIZED, REWEIGHTED),
    "laplace": (REFINED,),
    "mcmc": (MCMC,),
}
# Rung 2 may draw so many times what the diagnosis did: chains take longer.
_MOST_EFFORT = 64
# Where relabellings are too many to list, a proposal around one mode is in vain, and only chains are left: more
# draws then, up to this many numbers per dataset, and while k-hat is below this: it falls where q covers the posterior.
_MOST_PATIENCE, _MOST_NUMBERS, _HOPELESS_K = 192, 2**24, 1.0
# Then so many datasets are taken together, so that the draws of those that take many fit in memory. Not fewer: a source
# may draw for all datasets whenever it is asked for more of some.
_TOGETHER = 32
# And no more than so many for every evaluation that chains take at the least, where a problem has moves of its own. A
# draw, its density and its weight take two; and weighted draws have an evidence and a k-hat, which are worth something.
_WORTH = 3
# Draws grow by this part before they are judged again: judging takes long, too.
_GROWTH = 3
# Parameters up to which posteriors with a mode for every relabelling are worth a try with chains, unasked.
_MOST_WITH_MODES = 256
_WHY_NO_CHAINS = 'no chains, for too many interchangeable parameters (the method "mcmc" tries them)'
# Datasets times parameters that get proposals together: what fits in memory with the most draws.
_MOST_ENTRIES = 2048


@dataclass(frozen=True)
class Source:
    """The posterior q that is to be checked.

    Attributes:
        z: (B, S, P) its draws.
        log_q: (B, S) their log density in z, or None where q has none.
        more: (b,) some of the datasets, and the number of a batch (from 1) -> as many draws and densities of those; a
            dataset's draws do not depend on which others are asked for, nor on what was asked for before. None where
            there are no more.
        log_prob: (B, K, P) -> (B, K), or None.
    """

    z: Tensor
    log_q: Tensor | None
    more: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None = None
    log_prob: Callable[[Tensor], Tensor] | None = None


@dataclass
class Outcome:
    """Where B datasets ended, being filled in from rung to rung.

    Attributes:
        status: (B,) long, an index into :data:`STATUSES`.
        reason: per dataset, why it is there: what the rung reached, and what the last one below lacked.
        z: (B, num_draws, P) draws of the answer; q's own where it is amortized.
        pareto_k, ess, r_hat, log_evidence: (B,) of the answer; NaN where its rung has none.
        seconds, evaluations: (B,) cost: a rung's time is shared evenly by the datasets on it.
        weights: of q, or None where q has no density.
        modes: what the search for modes found, or None where it was not made.
    """

    status: Tensor
    reason: list[str]
    z: Tensor
    pareto_k: Tensor
    ess: Tensor
    r_hat: Tensor
    log_evidence: Tensor
    seconds: Tensor
    evaluations: Tensor
    weights: Weights | None = None
    modes: Modes | None = None
    began: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, source: Source, num_draws: int) -> Outcome:
        """Nothing decided yet."""
        batch, available, size = source.z.shape
        nowhere = torch.full((batch,), torch.nan, dtype=torch.double)
        z = source.z[:, torch.arange(num_draws) % available].clone()
        return cls(torch.full((batch,), FAILED), [""] * batch, z.view(batch, num_draws, size), nowhere.clone(),
                   nowhere.clone(), nowhere.clone(), nowhere.clone(), torch.zeros_like(nowhere),
                   torch.zeros(batch, dtype=torch.long))

    def spend(self, index: Tensor, evaluations: int | Tensor) -> None:
        """Book the time since the last booking, and likelihood evaluations, on some datasets."""
        now = time.perf_counter()
        self.seconds[index] += (now - self.began) / max(len(index), 1)
        self.evaluations[index] += evaluations
        self.began = now

    def settle(self, index: Tensor, status: int, **figures: Tensor) -> None:
        """Datasets (b,) end here."""
        self.status[index] = status
        for name, values in figures.items():
            getattr(self, name)[index] = values.to(getattr(self, name).dtype)

    def say(self, index: Tensor, sentences: list[str], before: bool = False) -> None:
        """Add to the reasons: the last rung's first."""
        for place, sentence in zip(index.tolist(), sentences, strict=True):
            parts = [sentence, self.reason[place]] if before else [self.reason[place], sentence]
            self.reason[place] = "; ".join(part for part in parts if part)


def climb_ladder(problem: Problem, source: Source, target: Accuracy, rungs: tuple[int, ...],
                 generator: torch.Generator, num_draws: int) -> Outcome:
    """Give every dataset the cheapest rung that passes.

    Args:
        problem: B posteriors.
        source: q's draws and densities.
        target: what counts as good enough.
        rungs: those allowed, see :data:`METHODS`.
        generator: of all randomness but q's.
        num_draws: draws of an answer.
    """
    outcome = Outcome.of(source, num_draws)
    everyone, height = torch.arange(len(problem)), None
    if source.log_q is not None:
        height = problem.density(source.z)
        outcome.weights = Weights.of(height, source.log_q)
        outcome.spend(everyone, source.z.shape[1])
    if problem.single_mode:
        outcome.modes = _found_modes(problem, source, outcome.weights, height)
        outcome.spend(everyone, 0)
    rest = _keep_own(problem, source, target, outcome, everyone, AMORTIZED in rungs)
    climbing = {REWEIGHTED: _reweight, REFINED: _refine, MCMC: _sample}
    for rung in (rung for rung in rungs if rung in climbing):
        if rung == MCMC and len(rungs) > 1:
            rest = _without_hopeless(problem, outcome, rest)
        if len(rest):
            rest = climbing[rung](problem, source, target, outcome, rest, generator)
    return outcome


def _without_hopeless(problem: Problem, outcome: Outcome, index: Tensor) -> Tensor:
    """Those for which chains would not take minutes to find that they sit in different modes."""
    if problem.single_mode:
        return index
    many = problem.active[index].sum(-1) > _MOST_WITH_MODES
    outcome.say(index[many], [_WHY_NO_CHAINS] * int(many.sum()), before=True)
    return index[~many]


def _found_modes(problem: Problem, source: Source, weights: Weights | None, height: Tensor | None) -> Modes:
    """Beside what q's draws found, whose log joint is height (B, S)."""
    if source.log_prob is None or weights is None or height is None:
        return unvisited_modes(problem, source.z, None if weights is None else weights.log_evidence)
    highest = height.nan_to_num(-torch.inf, -torch.inf, -torch.inf).argmax(-1)
    best = source.z[torch.arange(len(problem)), highest]
    return missed_modes(problem, source.log_prob, weights.log_evidence, best)


def _keep_own(problem: Problem, source: Source, target: Accuracy, outcome: Outcome, index: Tensor,
              allowed: bool) -> Tensor:
    """Rung 1; returns the datasets that have to climb."""
    weights = outcome.weights
    if weights is None:
        outcome.say(index, ["q has no density"] * len(index))
        return index
    values = problem.values(source.z)
    change = Change.of(values, weights.weights)
    seen = _unseen(outcome)
    good = weights.reliable & (weights.ess >= LEAST_ESS) & ~seen
    passed = good & change.passes(target, problem.counted) & allowed
    passed[passed.clone()] &= _sound_spread(weights[passed], values[passed], problem.counted[passed])
    outcome.settle(index[passed], AMORTIZED, pareto_k=weights.pareto_k[passed], ess=weights.ess[passed],
                   log_evidence=weights.log_evidence[passed])
    shift = torch.where(problem.counted, change.shift.abs(), 0.0).amax(-1)
    outcome.say(index, [_of_q(weights, i, float(shift[i]), bool(seen[i])) for i in index.tolist()])
    outcome.spend(index, 0)
    return index[~passed]


def _unseen(outcome: Outcome) -> Tensor:
    """(B,) bool: q has left a mode out."""
    return torch.zeros_like(outcome.status, dtype=torch.bool) if outcome.modes is None else outcome.modes.missed


def _of_q(weights: Weights, i: int, shift: float, unseen: bool) -> str:
    bad, number = int(weights.bad[i]), weights.weights.shape[1]
    lost = f"{bad} of {number} log densities not finite or beyond rounding"
    if bad == number:
        return f"q: {lost}"
    words = f"q: k-hat {weights.pareto_k[i]:.2f}, ESS {weights.ess[i]:.0f}, mean off by {shift:.2g} sd"
    return ", ".join([words, *([lost] if bad else []), *(["a mode left out"] if unseen else [])])


def _reweight(problem: Problem, source: Source, target: Accuracy, outcome: Outcome, index: Tensor,
              generator: torch.Generator) -> Tensor:
    """Rung 2; the weighted draws of q, more of them where the target takes more."""
    weights = outcome.weights
    if weights is None:
        return index
    # Elsewhere the next rung is the cheaper try.
    limit = 0.0 if problem.single_mode else _HOPELESS_K
    hopeful = (weights.reliable | (weights.pareto_k < limit))[index] & ~_unseen(outcome)[index]
    most = _most_effort(problem, source.z)
    together = max(1, len(index)) if problem.single_mode else _TOGETHER
    left = [_reweight_part(problem, source, target, outcome, part, most[part], limit, generator)
            for part in index[hopeful].split(together) if len(part)]
    return torch.cat([index[~hopeful], *left]).sort().values


def _reweight_part(problem: Problem, source: Source, target: Accuracy, outcome: Outcome, tried: Tensor, most: Tensor,
                   limit: float, generator: torch.Generator) -> Tensor:
    """Rung 2 for the datasets tried (b,), in up to most (b,) times as many draws; those that are left."""
    rest, part = [], problem[tried]
    z, log_q = source.z[tried], _required(source.log_q)[tried]
    log_joint, values = part.density(z), part.values(z)
    outcome.spend(tried, z.shape[1])
    while len(tried):
        now = Weights.of(log_joint, log_q)
        effort = Moments.of(values, now.weights).effort(target, part.counted)
        enough = now.reliable & (effort <= 1.0) & (now.ess >= LEAST_ESS)
        done = enough.clone()
        done[enough] = _sound_spread(now[enough], values[enough], part.counted[enough])
        _settle_weighted(outcome, tried[done], REWEIGHTED, z[done], now[done], generator)
        _say_unsound(outcome, tried[enough & ~done])
        # What is out of reach with the most draws is left to the next rung, and so is what has too heavy a tail for q.
        batches = z.shape[1] // source.z.shape[1]
        affordable = ~enough & (effort * batches <= most)
        going = ~done & (batches < most) & torch.where(now.reliable, affordable, now.pareto_k < limit)
        rest.append(tried[~done & ~going])
        tried, most = tried[going], most[going]
        if not len(tried) or source.more is None:
            break
        part, known = problem[tried], [kept[going] for kept in (z, log_q, log_joint, values)]
        until = min(batches + max(1, batches // _GROWTH), int(most.amax()))
        new = [source.more(tried, number) for number in range(batches, until)]
        new_z, new_q = (torch.cat(batch, 1) for batch in zip(*new, strict=True))
        fresh = (new_z, new_q, part.density(new_z), part.values(new_z))
        outcome.spend(tried, new_z.shape[1])
        z, log_q, log_joint, values = (torch.cat(both, 1) for both in zip(known, fresh, strict=True))
    return torch.cat([*rest, tried])


def _sound_spread(weights: Weights, values: Tensor, counted: Tensor) -> Tensor:
    """(B,) bool: no sd rests on squares whose weighted tail is too heavy."""
    return weights.spread_k(values, counted) < MAX_PARETO_K


def _say_unsound(outcome: Outcome, index: Tensor) -> None:
    outcome.say(index, ["sds rest on the tails of q's weights"] * len(index), before=True)


def _most_effort(problem: Problem, z: Tensor) -> Tensor:
    """(B,) how many times as many draws as z (B, S, P) rung 2 may take."""
    if problem.single_mode:
        return torch.full((len(problem),), _MOST_EFFORT)
    most = min(max(_MOST_NUMBERS // z[0].numel(), _MOST_EFFORT), _MOST_PATIENCE)
    least = least_evaluations(problem)
    return torch.full((len(problem),), most) if least is None else (_WORTH * least / z.shape[1]).long().clamp(1, most)


def _required(log_q: Tensor | None) -> Tensor:
    assert log_q is not None  # there are weights
    return log_q


def _settle_weighted(outcome: Outcome, index: Tensor, status: int, z: Tensor, weights: Weights,
                     generator: torch.Generator, how: str = "") -> None:
    """Datasets (b,) end with weighted draws (b, S, P)."""
    again = torch.Generator(device=generator.device).manual_seed(generator.initial_seed())
    chosen = resample(weights.weights, outcome.z.shape[1], again)
    drawn = z.gather(1, chosen[..., None].expand(-1, -1, z.shape[-1]))
    outcome.settle(index, status, z=drawn, pareto_k=weights.pareto_k, ess=weights.ess,
                   log_evidence=weights.log_evidence)
    name = f"{STATUSES[status]}{how}"
    outcome.say(index, [f"{name}: k-hat {k:.2f}, ESS {ess:.0f} of {z.shape[1]} draws" for k, ess in zip(
        weights.pareto_k.tolist(), weights.ess.tolist(), strict=True)], before=True)


def _refine(problem: Problem, source: Source, target: Accuracy, outcome: Outcome, index: Tensor,
            generator: torch.Generator) -> Tensor:
    """Rung 3, apart for the datasets with modes that q has left out: their proposals have more components."""
    unseen = _unseen(outcome)[index]
    # q's mean is no place to start from where q contains all labellings.
    several = unseen | (problem.permutations is not None)
    rest = []
    block = max(1, _MOST_ENTRIES // source.z.shape[-1])
    for group, modes in ((index[~several], None), (index[several], outcome.modes)):
        for part in group.split(block) if len(group) else ():
            rest.append(_refine_part(problem[part], source.z[part], None if modes is None else modes.z[part], target,
                                     outcome, part, generator))
    return torch.cat(rest).sort().values


def _refine_part(problem: Problem, z: Tensor, modes: Tensor | None, target: Accuracy, outcome: Outcome, index: Tensor,
                 generator: torch.Generator) -> Tensor:
    """A nested proposal where the model declares one, then a Gaussian one; returns the datasets that pass with neither.

    Where nested weights are reliable but the target takes more draws, a Gaussian proposal would take more still.
    """
    rest = index.new_zeros(0)
    if nests(problem):
        answer = nested(problem, z, target, generator, modes is not None)
        left = _settle_parts(outcome, index, answer, "nested", generator)
        enough = (answer.pareto_k[left] < MAX_PARETO_K) & (modes is None)
        rest, left = index[left[enough]], left[~enough]
        problem, z, index, modes = problem[left], z[left], index[left], None if modes is None else modes[left]
    if not len(index):
        return rest
    starts = z.double().mean(1, keepdim=True)
    starts = starts if modes is None else torch.cat([starts, modes], 1)
    answer = tailored(problem, starts, target, generator)
    return torch.cat([rest, index[_settle_parts(outcome, index, answer, "own", generator)]])


def _settle_parts(outcome: Outcome, index: Tensor, answer: Tailored, name: str, generator: torch.Generator) -> Tensor:
    """Datasets (b,) with an answer end here; returns the places of the others among them."""
    outcome.spend(index, answer.evaluations)
    left = torch.ones(len(index), dtype=torch.bool)
    for places, drawn, weights in answer.parts:
        _settle_weighted(outcome, index[places], REFINED, drawn, weights, generator, f" ({name} proposal)")
        left[places] = False
    missing = left.nonzero()[:, 0]
    outcome.say(index[missing], [f"{name} proposal: k-hat {k:.2f}, ESS {ess:.0f}" for k, ess in zip(
        answer.pareto_k[missing].tolist(), answer.ess[missing].tolist(), strict=True)], before=True)
    return missing


def _sample(problem: Problem, source: Source, target: Accuracy, outcome: Outcome, index: Tensor,
            generator: torch.Generator) -> Tensor:
    """Rung 4; where it fails, its draws are what there is."""
    part = problem[index]
    finite = source.z[index].isfinite().all(-1, keepdim=True)
    modes = None if outcome.modes is None else outcome.modes[index]
    starts = overdispersed(part, torch.where(finite, source.z[index], 0.0), modes)
    run = run_chains(part, starts, target, generator)
    outcome.spend(index, run.evaluations)
    # Evenly along all chains: neighbours are alike, so that little is lost.
    places = resample(run.z.new_ones(1, run.z.shape[1]), outcome.z.shape[1], generator)[0]
    drawn = relabelled(run.z[:, places], problem.permutations, generator)
    for status, chosen in ((MCMC, run.converged), (FAILED, ~run.converged)):
        outcome.settle(index[chosen], status, z=drawn[chosen], r_hat=run.r_hat[chosen], ess=run.ess[chosen])
    outcome.say(index, [f"{_verdict(run, i)}: nested R-hat {run.r_hat[i]:.3f}, ESS {run.ess[i]:.0f}"
                        for i in range(len(index))], before=True)
    return index[~run.converged]


def _verdict(run: ChainRun, i: int) -> str:
    if run.converged[i]:
        return STATUSES[MCMC]
    if not run.known[i]:
        return "log densities of chains not finite or beyond rounding"
    if not run.r_hat[i] < MAX_R_HAT:
        return "chains do not agree"
    return "too few effective draws from chains" if run.steady[i] else "chains are still on their way"


def relabelled(z: Tensor, permutations: Tensor | None, generator: torch.Generator) -> Tensor:
    """Every draw (B, S, P) put through a relabelling (G, P) chosen at random: the posterior does not know labels."""
    if permutations is None:
        return z
    chosen = torch.randint(len(permutations), z.shape[:2], generator=generator)
    return z.gather(-1, permutations[chosen])
