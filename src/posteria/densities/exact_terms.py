"""A Gaussian some of whose terms are exact: separation of variables (Genz 1992, equation 1.5; Botev 2017).

A Gaussian with a stand-in for every term of a log joint (:mod:`posteria.propagation`) is turned so that the first term
sees the first variable alone, the second term the first two, and so on. Variables are then drawn one after the other,
each from its conditional with the term itself in place of its stand-in. As many terms are exact as there are
parameters; of observations fewer than that all are, and importance weights are left with the conditionals' masses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from posteria.densities.selective import draws_of
from posteria.propagation import Sites, disagreement, kinks
from posteria.randomness import randn
from posteria.types import Terms, ThetaDistribution

_LOG_2PI = math.log(2.0 * math.pi)
# A conditional's log density is linear between nodes. On either side of the term's sharpest bend so many, the first as
# close as this, follow the term as far as _NEAR, and so many more, evenly as far as _REACH, the normal. Bends farther
# away than _FARTHEST are taken to be there.
_INNER, _NEAR, _FINEST = 6, 1.0, (0.01, 1.5)
_OUTER, _REACH, _FARTHEST = 10, 5.5, 2.5
_NODES = 2 * (_INNER + _OUTER) + 1
# Tails beyond fall at least as fast as this, per standard deviation.
_LEAST_FALL = 0.5
# Log densities below their highest that count as none, and rises between nodes that count as level.
_LOWEST, _FLAT = -80.0, 1e-3
# Numbers that are there at a time: what fits a processor's cache.
_MOST_ENTRIES = 2**19
# Of a term, below which it makes no difference whether it is exact.
_LEAST_WEIGHT = 1e-12
# Terms beyond those that have a variable of their own, which the last variable sees, too.
_REST = 16


@dataclass(frozen=True)
class Order:
    """Which terms are exact, in which order, and the directions that each adds, in units of the Gaussian.

    Attributes:
        places: (B, K) long, of the terms.
        used: (B, K) bool.
        basis: (B, K, P) orthonormal where used, else zero.
        slopes: (B, K, K) lower triangular: the k-th term's number moves by slopes[k] @ w with variables w.
        mean: (B, K) of the terms' numbers.
        precision, shift: (B, K) of their stand-ins.
        kink, width: (B, K) where the terms bend the most, and over how many of their numbers.
        rest: (B, R) long, other terms, which the last variable sees as they are.
        rest_used, rest_slopes, rest_mean, rest_precision, rest_shift: of these, (B, R, K) and (B, R).
    """

    places: Tensor
    used: Tensor
    basis: Tensor
    slopes: Tensor
    mean: Tensor
    precision: Tensor
    shift: Tensor
    kink: Tensor
    width: Tensor
    rest: Tensor
    rest_used: Tensor
    rest_slopes: Tensor
    rest_mean: Tensor
    rest_precision: Tensor
    rest_shift: Tensor

    @classmethod
    def of(cls, terms: Terms, sites: Sites) -> Order:
        """One by one, the term that says the most about the variables not yet taken, and says it least like a normal.

        Its precision there, times the relative variance of the term over its stand-in.
        """
        spread = sites.spread(terms)
        weight = sites.precision * disagreement(terms, sites)
        left, chosen, basis, used = spread.clone(), [], [], []
        for _ in range(min(spread.shape[1:])):
            best, place = (weight * left.square().sum(-1)).max(-1)
            direction = left.gather(1, place[:, None, None].expand(-1, 1, left.shape[-1]))[:, 0]
            going = best > _LEAST_WEIGHT
            direction = torch.where(going[:, None], torch.nn.functional.normalize(direction, dim=-1), 0.0)
            for _ in range(2):  # once more, against rounding
                left = left - (left @ direction[..., None]) * direction[:, None]
            kept = torch.where(going[:, None], 0.0, weight.gather(1, place[:, None]))
            weight = weight.scatter(1, place[:, None], kept)
            chosen.append(place)
            basis.append(direction)
            used.append(going)
        places, turned, taken = torch.stack(chosen, 1), torch.stack(basis, 1), torch.stack(used, 1)
        slopes = spread @ turned.mT
        # Of those that are left the ones that say the most about the last variable; the others have weight zero.
        last = (taken.sum(-1) - 1).clamp(min=0)[:, None, None].expand(-1, slopes.shape[1], 1)
        worth = weight * slopes.gather(-1, last)[..., 0].square()
        worth, rest = worth.topk(min(_REST, spread.shape[1] - places.shape[1]), -1)
        numbers = (*sites.numbers(terms), sites.precision, sites.shift)
        mean, variance, precision, shift = (values.gather(1, places) for values in numbers)
        other_mean, _, other_precision, other_shift = (values.gather(1, rest) for values in numbers)
        return cls(places, taken, turned, _rows(slopes, places).tril(), mean, precision, shift,
                   *kinks(terms, places, mean, variance), rest, worth > _LEAST_WEIGHT, _rows(slopes, rest), other_mean,
                   other_precision, other_shift)

    @classmethod
    def joined(cls, parts: Sequence[Order]) -> Order:
        """Those of several batches as one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __getitem__(self, index: Tensor) -> Order:
        """That of the chosen datasets."""
        return Order(*(getattr(self, field.name)[index] for field in fields(self)))


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """(B, R, K) rows of values (B, M, K)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


@dataclass(frozen=True)
class ExactTermsTheta:
    """A distribution of theta; of some datasets a Gaussian with exact terms, of the others as it was.

    Draws carry no gradient.

    Attributes:
        base: of all B datasets, what the others have.
        places: (b,) long, the datasets that have exact terms.
        terms, sites, order: of these b.
    """

    base: ThetaDistribution
    places: Tensor
    terms: Terms
    sites: Sites
    order: Order

    @property
    def active(self) -> Tensor:
        """(B, P) bool."""
        return self.base.active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) draws; zero at inactive parameters."""
        return self.rsample_and_log_prob(num_samples, generator)[0]

    @torch.no_grad()
    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S)."""
        return self.draws_of(torch.arange(len(self.active), device=self.sites.centre.device), num_samples, generator)

    def draws_of(
        self, index: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (b, S, P) and their log density (b, S) of some datasets (b,) alone, the same as among all."""
        centre, batch = self.sites.centre, len(self.active)
        noise = randn(batch, num_samples, centre.shape[-1], like=self.terms.location, generator=generator)
        place, which = self._exact_among(index)
        parts = [self._sequence(which[part]).moved(noise[index[place[part]]].to(centre))
                 for part in self._blocks(which, num_samples)]
        if len(which) == len(index):
            drawn, density = (torch.cat(part).to(noise) for part in zip(*parts, strict=True))
            return drawn, density
        theta, log_prob = draws_of(self.base, index, num_samples, generator)
        if not parts:
            return theta, log_prob
        drawn, density = (torch.cat(part) for part in zip(*parts, strict=True))
        return theta.index_copy(0, place, drawn.to(theta)), log_prob.index_copy(0, place, density.to(log_prob))

    @torch.no_grad()
    def exact_at_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What standard normal noise (b, S, P) becomes of the datasets with exact terms, and its log density (b, S)."""
        noise = noise.to(self.sites.centre)
        parts = [self._sequence(part).moved(noise[part]) for part in self._blocks(self.places, noise.shape[1])]
        theta, log_prob = (torch.cat(part) for part in zip(*parts, strict=True))
        return theta, log_prob

    @torch.no_grad()
    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        own = theta[self.places].to(self.sites.centre)
        found = [self._sequence(part).density(own[part]) for part in self._blocks(self.places, theta.shape[1])]
        log_prob = self.base.log_prob(theta)
        return log_prob.index_copy(0, self.places, torch.cat(found).to(log_prob))

    def detach(self) -> ExactTermsTheta:
        """The same with all its parameters cut from the graph."""
        return replace(self, base=self.base.detach())

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> None:
        """None: there is no closed form."""
        return None

    def _exact_among(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Of the datasets (b',) those with exact terms: where they are among these, and among ``places``."""
        found = self.places.new_full((len(self.active),), -1)
        found[self.places] = torch.arange(len(self.places), device=index.device)
        place = (found[index] >= 0).nonzero()[:, 0]
        return place, found[index][place]

    def _sequence(self, which: Tensor) -> _Sequence:
        return _Sequence(self.terms[which], self.sites[which], self.order[which])

    @staticmethod
    def _blocks(which: Tensor, num_samples: int) -> tuple[Tensor, ...]:
        """Places among these datasets, a few at a time."""
        together = max(1, _MOST_ENTRIES // (num_samples * _NODES))
        return torch.arange(len(which), device=which.device).split(together) if len(which) else ()


@dataclass(frozen=True)
class _Sequence:
    """The Gaussians with exact terms of b datasets."""

    terms: Terms
    sites: Sites
    order: Order

    def moved(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What standard normal noise (b, S, P) becomes, and its log density (b, S)."""
        noise = torch.where(self.terms.active[:, None], noise, 0.0)
        plain = noise @ self.order.basis.mT  # (b, S, K)
        variables, gain = plain.clone(), noise.new_zeros(noise.shape[:2])
        for k in self._steps:
            at, log_prob = self._conditional(k, variables).at_quantile(plain[..., k])
            variables[..., k] = torch.where(self.order.used[:, k, None], at, 0.0)
            gain = gain + self._gain(k, at, log_prob)
        unit = noise + (variables - plain) @ self.order.basis
        away = torch.linalg.solve_triangular(self.sites.factor.mT, unit.mT, upper=True).mT
        theta = self.terms.location + self.terms.scale * (self.sites.centre[:, None] + away)
        return torch.where(self.terms.active[:, None], theta, 0.0), self._gaussian(unit) + gain

    def density(self, theta: Tensor) -> Tensor:
        """(b, S) log density of theta (b, S, P)."""
        z = (theta - self.terms.location) / self.terms.scale
        away = torch.where(self.terms.active[:, None], z - self.sites.centre[:, None], 0.0)
        unit = away @ self.sites.factor
        variables, gain = unit @ self.order.basis.mT, unit.new_zeros(unit.shape[:2])
        for k in self._steps:
            at = variables[..., k]
            gain = gain + self._gain(k, at, self._conditional(k, variables).log_prob(at))
        return self._gaussian(unit) + gain

    @property
    def _steps(self) -> list[int]:
        return self.order.used.any(0).nonzero()[:, 0].tolist()

    def _gaussian(self, unit: Tensor) -> Tensor:
        active = self.terms.active
        volume = self.sites.factor.diagonal(dim1=-2, dim2=-1).log() - self.terms.scale.log() - 0.5 * _LOG_2PI
        return torch.where(active, volume, 0.0).sum(-1)[:, None] - 0.5 * unit.square().sum(-1)

    def _gain(self, k: int, at: Tensor, log_prob: Tensor) -> Tensor:
        """(b, S) log of the k-th conditional over the normal that it takes the place of."""
        return torch.where(self.order.used[:, k, None], log_prob + 0.5 * (at.square() + _LOG_2PI), 0.0)

    def _conditional(self, k: int, variables: Tensor) -> _Conditional:
        """Of the k-th variable, given those before it (b, S, K): on a grid, in the precision of the terms."""
        kind, order = self.terms.location, self.order
        own = _Line.of(order.places, order.slopes, order.mean, order.precision, order.shift, k, k, variables)
        unit = torch.where(own.slope == 0.0, 1.0, own.slope)
        focus = ((order.kink[:, k, None] - own.start) / unit).clamp(-_FARTHEST, _FARTHEST).to(kind)
        spacing = _spacing(order.width[:, k] / unit[:, 0].abs()).to(kind)
        nodes = focus[..., None] + spacing[:, None]
        height = own.over_stand_in(self.terms, nodes).addcmul_(nodes, nodes, value=-0.5)
        last = order.used.sum(-1) == k + 1
        for r in range(order.rest.shape[1]) if last.any() else ():
            seen = last & order.rest_used[:, r]
            other = _Line.of(order.rest, order.rest_slopes, order.rest_mean, order.rest_precision, order.rest_shift, r,
                             k, variables)
            height = height + torch.where(seen[:, None, None], other.over_stand_in(self.terms, nodes), 0.0)
        return _Conditional.of(focus, spacing, height)


@dataclass(frozen=True)
class _Line:
    """A term along one variable: its number is start + slope times that.

    Attributes:
        place: (b, 1) long, of the term.
        start: (b, S), by the variables before.
        slope, precision, shift: (b, 1), the last two of its stand-in.
    """

    place: Tensor
    start: Tensor
    slope: Tensor
    precision: Tensor
    shift: Tensor

    @classmethod
    def of(cls, places: Tensor, slopes: Tensor, mean: Tensor, precision: Tensor, shift: Tensor, number: int, k: int,
           variables: Tensor) -> _Line:
        """The term of that number among several, along the k-th variable, given those before it (b, S, K)."""
        mine = slopes[:, number]
        start = mean[:, number, None] + (variables[..., :k] @ mine[:, :k, None])[..., 0]
        return cls(places[:, number, None], start, mine[:, k, None], precision[:, number, None],
                   shift[:, number, None])

    def over_stand_in(self, terms: Terms, nodes: Tensor) -> Tensor:
        """(b, S, G) the log of the term over its stand-in at nodes (b, S, G), which is quadratic in these."""
        start, slope, precision, shift = self.start, self.slope, self.precision, self.shift
        at = torch.addcmul(start.to(nodes)[..., None], slope.to(nodes)[..., None], nodes)
        term = terms.values(at.flatten(1)[:, None], self.place).view_as(at)
        tilt, bend = slope * (precision * start - shift), 0.5 * precision * slope.square()
        level = (0.5 * precision * start - shift) * start
        stand_in = tilt.to(nodes)[..., None] + bend.to(nodes)[..., None] * nodes
        return term + stand_in.mul_(nodes).add_(level.to(nodes)[..., None])


@dataclass(frozen=True)
class _Conditional:
    """Densities over one number whose logarithm is linear between nodes and beyond them.

    Attributes:
        focus: (b, S) what the nodes lie around.
        spacing: (b, G) increasing, the nodes less that.
        height: (b, S, G) log density at the nodes, the highest zero.
        slope: (b, S, G + 1) of the log density: the left tail's, those between nodes, the right tail's.
        mass: (b, S, G + 1) of the pieces.
    """

    focus: Tensor
    spacing: Tensor
    height: Tensor
    slope: Tensor
    mass: Tensor

    @classmethod
    def of(cls, focus: Tensor, spacing: Tensor, height: Tensor) -> _Conditional:
        """From log densities (b, S, G) up to constants."""
        height = (height - height.amax(-1, keepdim=True)).clamp_(min=_LOWEST)
        rise, width, top = height.diff(dim=-1), spacing.diff()[:, None], height.exp()
        slope, mass = (height.new_empty(*height.shape[:-1], height.shape[-1] + 1) for _ in range(2))
        torch.div(rise, width, out=slope[..., 1:-1])
        slope[..., 0] = slope[..., 1].clamp(min=_LEAST_FALL)
        slope[..., -1] = slope[..., -2].clamp(max=-_LEAST_FALL)
        linear = 0.5 * (top[..., 1:] + top[..., :-1])
        mass[..., 1:-1] = torch.where(rise.abs() < _FLAT, linear, top.diff(dim=-1) / rise) * width
        mass[..., 0], mass[..., -1] = top[..., 0] / slope[..., 0], -top[..., -1] / slope[..., -1]
        return cls(focus, spacing, height, slope, mass)

    def at_quantile(self, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (b, S) with as much mass below as a standard normal has below ``normal``; their log densities."""
        tiny = torch.finfo(self.mass.dtype).eps
        below = self.mass.cumsum(-1)
        wanted = torch.special.ndtr(normal).to(below)[..., None] * below[..., -1:]
        piece = torch.searchsorted(below, wanted).clamp(max=below.shape[-1] - 1)
        mass, slope = self.mass.gather(-1, piece)[..., 0], self.slope.gather(-1, piece)[..., 0]
        share = (1.0 - (below.gather(-1, piece) - wanted)[..., 0] / mass).clamp(tiny, 1.0 - tiny)
        node, height = self._anchor(piece[..., 0])
        growth = share * mass / height.exp()
        inside = torch.where(slope == 0.0, growth, torch.log1p((slope * growth).clamp(min=tiny - 1.0)) / slope)
        # In the left tail, the first piece, the anchor is where the piece ends.
        step = torch.where(piece[..., 0] == 0, share.log() / slope, inside)
        return self.focus + node + step, height + slope * step - below[..., -1].log()

    def log_prob(self, at: Tensor) -> Tensor:
        """(b, S) log density of numbers (b, S)."""
        away = at.to(self.focus) - self.focus
        piece = torch.searchsorted(self.spacing, away)
        node, height = self._anchor(piece)
        return height + self.slope.gather(-1, piece[..., None])[..., 0] * (away - node) - self.mass.sum(-1).log()

    def _anchor(self, piece: Tensor) -> tuple[Tensor, Tensor]:
        """The node where pieces (b, S) begin, and the height there."""
        place = (piece - 1).clamp(min=0)
        return self.spacing.gather(-1, place), self.height.gather(-1, place[..., None])[..., 0]


def _spacing(width: Tensor) -> Tensor:
    """(b, G) nodes around zero, closest there for terms that bend within a narrow width (b,)."""
    finest = width.clamp(*_FINEST)[:, None]
    even = torch.linspace(0.0, 1.0, _INNER + 1).to(width)[1:]
    inner = finest * torch.sinh(torch.asinh(_NEAR / finest) * even)
    outer = torch.linspace(_NEAR, _REACH, _OUTER + 1).to(width)[1:].expand(len(width), -1)
    return torch.cat([-outer.flip(-1), -inner.flip(-1), torch.zeros_like(finest), inner, outer], -1)
