"""Looking for modes: where the mass may lie, and whether q has left some of it out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria import widening
from posteria.ascent import Guess, climb
from posteria.randomness import generator_for
from posteria.refinement.problem import Problem

DENSE_UP_TO = 512
_CLIMBS, _DAMPING, _WIDENINGS, _CANDIDATES = 60, 1.0, 4, 8
_SEED = 7_403
# A mode counts as missed when it holds this share of the mass, and q is this many times too low there.
_LEAST_MASS, _LEAST_EXCESS = 1e-4, 1000.0
# Modes that are kept, and how many sds apart two must be.
_KEPT, _APART = 6, 1.0
# A density that is a fifth too wide in every direction is too low at the centre by this much a parameter (log 1.2),
# which weights bear: no mode is missed there if the way to it leads uphill. Points that are looked at on that way, and
# how far it may go down, up to rounding.
_LOG_WIDER, _WAYPOINTS, _DIP = 0.18, 15, 1e-3
# Draws beside a mode from which to climb, where nothing but draws is known of q; and numbers that are held at once when
# they are looked for.
_NEAREST, _ENTRIES = 8, 2**22
# How many sds beside a mode a climb begins that says whether it is one.
_BESIDE = 0.5


def widened(problem: Problem, z: Tensor) -> Guess:
    """The Gaussian that is best in reverse KL around the mode uphill of z (B, P)."""
    joint = problem.joint
    guess = climb(joint, z, _CLIMBS, _DAMPING, DENSE_UP_TO)
    return widening.widened(joint, guess, _WIDENINGS, _CANDIDATES, True, 0.0, DENSE_UP_TO)[-1]


@dataclass(frozen=True)
class Modes:
    """The weightiest modes that climbs from over-dispersed points found.

    Attributes:
        z: (B, K, P), no two alike but where there are fewer, by falling mass.
        missed: (B,) bool, one of those found holds mass that q has left out.
    """

    z: Tensor
    missed: Tensor

    def __getitem__(self, index: Tensor) -> Modes:
        """Those of the chosen datasets."""
        return Modes(self.z[index], self.missed[index])


@dataclass(frozen=True)
class _Found:
    """Where M climbs ended, for each of B posteriors: z (B, M, P), log joint density and Laplace's estimate of the log
    mass (B, M), square roots of the precision's diagonal (B, M, P), and its factors (B, M, P, P) where it is dense.
    """

    z: Tensor
    height: Tensor
    log_mass: Tensor
    root: Tensor
    factor: Tensor | None


def missed_modes(problem: Problem, log_q: Callable[[Tensor], Tensor], log_evidence: Tensor,
                 best: Tensor | None = None, pairs: int = 2) -> Modes:
    """Climb from draws of the prior and other points far away, and compare what is found with q.

    Importance weights cannot see a mode that q never visits; its height can. A mode is missed when Laplace's estimate
    of the mass around it is a ten thousandth or more of the evidence that the weights give (one that is far away
    changes standard deviations with that little), while q's density there is less than a thousandth of the posterior's;
    unless it is little less than that, for so many parameters, and there is no valley between q's best draw and the
    mode.

    Args:
        problem: B posteriors.
        log_q: (B, K, P) -> (B, K) log density of q in z.
        log_evidence: (B,) by q's weights.
        best: (B, P) the draw of q where the posterior is highest; None where nobody knows.
        pairs: antithetic pairs of starting points.
    """
    found = _climbed(problem, pairs)
    weighty = found.log_mass - log_evidence[:, None] > math.log(_LEAST_MASS)
    excess = found.height - log_q(found.z) - log_evidence[:, None] - math.log(_LEAST_EXCESS)
    bearable = excess < _LOG_WIDER * problem.active.sum(-1, keepdim=True)
    missed = weighty & (excess > 0)
    doubtful = (missed & bearable).any(-1).nonzero()[:, 0]
    if best is not None and len(doubtful):
        uphill = _uphill(problem[doubtful], best[doubtful], found.z[doubtful])
        missed[doubtful] &= ~(bearable[doubtful] & uphill)
    return Modes(_at(found.z, _weightiest(problem, found)), missed.any(-1))


def unvisited_modes(problem: Problem, draws: Tensor, log_evidence: Tensor | None = None, pairs: int = 2) -> Modes:
    """The same where nothing but draws is known of q: a mode is missed when climbs from the draws nearest to it, in sds
    of the mode, end elsewhere.

    Args:
        problem: B posteriors.
        draws: (B, S, P).
        log_evidence: (B,) by q's weights; None for the mass of the weightiest mode.
        pairs: antithetic pairs of starting points.
    """
    found = _climbed(problem, pairs)
    evidence = found.log_mass.amax(-1) if log_evidence is None else log_evidence
    places = _weightiest(problem, found)
    z, root = _at(found.z, places), _at(found.root, places)
    weighty = found.log_mass.gather(1, places) - evidence[:, None] > math.log(_LEAST_MASS)
    again = (places == places[:, :1]) & (torch.arange(places.shape[1]) > 0)
    missed = weighty & ~again
    index, mode = missed.nonzero(as_tuple=True)
    for part in torch.arange(len(index)).split(max(1, _ENTRIES // draws[0].numel())):
        here = index[part]
        missed[here, mode[part]] = ~_visited(problem[here], z[here, mode[part]], root[here, mode[part]], draws[here])
    return Modes(z, missed.any(-1))


def _climbed(problem: Problem, pairs: int) -> _Found:
    noise = problem.joint.fixed_noise(pairs, _SEED).double()
    starts = torch.where(problem.active[:, None], torch.cat([noise, -noise]), 0.0)
    starts = starts if problem.far is None else torch.cat([starts, problem.far()], 1)
    num, size = starts.shape[1], starts.shape[-1]
    many = problem[torch.arange(len(problem)).repeat_interleave(num)]
    guess = climb(many.joint, starts.flatten(0, 1), _CLIMBS, _DAMPING, DENSE_UP_TO)
    factor, root = guess.curvature.factor(), guess.curvature.diagonal().sqrt()
    diagonal = root if factor is None else factor.diagonal(dim1=-2, dim2=-1)
    volume = torch.where(many.active, diagonal.log(), 0.0).sum(-1).view(-1, num)
    z = guess.z.view(-1, num, size)
    height = problem.density(z).nan_to_num(-torch.inf, neginf=-torch.inf, posinf=-torch.inf)
    log_mass = height + 0.5 * math.log(2.0 * math.pi) * problem.active.sum(-1, keepdim=True) - volume
    return _Found(z, height, log_mass, root.view(z.shape), None if factor is None else factor.unflatten(0, (-1, num)))


def _at(values: Tensor, places: Tensor) -> Tensor:
    """(B, K, P) of values (B, M, P) at places (B, K)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _images(problem: Problem, z: Tensor) -> Tensor:
    """(G, ..., P) the relabellings of z (..., P)."""
    return z[None] if problem.permutations is None else torch.stack([z[..., image] for image in problem.permutations])


def _weightiest(problem: Problem, found: _Found) -> Tensor:
    """(B, K) places of the modes of most mass that are not another's relabelling; the first again where few are."""
    z, factor = found.z, found.factor
    if factor is None:
        return torch.arange(min(_KEPT, z.shape[1])).expand(len(z), -1)
    rows, kept, log_mass = torch.arange(len(z)), [], found.log_mass.nan_to_num(-torch.inf)
    first, left, images = log_mass.argmax(-1), log_mass, _images(problem, z)
    for _ in range(min(_KEPT, z.shape[1])):
        best = left.argmax(-1)
        kept.append(torch.where(left.amax(-1) > -torch.inf, best, first))
        away = ((images - z[rows, best][:, None]) @ factor[rows, best]).norm(dim=-1).amin(0)
        left = left.masked_fill(away < _APART, -torch.inf).scatter(-1, best[:, None], -torch.inf)
    return torch.stack(kept, 1)


def _visited(problem: Problem, z: Tensor, root: Tensor, draws: Tensor) -> Tensor:
    """(B,) bool: from one of the draws (B, S, P) nearest to a mode z (B, P), or to a relabelling, a climb ends there.

    Or z is no mode but a saddle, where two components of a mixture coincide for example: climbs from beside it leave.

    Args:
        root: (B, P) one over the sds around z.
    """
    images, roots = _images(problem, z), _images(problem, root)

    def squares(points: Tensor) -> Tensor:
        away = [((points - image[:, None]) * scale[:, None]).square().sum(-1)
                for image, scale in zip(images, roots, strict=True)]
        return torch.stack(away).amin(0)

    nearest = squares(draws).topk(min(_NEAREST, draws.shape[1]), largest=False).indices
    noise = torch.randn(z.shape[-1], generator=generator_for(_SEED), dtype=z.dtype)
    beside = torch.where(problem.active, z + _BESIDE * noise / root, 0.0)
    starts = torch.cat([_at(draws.to(z), nearest), beside[:, None]], 1)
    many = problem[torch.arange(len(problem)).repeat_interleave(starts.shape[1])]
    ends = climb(many.joint, starts.flatten(0, 1), _CLIMBS, _DAMPING, DENSE_UP_TO).z
    there = squares(ends.view(starts.shape)) < _APART
    return there[:, :-1].any(-1) | ~there[:, -1]


def _uphill(problem: Problem, start: Tensor, ends: Tensor) -> Tensor:
    """(B, K) bool: the log density never falls on the straight way from start (B, P) to ends (B, K, P)."""
    share = torch.linspace(0.0, 1.0, _WAYPOINTS).to(ends)[:, None]
    way = torch.lerp(start[:, None, None].to(ends), ends[:, :, None], share)
    heights = problem.density(way.flatten(1, 2)).unflatten(1, (-1, _WAYPOINTS))
    return (heights.diff(dim=-1) >= -_DIP).all(-1)
