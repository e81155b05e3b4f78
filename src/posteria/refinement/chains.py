"""Many short chains, and whether they agree: nested R-hat (Margossian et al. 2024, arXiv 2110.13017).

Chains come in superchains that start at one point each. Half of the starting points are draws of q, half are draws of
the prior, which is wider than the posterior: a mode that q never visits catches some of them, and the superchains then
disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.baselines import hmc
from posteria.metrics.convergence import ess_bulk
from posteria.refinement.accuracy import Accuracy
from posteria.refinement.modes import Modes
from posteria.refinement.problem import Counted, Problem
from posteria.refinement.transient import left_to_go
from posteria.refinement.weights import LARGEST_LOG_DENSITY

MAX_R_HAT = 1.01
_MOST_WARMUP = 4
_SUPERCHAINS, _CHAINS = 8, 8
_WARMUP, _NUM_SAMPLES, _ROUNDS = 60, 40, 3
# Chains that nearly agree go on as they are, for so many times as long, before they are warmed up anew.
_STRETCHES, _NEARLY = (1, 2, 4), 1.03
# Moves that have nothing to adapt gain nothing by that, and go on for longer. What they forget grows with them: chains
# that need long leave where they began slowly, and all in one direction, which neither effective draws nor R-hat see.
# So they forget as much as they keep, up to a number, and a share of it beyond; and once they have passed they go on
# for one more look (the longest apart), for of several looks the first to pass does so by luck at times. From the third
# look on they stop where effective draws that grow by such a factor with every further look would not be enough.
_OWN_WARMUP, _OWN_SHARE, _OWN_STRETCHES, _THIRD, _GROWTH = 320, 0.4, (1, 2, 4, 8, 16, 32), 3, 1.8
# And they are still on their way where the log joint has more left to go than such a share of the error that a mean may
# have: means of predictions had about as much left, or up to twice as much.
_MOST_LEFT = 0.5
# Two rounds that leave superchains further apart than this are not for lack of time: they sit in different modes.
_HOPELESS = 1.1
# Chains are still on their way in where a mean of their first fifth, that of the log joint included, is further than so
# many standard errors from that of their second half (Geweke 1992). Superchains that all leave a side mode slowly agree
# with each other.
_MOST_DRIFT = 4.0
# Gradients per dataset after which nothing new is begun.
_MOST_EVALUATIONS = 1_000_000


def nested_r_hat(draws: Tensor) -> Tensor:
    """(B, Q) sqrt(1 + B / W), their equation 9: B is the variance of the superchains' means, W the mean over
    superchains of the variance between their chains' means plus the variance within chains.

    Args:
        draws: (B, K, M, S, Q): K superchains of M chains of S draws.

    Returns:
        NaN where draws are not finite; infinity where superchains sit still at different values.

    Examples:
        >>> draws = torch.randn(1, 8, 8, 50, 2, generator=torch.Generator().manual_seed(0))
        >>> bool((nested_r_hat(draws) < 1.01).all())
        True
    """
    means = draws.mean(3)
    nothing = torch.zeros_like(means[:, :, 0])
    within = draws.var(3).mean(2) if draws.shape[3] > 1 else nothing
    between = means.var(2) if draws.shape[2] > 1 else nothing
    return (1.0 + means.mean(2).var(1) / (between + within).mean(1)).sqrt()


@dataclass(frozen=True)
class ChainRun:
    """What the chains of B datasets drew.

    Attributes:
        z: (B, C S, P) draws of all chains.
        r_hat: (B,) largest nested R-hat of the quantities and of the log joint.
        ess: (B,) smallest effective sample size of the quantities and their squares.
        steady: (B,) bool: the first draws are like the last, and chains of own moves have little left to go.
        known: (B,) bool: log densities are not too large for rounding.
        converged: (B,) bool: both, R-hat below 1.01, and enough draws for the target.
        evaluations: (B,) long, gradients per dataset.
    """

    z: Tensor
    r_hat: Tensor
    ess: Tensor
    steady: Tensor
    known: Tensor
    converged: Tensor
    evaluations: Tensor

    def __getitem__(self, index: Tensor) -> ChainRun:
        """Those of the chosen datasets."""
        return ChainRun(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def put(self, index: Tensor, other: ChainRun) -> None:
        """Take over the draws of some datasets; evaluations add up."""
        for name in ("z", "r_hat", "ess", "steady", "known", "converged"):
            getattr(self, name)[index] = getattr(other, name)
        self.evaluations[index] += other.evaluations


def overdispersed(problem: Problem, draws: Tensor, modes: Modes | None = None) -> Tensor:
    """(B, 8, P) a starting point per superchain: half of q's draws (B, S, P), half draws of the prior.

    The latter come in antithetic pairs, so that no side of any parameter's prior is without a chain. Where q has left
    out modes, chains start in those instead.
    """
    half = _SUPERCHAINS // 2
    noise = problem.joint.fixed_noise(half // 2, _SUPERCHAINS).double()
    prior = torch.cat([noise, -noise]).expand(len(draws), -1, -1)
    if modes is not None:
        prior = torch.where(modes.missed[:, None, None], modes.z[:, torch.arange(half) % modes.z.shape[1]], prior)
    return torch.where(problem.active[:, None], torch.cat([draws[:, :half].double(), prior], 1), 0.0)


def run_chains(problem: Problem, starts: Tensor, target: Accuracy, generator: torch.Generator) -> ChainRun:
    """Chains until superchains agree, in rounds; each goes on with the datasets that have not converged.

    A round takes more draws while some dataset nearly converges. After two rounds, those whose superchains are still
    far apart are given up, so that a posterior with modes apart fails soon; and nothing is begun after a million
    gradients, so that every dataset comes to an end.

    Chains take the problem's own moves where it has some, dataset by dataset, in a single round. Else they are
    Hamiltonian, and step size and metric are adapted per dataset as in :mod:`posteria.baselines.hmc`: from the
    curvature at the mode uphill of the best chain, then from the covariance of all chains.

    Args:
        problem: B posteriors.
        starts: (B, K, P) a point per superchain.
        target: how many effective draws are wanted.
        generator: of all randomness.
    """
    block = _block if problem.moves is None else _own_run
    parts = torch.arange(len(problem)).split(problem.row_block if problem.moves is None else 1)
    runs = [block(problem[part], starts[part], target, generator) for part in parts]
    return ChainRun(*(torch.cat([getattr(run, name) for run in runs]) for name in ChainRun.__dataclass_fields__))


def least_evaluations(problem: Problem) -> Tensor | None:
    """(B,) what chains of the problem's own moves take where they agree soon; None where it has none."""
    moves = problem.moves
    second = _OWN_STRETCHES[1] * _NUM_SAMPLES  # the first look after which they may stop
    return None if moves is None else _sweeps(second) * _SUPERCHAINS * _CHAINS * moves.cost


def _sweeps(length: int) -> int:
    """How many it takes to keep so many, those included that are forgotten."""
    return length + max(min(length, _OWN_WARMUP), int(_OWN_SHARE * length))


def _block(problem: Problem, starts: Tensor, target: Accuracy, generator: torch.Generator) -> ChainRun:
    z = starts.repeat_interleave(_CHAINS, 1)
    everything = _round(problem, z, 0, target, generator)
    for number in range(1, _ROUNDS):
        lost = everything.r_hat > (_HOPELESS if number > 1 else torch.inf)
        rest = (~everything.converged & ~lost & (everything.evaluations < _MOST_EVALUATIONS)).nonzero()[:, 0]
        if not len(rest):
            break
        last = everything.z[rest].unflatten(1, (z.shape[1], -1))[:, :, -1]
        everything.put(rest, _round(problem[rest], last, number, target, generator))
    return everything


def _round(problem: Problem, z: Tensor, number: int, target: Accuracy, generator: torch.Generator) -> ChainRun:
    """One run from z (B, C, P), with twice the thinning of the round before, and at first twice the warm-up."""
    counted = Counted(problem.joint)
    longer = 2**number
    steer = None if problem.steer is None else counted.counting(problem.steer)
    sampler = hmc.build(counted, num_warmup=_WARMUP * min(longer, _MOST_WARMUP), steer=steer)
    state = sampler.init(z, generator)
    for _ in range(sampler.num_warmup):
        state, _ = sampler.update(state, generator)
    kept, run = [], None
    for stretch in _STRETCHES:
        while len(kept) < stretch * _NUM_SAMPLES:
            for _ in range(longer):
                state, _ = sampler.update(state, generator)
            kept.append(state.z)
        judged = _judged(problem, torch.stack(kept[stretch - 1::stretch], 2), target)
        run = judged if run is None else _better(run, judged)
        going = ~run.converged & run.steady & (run.r_hat < _NEARLY)
        if not going.any() or counted.evaluations >= _MOST_EVALUATIONS:
            break
    assert run is not None  # there are stretches
    return replace(run, evaluations=torch.full_like(run.evaluations, counted.evaluations))


def own_looks(problem: Problem, starts: Tensor, target: Accuracy, generator: torch.Generator) -> Iterator[ChainRun]:
    """Chains of one dataset that take its own moves, look after look, twice as long each time, whatever they pass.

    Args:
        problem: one posterior, with moves.
        starts, target, generator: as of :func:`run_chains`.
    """
    moves = problem.moves
    assert moves is not None
    z, drawn = starts.repeat_interleave(_CHAINS, 1), []
    price = float(moves.cost) * z.shape[1]
    for stretch in _OWN_STRETCHES:
        length = stretch * _NUM_SAMPLES
        while len(drawn) < _sweeps(length):
            z = moves(z, generator)
            drawn.append(z)
        run = _judged(problem, torch.stack(drawn[-length:][stretch - 1::stretch], 2), target)
        there = left_to_go(problem.density, drawn, length).abs() < _MOST_LEFT * target.mean
        yield replace(run, steady=run.steady & there, converged=run.converged & there,
                      evaluations=torch.full_like(run.evaluations, int(len(drawn) * price)))


def _own_run(problem: Problem, starts: Tensor, target: Accuracy, generator: torch.Generator) -> ChainRun:
    """The first of those looks that is to be believed, or after which there is no hope."""
    wanted, passed, run = float(_enough(problem, target)), False, None
    for look, run in enumerate(own_looks(problem, starts, target, generator), 1):
        once, passed = passed, bool(run.converged)
        hoped = float(run.ess) * _GROWTH ** (len(_OWN_STRETCHES) - look)
        hopeless = look >= _THIRD and hoped < wanted
        if int(run.evaluations) >= _MOST_EVALUATIONS or (once if passed else hopeless):
            break
    assert run is not None  # there are looks
    return run


def _better(run: ChainRun, longer: ChainRun) -> ChainRun:
    """The longer run, where the shorter had not converged already."""
    rest = (~run.converged).nonzero()[:, 0]
    run.put(rest, longer[rest])
    return run


def _judged(problem: Problem, draws: Tensor, target: Accuracy) -> ChainRun:
    """Draws (B, C, S, P) with their diagnostics."""
    batch, chains, length = draws.shape[:3]
    flat = draws.flatten(1, 2)
    quantities, height = problem.values(flat), problem.density(flat)
    whole = torch.cat([quantities, height[..., None]], -1)
    counted = torch.cat([problem.counted, torch.ones_like(problem.counted[:, :1])], -1)
    counted = counted & (whole.amax(1) > whole.amin(1))
    r_hat = nested_r_hat(whole.view(batch, _SUPERCHAINS, -1, length, whole.shape[-1]))
    r_hat = torch.where(counted, r_hat, 1.0).nan_to_num(torch.inf, torch.inf).amax(-1)
    everything = whole.view(batch, chains, length, -1)
    series, bulk = everything[..., :-1], ess_bulk(everything)
    steady = (torch.where(counted, _drift(everything, bulk), 0.0).nan_to_num(0.0) < _MOST_DRIFT).all(-1)
    centred = (series - series.mean((1, 2), keepdim=True)).square()
    ess = torch.minimum(bulk[..., :-1], 2.0 * ess_bulk(centred))
    ess = torch.where(problem.counted, ess, torch.inf).nan_to_num(0.0, torch.inf).amin(-1)
    known = (height.abs() < LARGEST_LOG_DENSITY).all(-1)
    converged = steady & (r_hat < MAX_R_HAT) & (ess >= _enough(problem, target)) & known
    return ChainRun(flat, r_hat, ess, steady, known, converged, torch.zeros(batch, dtype=torch.long))


def _enough(problem: Problem, target: Accuracy) -> Tensor:
    """(B,) effective draws that are wanted."""
    return (target.margin(problem.counted)[:, 0] / min(target.mean, target.log_sd)).square()


def _drift(series: Tensor, ess: Tensor) -> Tensor:
    """(B, Q) between the first fifth and the second half of series (B, C, S, Q), in standard errors."""
    length = series.shape[2]
    first, last = series[:, :, :max(1, length // 5)], series[:, :, length // 2:]
    shares = length / first.shape[2] + length / last.shape[2]
    error = series.flatten(1, 2).std(1) * (shares / ess).sqrt()
    return (first.mean((1, 2)) - last.mean((1, 2))).abs() / error
