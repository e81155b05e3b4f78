"""Several tries of most parameters r for every value of a few, h, of which one stays.

It is chosen by weight, and the mean of the weights stays with it: properly weighted (Liu 2001, Monte Carlo Strategies
in Scientific Computing, section 2.5.4), with less variance than one try. Where r has entries that are independent given
h and the common parameters, each entry chooses among tries for itself, and the weight is the product of their means:
with a hundred groups that are each a little off, no try would be without a group that is far off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.refinement.conditional import Conditional, heavier
from posteria.refinement.problem import Nesting, Problem


@dataclass(frozen=True)
class Tries:
    """Random numbers of S times T times M tries, the same for all datasets: M of the entries for each of T of the rest.

    Where all of r is tried as a whole, M is one.

    Attributes:
        noise: (S, T, M, R) standardised offsets, some with heavy tails; those of the common parameters are the same
            for all M.
        first: (S,) uniform, which of T stays.
        each: (S, T, G) uniform, which of M stays for each entry.
        heavy: shares of T and of M with heavy tails.
    """

    noise: Tensor
    first: Tensor
    each: Tensor
    heavy: tuple[float, float]

    @classmethod
    def of(cls, noise: Tensor, first: tuple[int, int], each: tuple[int, int], nesting: Nesting,
           generator: torch.Generator) -> Tries:
        """From standard normal noise (S, T M, R).

        Args:
            first: T, and how many of them get heavy tails: of all of r, or of its common part.
            each: M, and how many get heavy tails, of the entries.
        """
        noise = noise.unflatten(1, (first[0], each[0]))
        whole = noise.shape[-1] if nesting.entries is None else len(nesting.common)
        outer, own = noise[:, :, :1, :whole], noise[..., whole:]
        plain = first[0] - first[1], each[0] - each[1]
        outer = torch.cat([outer[:, :plain[0]], heavier(outer[:, plain[0]:])], 1).expand(-1, -1, each[0], -1)
        own = torch.cat([own[:, :, :plain[1]], heavier(own[:, :, plain[1]:])], 2)
        place = torch.rand(len(noise), generator=generator, dtype=torch.double)
        size = (len(noise), first[0], len(nesting.own))
        places = torch.rand(size, generator=generator, dtype=torch.double)
        return cls(torch.cat([outer, own], -1), place, places, (first[1] / first[0], each[1] / each[0]))

    def __getitem__(self, part: slice) -> Tries:
        return Tries(self.noise[part], self.first[part], self.each[part], self.heavy)


def one_of(problem: Problem, inner: Conditional, tries: Tries) -> tuple[Tensor, Tensor]:
    """A try (B, S, P) of r as a whole, and the log (B, S) of the tries' mean weight."""
    noise = tries.noise[:, :, 0]
    points = inner.at(noise)
    return _first(points, inner.log_ratio(problem, points, noise, tries.heavy[0]), tries)


def one_of_each(problem: Problem, inner: Conditional, tries: Tries) -> tuple[Tensor, Tensor]:
    """The same, where every entry chooses for itself."""
    nesting, counts = inner.nesting, tries.noise.shape[1:3]
    assert nesting.entries is not None  # who asks has looked
    noise = tries.noise.flatten(1, 2)
    points = inner.at(noise)
    log_common, log_own = inner.log_prob_apart(noise, *tries.heavy)
    height = nesting.entries(points.flatten(1, 2)).unflatten(1, points.shape[1:3])  # (B, S, T M, G)
    ratio = (height - log_own).unflatten(2, counts)
    chosen = _chosen(ratio.movedim(3, -1), tries.each)[..., None, :]  # (B, S, T, 1, G)
    points, height = points.unflatten(2, counts), height.unflatten(2, counts)
    own = points[..., nesting.own]  # (B, S, T, M, G, E)
    own = own.gather(3, chosen[..., None].expand(*chosen.shape, own.shape[-1]))[:, :, :, 0]
    z = points[:, :, :, 0].index_copy(-1, nesting.own.flatten(), own.flatten(-2))
    density = problem.density(z.flatten(1, 2)).unflatten(1, z.shape[1:3])
    rest = density - height.gather(3, chosen)[:, :, :, 0].sum(-1) - log_common.unflatten(2, counts)[..., 0]
    return _first(z, rest + (ratio.logsumexp(3) - math.log(counts[1])).sum(-1), tries)


def _first(points: Tensor, ratio: Tensor, tries: Tries) -> tuple[Tensor, Tensor]:
    """One of points (B, S, T, P) with log weights (B, S, T), and the log of their mean."""
    chosen = _chosen(ratio, tries.first)[..., None, None]
    z = points.gather(2, chosen.expand(-1, -1, 1, points.shape[-1]))[:, :, 0]
    return z, ratio.logsumexp(-1) - math.log(ratio.shape[-1])


def _chosen(ratio: Tensor, place: Tensor) -> Tensor:
    """(...) which of M with log weights (..., M), by uniform numbers (...)."""
    sound = ratio.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    edges = sound.softmax(-1).nan_to_num(1.0).cumsum(-1)
    return (edges < place[..., None]).sum(-1).clamp(max=ratio.shape[-1] - 1)
