"""Prior quantiles: maps of a standard normal to a prior, for parameters whose prior is not normal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Cells of the normal's axis, up to where the map is continued by a straight line (in the logarithmic units below).
_CELLS_PER_UNIT, _FURTHEST = 32, 12
# Of the prior's axis, in the units asinh((theta - location) / scale); and Gauss-Legendre nodes in each cell.
_WIDTH, _MOST_CELLS, _NODES = 0.01, 4000, 4
_NEWTON_STEPS = 6
# A map is tried at so many points up to so far out; the log density of u may be off by so much.
_FITTED, _FITTED_POINTS, _MOST_WRONG = 5.0, 1001, 1e-2


@dataclass(frozen=True)
class QuantileMap:
    """theta(u) with theta ~ prior where u ~ N(0, 1): theta = location + scale * sinh(s(u)), s a cubic spline.

    The hyperbolic sine takes heavy tails. Whatever the spline's error, :meth:`value` and :meth:`slopes` belong
    together, so that densities changed by them are exact.

    Attributes:
        location, scale: of the prior, roughly.
        coefficients: (4, cells) of s in every cell of the normal's axis, the cubic's first.
    """

    location: float
    scale: float
    coefficients: Tensor

    @classmethod
    def of(cls, log_density: Callable[[Tensor], Tensor], location: float, scale: float) -> QuantileMap | None:
        """The map of a prior; None where its mass has gaps, or no density that can be computed.

        Args:
            log_density: (M,) points -> (M,) log densities; may be -inf.
            location: where a kink, if there is one, lies; any middle of the prior otherwise.
            scale: how wide it is, roughly.
        """
        from scipy.interpolate import CubicHermiteSpline

        places, units, slopes = _known(log_density, location, scale)
        inside = (np.abs(units) < _FURTHEST + 1) & np.isfinite(slopes)
        places, units, slopes = places[inside], units[inside], slopes[inside]
        if len(units) < 2 or (np.diff(units) <= 0).any():
            return None
        whole = CubicHermiteSpline(units, places, slopes)
        low, high = max(units[0], -_FURTHEST), min(units[-1], _FURTHEST)
        edges = np.linspace(-_FURTHEST, _FURTHEST, 2 * _FURTHEST * _CELLS_PER_UNIT + 1)
        near = edges.clip(low, high)
        slope = whole(near, 1)
        spline = CubicHermiteSpline(edges, whole(near) + slope * (edges - near), slope)
        found = cls(location, scale, torch.from_numpy(spline.c))
        return found if found._fits(log_density) else None

    def value(self, u: Tensor) -> Tensor:
        """theta at u, of any shape; differentiable."""
        return self.location + self.scale * torch.sinh(self._spline(u)[0])

    def slopes(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta, and its first and second derivative in u."""
        s, first, second = self._spline(u)
        sinh, cosh = torch.sinh(s), torch.cosh(s)
        return (self.location + self.scale * sinh, self.scale * cosh * first,
                self.scale * (sinh * first.square() + cosh * second))

    def log_slope(self, u: Tensor) -> Tensor:
        """log of theta's derivative."""
        s, first, _ = self._spline(u)
        # log cosh s, which overflows later than cosh does
        return math.log(self.scale) + s.abs() + torch.log1p((-2.0 * s.abs()).exp()) - math.log(2.0) + first.log()

    def inverse(self, theta: Tensor) -> Tensor:
        """u at theta, by Newton's method within the cell; differentiable."""
        with torch.no_grad():
            u = self._solved(theta.double())
            value, slope, _ = self.slopes(u)
        # A step of Newton's method that changes nothing but carries the gradient.
        return (u + (theta.double() - value) / slope).to(theta.dtype)

    def _solved(self, theta: Tensor) -> Tensor:
        s = torch.asinh((theta - self.location) / self.scale)
        coefficients = self.coefficients.to(theta.device)
        knots = coefficients[3]
        cell = (torch.searchsorted(knots, s.contiguous(), right=True) - 1).clamp(0, len(knots) - 1)
        a, b, c, d = coefficients[:, cell]
        step = 1.0 / _CELLS_PER_UNIT
        end = ((a * step + b) * step + c) * step + d
        t = step * ((s - d) / (end - d)).clamp(0.0, 1.0)
        for _ in range(_NEWTON_STEPS):
            t = (t - (((a * t + b) * t + c) * t + d - s) / ((3 * a * t + 2 * b) * t + c)).clamp(0.0, step)
        low, high = s < knots[0], cell == len(knots) - 1
        u = cell * step - _FURTHEST + t
        first, last = self._edge_slopes()
        u = torch.where(low, -_FURTHEST + (s - knots[0]) / first, u)
        return torch.where(high & (s > end), _FURTHEST + (s - end) / last, u)

    def _fits(self, log_density: Callable[[Tensor], Tensor]) -> bool:
        """It increases, and takes a standard normal to the prior, as far as draws ever go."""
        if not self.coefficients.isfinite().all():
            return False
        u = torch.linspace(-_FITTED, _FITTED, _FITTED_POINTS, dtype=torch.double)
        theta, slope, _ = self.slopes(u)
        density = log_density(theta) + slope.log()
        normal = -0.5 * u.square()
        wrong = (density - density.logsumexp(0) - normal + normal.logsumexp(0)).abs()
        return bool((slope > 0).all()) and bool((wrong < _MOST_WRONG).all())

    def _edge_slopes(self) -> tuple[Tensor, Tensor]:
        a, b, c, _ = self.coefficients[:, -1]
        step = 1.0 / _CELLS_PER_UNIT
        return self.coefficients[2, 0], (3 * a * step + 2 * b) * step + c

    def _spline(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s and its first two derivatives."""
        inside = u.clamp(-_FURTHEST, _FURTHEST)
        place = (inside + _FURTHEST) * _CELLS_PER_UNIT
        cell = place.detach().floor().nan_to_num(0.0).clamp(0, self.coefficients.shape[1] - 1).long()
        t = (place - cell) / _CELLS_PER_UNIT
        a, b, c, d = self.coefficients.to(u)[:, cell]
        s, first, second = ((a * t + b) * t + c) * t + d, (3 * a * t + 2 * b) * t + c, 6 * a * t + 2 * b
        beyond = u != inside
        return torch.where(beyond, s + first * (u - inside), s), first, torch.where(beyond, 0.0, second)


def _known(log_density: Callable[[Tensor], Tensor], location: float, scale: float) -> (
        tuple[np.ndarray, np.ndarray, np.ndarray]):
    """At the edges of the cells: s, u and ds/du. The mass of a cell by Gauss-Legendre, tails in logarithms."""
    from scipy.special import ndtri_exp

    edges = _WIDTH * torch.arange(-_MOST_CELLS, _MOST_CELLS + 1, dtype=torch.double)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(_NODES))

    def density(s: Tensor) -> Tensor:
        log_cosh = s.abs() + torch.log1p((-2.0 * s.abs()).exp()) - math.log(2.0)
        values = log_density((location + scale * torch.sinh(s)).flatten()).view_as(s)
        # Where arguments have overflowed, there is nothing in a proper prior.
        return (values + math.log(scale) + log_cosh).nan_to_num(-torch.inf, -torch.inf, -torch.inf)

    inner = edges[:-1, None] + 0.5 * _WIDTH * (1.0 + nodes)
    cells = (density(inner) + (0.5 * _WIDTH * weights).log()).logsumexp(-1)
    nothing = torch.full((1,), -torch.inf, dtype=torch.double)
    below = torch.cat([nothing, cells.logcumsumexp(-1)])
    above = torch.cat([cells.flip(-1).logcumsumexp(-1).flip(-1), nothing])
    lower, upper = ((part - below[-1]).clamp(max=0.0).numpy() for part in (below, above))
    units = np.where(lower < upper, ndtri_exp(lower), -ndtri_exp(upper))
    with np.errstate(over="ignore", invalid="ignore"):  # far out, where nothing is left
        log_slope = -0.5 * units**2 - 0.5 * math.log(2.0 * math.pi) - (density(edges) - below[-1]).numpy()
        return edges.numpy(), units, np.exp(log_slope)
