"""A nested proposal q(h) q(r | h) for models that declare hyperparameters h (integrated nested Laplace approximation).

Given h the other parameters r are nearly normal, although together they lie along a curved ridge that no normal
follows. So h is drawn first, from a mixture fitted to its marginal posterior, then r from its normal given h. For the
fit, log p(h, D) is taken to be E[log p(h, r, D) - log q(r | h)] over q(r | h) (Rue, Martino & Chopin 2009, JRSS B 71,
section 3, take the value at the mode). Importance weights against the true joint density then correct everything, and
say whether they can.

Every h is tried with several r, one of which stays, see :mod:`posteria.refinement.tries`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.refinement.accuracy import Accuracy, Moments
from posteria.refinement.conditional import Conditional, conditional
from posteria.refinement.marginal import Marginal, Study, first_guess
from posteria.refinement.modes import missed_modes
from posteria.refinement.problem import Nesting, Problem
from posteria.refinement.proposal import flip
from posteria.refinement.tailored import LEAST_ESS, Tailored
from posteria.refinement.tries import Tries, one_of, one_of_each
from posteria.refinement.weights import Weights

# More hyperparameters than this are no longer few: the marginal would take too many values to fit.
MOST_HYPERPARAMETERS = 12
# Tries of r per h, and those of them with heavy tails: where r is normal, so that all tries are alike; for normal
# priors; and for others. Where entries choose for themselves, tries of the common parameters, and of the entries given
# each.
_EXACT, _PLAIN, _SMOOTHED = ((1, 0), (1, 0)), ((4, 1), (1, 0)), ((8, 4), (1, 0))
_APART = ((2, 1), (4, 1))
# Values of h at which the marginal is looked at, round by round, and again where that was not enough; and the
# antithetic pairs of r that it takes.
_MORE = (100, 100, 100, 200, 300)
_PILOTS, _PAIRS = ((100, 150, 200, 300), _MORE, _MORE), 2
# The first of them are this much wider than q's draws, between these standard deviations.
_WIDER, _LEAST_SPREAD, _MOST_SPREAD = 2.0, 0.05, 3.0
# Proposals are fitted so often. They are judged by so many draws, doubled so often; so many go into the next fit.
_FITS, _NUM_SAMPLES, _DOUBLINGS, _MOST_LEARNED = 3, 1000, 4, 2000
# Estimates of how many draws it takes are rough: beyond the most draws by such a factor there is no hope.
_HOPE = 4.0
_SEED = 6_211
# Entries of the tensors that go through a processor together: what fits its cache.
_MOST_ENTRIES = 2**17


def nests(problem: Problem) -> bool:
    """A nested proposal is worth a try."""
    return problem.nesting is not None and 0 < len(problem.nesting.hyper) <= MOST_HYPERPARAMETERS


def nested(problem: Problem, z: Tensor, target: Accuracy, generator: torch.Generator,
           look_for_modes: bool = False) -> Tailored:
    """Weighted draws from nested proposals, fitted to each dataset from draws z (B, S, P) of q.

    Every dataset takes 1,000 draws. Where their weights are not reliable the proposal is fitted anew, with those draws;
    where they are, twice as many are taken until the target is met.

    Args:
        problem: B posteriors, of which :func:`nests` holds.
        z: draws that say where to begin; they need not be good.
        target: how accurate the answer must be.
        generator: its seed gives all the randomness, which datasets share.
        look_for_modes: a proposal that leaves out a mode does not pass, see :func:`missed_modes`.
    """
    nowhere = torch.full((len(problem),), torch.inf, dtype=torch.double)
    answer, everyone = Tailored(nowhere, torch.zeros_like(nowhere)), torch.arange(len(problem))
    climb = _Climb(answer, target, generator.initial_seed(), look_for_modes, torch.zeros_like(everyone))
    climb.explore(problem, *first_look(problem, z), everyone, _PILOTS)
    answer.evaluations = climb.evaluations
    return answer


@dataclass(frozen=True)
class NestedProposal:
    """q(h) q(r | h) for B datasets.

    Attributes:
        outer: q(h), over the hyperparameters in units in which their priors are normal.
        start: (B, P) where the search for the centre of r given h begins, whatever h: q(r | h) is a function of h.
    """

    outer: Marginal
    start: Tensor

    def __getitem__(self, index: Tensor) -> NestedProposal:
        """Those of the chosen datasets."""
        return NestedProposal(self.outer[index], self.start[index])

    def inner(self, problem: Problem, u: Tensor) -> Conditional:
        """q(r | h) at h in units u (B, S, H)."""
        nesting = _declared(problem)
        z = self.start[:, None].expand(-1, u.shape[1], -1)
        return conditional(problem, z.index_copy(-1, nesting.hyper, nesting.units.back(u)))

    def log_prob(self, problem: Problem, z: Tensor) -> Tensor:
        """(B, S) log density at z (B, S, P), of a single try."""
        nesting = _declared(problem)
        u, log_slope = nesting.units.units(z[..., nesting.hyper])
        inner = self.inner(problem, u)
        log_inner = inner.log_prob(inner.offsets(z)[:, :, None], _heavy(problem))[..., 0]
        return self.outer.log_prob(u) + _over(self.outer.active, log_slope) + log_inner


def first_look(problem: Problem, z: Tensor) -> tuple[NestedProposal, Study]:
    """A proposal as wide as draws z (B, S, P) and wider, of which nothing is known yet."""
    nesting = _declared(problem)
    active = problem.active[:, nesting.hyper]
    z = torch.where(z.isfinite(), z, 0.0).double()
    u = nesting.units.units(z[..., nesting.hyper])[0]
    spread = (_WIDER * u.std(1)).clamp(_LEAST_SPREAD, _MOST_SPREAD)
    start = torch.where(problem.active, z.mean(1), 0.0)
    return NestedProposal(first_guess(u.mean(1), spread, active), start), Study.empty(active)


@dataclass(frozen=True)
class _Draws:
    """Draws of nested proposals.

    Attributes:
        z: (B, S, P).
        u: (B, S, H) their hyperparameters, in normal units.
        ratio: (B, S) logs of their importance weights.
    """

    z: Tensor
    u: Tensor
    ratio: Tensor

    def weights(self) -> Weights:
        return Weights.of(self.ratio, torch.zeros_like(self.ratio))

    def joined(self, other: _Draws) -> _Draws:
        return _Draws(*(torch.cat([getattr(self, name), getattr(other, name)], 1)
                        for name in self.__dataclass_fields__))

    def __getitem__(self, index: Tensor) -> _Draws:
        return _Draws(self.z[index], self.u[index], self.ratio[index])


@dataclass
class _Climb:
    """A run of :func:`nested`, filling in its answer."""

    answer: Tailored
    target: Accuracy
    seed: int
    look_for_modes: bool
    evaluations: Tensor

    def note(self, index: Tensor, weights: Weights) -> None:
        """The latest figures of datasets (b,)."""
        self.answer.pareto_k[index], self.answer.ess[index] = weights.pareto_k, weights.ess

    def explore(self, problem: Problem, proposal: NestedProposal, study: Study, index: Tensor,
                rounds: tuple[tuple[int, ...], ...]) -> None:
        """Learn of the marginal of h, and go on with proposals that follow it; datasets (b,) that lag learn more."""
        hyper = _declared(problem).hyper
        for count in rounds[0]:
            number = len(study.past)
            noise = problem.joint.fixed_noise(count, _SEED - 2 - number).double()[:, hyper]
            u = proposal.outer.draw(noise, flip(count, torch.Generator().manual_seed(number)))
            study = study.more(proposal.outer, u, self._bound(problem, proposal, u, index))
            proposal = replace(proposal, outer=study.exploring())
        settled = study.settled if len(rounds) > 1 else torch.ones(len(index), dtype=torch.bool)
        if not settled.all():
            lag = ~settled
            self.explore(problem[lag], proposal[lag], study[lag], index[lag], rounds[1:])
        if settled.any():
            problem, proposal, study = problem[settled], proposal[settled], study[settled]
            middle = (study.weights()[..., None] * study.points).sum(1, keepdim=True)
            centred = NestedProposal(study.following(), proposal.inner(problem, middle).z[:, 0])
            self.sample(problem, centred, study, index[settled], 0)

    def _bound(self, problem: Problem, proposal: NestedProposal, u: Tensor, index: Tensor) -> Tensor:
        """(B, S) E[log p(h, r, D) - log q(r | h)] at u (B, S, H), over the same antithetic draws everywhere.

        A lower bound of log p(h, D), exact where r is normal given h, where any draw gives it; as a density of u.
        """
        nesting = _declared(problem)
        noise = problem.joint.fixed_noise(_PAIRS, _SEED - 1).double()[:, nesting.rest]
        noise = torch.zeros_like(noise[:1]) if nesting.exact else torch.cat([noise, -noise])
        values = []
        for part in _blocks(problem, u.shape[1]):
            inner = proposal.inner(problem, u[:, part])
            self.evaluations[index] += u[:, part].shape[1] * (len(noise) + inner.looks)
            values.append(inner.log_ratio(problem, inner.at(noise), noise, 0.0).mean(-1))
        log_slope = nesting.units.units(nesting.units.back(u))[1]
        bound = torch.cat(values, 1) - _over(proposal.outer.active, log_slope)
        return bound.nan_to_num(-torch.inf, -torch.inf, -torch.inf)

    def drawn(self, problem: Problem, proposal: NestedProposal, number: int, index: Tensor) -> _Draws:
        """A thousand new draws; the same for a number."""
        nesting, (first, each) = _declared(problem), _tries(problem)
        count, seed = _NUM_SAMPLES * first[0] * each[0], _SEED + number + self.seed % _SEED
        noise = problem.joint.fixed_noise(count, seed).double().unflatten(0, (_NUM_SAMPLES, -1))
        own = torch.Generator().manual_seed(self.seed + number)
        u = proposal.outer.draw(noise[:, 0, nesting.hyper], flip(_NUM_SAMPLES, own))
        drawn = Tries.of(noise[..., nesting.rest], first, each, nesting, own)
        parts = [self._tried(problem, proposal, u[:, part], drawn[part], index)
                 for part in _blocks(problem, _NUM_SAMPLES)]
        z, ratio = (torch.cat([part[i] for part in parts], 1) for i in range(2))
        log_slope = nesting.units.units(z[..., nesting.hyper])[1]
        return _Draws(z, u, ratio - proposal.outer.log_prob(u) - _over(proposal.outer.active, log_slope))

    def _tried(self, problem: Problem, proposal: NestedProposal, u: Tensor, tries: Tries, index: Tensor) -> (
            tuple[Tensor, Tensor]):
        """One of the tries of r for every u (B, S, H), and the log of their mean weight against q(r | h)."""
        inner = proposal.inner(problem, u)
        self.evaluations[index] += u.shape[1] * (tries.noise[0, ..., 0].numel() + inner.looks)
        if _declared(problem).entries is None:
            return one_of(problem, inner, tries)
        return one_of_each(problem, inner, tries)

    def sample(self, problem: Problem, proposal: NestedProposal, study: Study, index: Tensor, fit: int) -> None:
        """Draw for datasets (b,) until the target is met, or is out of reach; fit anew where weights go wrong."""
        draws = self.drawn(problem, proposal, fit * 2**_DOUBLINGS, index)
        for doubling in range(_DOUBLINGS + 1):
            weights, num = draws.weights(), draws.z.shape[1]
            self.note(index, weights)
            effort = Moments.of(problem.values(draws.z), weights.weights).effort(self.target, problem.counted)
            done = weights.reliable & (effort <= 1.0) & (weights.ess >= LEAST_ESS)
            passed = done & self._complete(problem, proposal, weights, done)
            self.answer.parts.append((index[passed], draws.z[passed], weights[passed]))
            lost = ~weights.reliable
            if fit + 1 < _FITS and lost.any():
                self._fit_anew(problem[lost], proposal[lost], study[lost], draws.u[lost], index[lost], fit + 1)
            left = ~done & ~lost & (effort * num <= _HOPE * _NUM_SAMPLES * 2**_DOUBLINGS)
            if doubling == _DOUBLINGS or not left.any():
                break
            problem, proposal, study, index = problem[left], proposal[left], study[left], index[left]
            draws = draws[left]
            for number in range(2**doubling, 2 ** (doubling + 1)):
                draws = draws.joined(self.drawn(problem, proposal, fit * 2**_DOUBLINGS + number, index))

    def _fit_anew(self, problem: Problem, proposal: NestedProposal, study: Study, u: Tensor, index: Tensor,
                  fit: int) -> None:
        """Go on from what the latest draws u (B, S, H) say of the marginal."""
        latest = u[:, -_MOST_LEARNED:]
        study = study.more(proposal.outer, latest, self._bound(problem, proposal, latest, index))
        self.sample(problem, replace(proposal, outer=study.following()), study, index, fit)

    def _complete(self, problem: Problem, proposal: NestedProposal, weights: Weights, asked: Tensor) -> Tensor:
        """(B,) bool: no mode is left out, where that is asked."""
        complete = torch.ones_like(asked)
        if self.look_for_modes and asked.any():
            part, outer = problem[asked], proposal[asked]
            found = missed_modes(part, lambda z: outer.log_prob(part, z), weights.log_evidence[asked])
            complete[asked] = ~found.missed
        return complete


def _declared(problem: Problem) -> Nesting:
    assert problem.nesting is not None  # who asks has looked
    return problem.nesting


def _tries(problem: Problem) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many, and how many with heavy tails: of r or its common part, and of its entries given that."""
    nesting = _declared(problem)
    if nesting.exact:
        return _EXACT
    if nesting.entries is not None:
        return _APART
    return _SMOOTHED if nesting.smooth else _PLAIN


def _heavy(problem: Problem) -> float:
    """Share of tries with heavy tails."""
    tries, heavy = _tries(problem)[0]
    return heavy / tries


def _over(active: Tensor, log_slope: Tensor) -> Tensor:
    """(B, S) log determinant of the change to normal units."""
    return torch.where(active[:, None], log_slope, 0.0).sum(-1)


def _blocks(problem: Problem, num: int) -> list[slice]:
    """Values of h that go through together, as memory allows."""
    batch, rows = problem.joint.dataset.x.shape[:2]
    first, each = _tries(problem)
    size = max(1, _MOST_ENTRIES // (batch * max(rows, first[0] * each[0] * problem.active.shape[1])))
    return [slice(first, min(first + size, num)) for first in range(0, num, size)]
