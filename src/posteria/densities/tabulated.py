"""The density of a single parameter from a table of its log density: exact up to interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Knots of the table, and places of the density between them.
_KNOTS, _PLACES = 129, 2049
# The table ends where the density is so many nats below its top, looked for at places sinh(u) widths away.
_DEPTH, _PROBES, _FARTHEST = 30.0, 21, 5.0
# It follows what it finds, at most so often, until the width assumed is within such a factor of the one found.
_MOST_TRIES, _CLOSE = 20, 2.0
_LOWEST = -700.0
# A peak is resolved by so many knots within so many nats of the highest.
_ENOUGH, _NEAR = 8, 4.0


@dataclass(frozen=True)
class TabulatedTheta:
    """A distribution over one parameter; implements :class:`posteria.types.ThetaDistribution`.

    Attributes:
        places: (B, G) increasing, double precision.
        density: (B, G) there; linear between places, zero outside, and with the integral one.
        dtype: of draws.
    """

    places: Tensor
    density: Tensor
    dtype: torch.dtype = torch.float32

    @property
    def active(self) -> Tensor:
        """(B, 1) bool: True."""
        return torch.ones_like(self.places[:, :1], dtype=torch.bool)

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, 1) draws, without gradient."""
        return self.rsample_and_log_prob(num_samples, generator)[0]

    def rsample_and_log_prob(self, num_samples: int, generator: torch.Generator | None = None) -> (
            tuple[Tensor, Tensor]):
        """Draws (B, S, 1) by the inverse distribution function, and their log density (B, S)."""
        width, mass = self.places.diff(dim=-1), self._masses
        edges = mass.cumsum(-1)
        drawn = torch.rand(len(mass), num_samples, generator=generator, dtype=torch.double, device=mass.device)
        drawn = drawn * edges[:, -1:]
        index = torch.searchsorted(edges, drawn).clamp(max=mass.shape[-1] - 1)
        low, high = self.density.gather(-1, index), self.density.gather(-1, index + 1)
        left = (drawn - (edges - mass).gather(-1, index)).clamp(min=0.0) / width.gather(-1, index)
        share = 2.0 * left / (low + (low.square() + 2.0 * (high - low) * left).clamp(min=0.0).sqrt())
        share = share.nan_to_num(0.0).clamp(0.0, 1.0)
        theta = self.places.gather(-1, index) + share * width.gather(-1, index)
        return theta[..., None].to(self.dtype), (low + share * (high - low)).log().to(self.dtype)

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, 1); minus infinity beyond the table."""
        value = theta[..., 0].double().contiguous()
        index = torch.searchsorted(self.places, value).clamp(1, self.places.shape[-1] - 1) - 1
        low, high = self.places.gather(-1, index), self.places.gather(-1, index + 1)
        share = (value - low) / (high - low)
        density = torch.lerp(self.density.gather(-1, index), self.density.gather(-1, index + 1), share)
        return torch.where((share >= 0.0) & (share <= 1.0), density, 0.0).log().to(theta.dtype)

    def detach(self) -> TabulatedTheta:
        """Itself: nothing carries a gradient."""
        return self

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> None:
        """None: there is no closed form."""
        return None

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B,)."""
        mass = self._masses / self._masses.sum(-1, keepdim=True)
        middle = (self.places[:, 1:] + self.places[:, :-1]) / 2.0
        mean = (mass * middle).sum(-1)
        return mean, (mass * (middle - mean[:, None]).square()).sum(-1).sqrt()

    @property
    def _masses(self) -> Tensor:
        return (self.density[:, 1:] + self.density[:, :-1]) / 2.0 * self.places.diff(dim=-1)


def tabulate(log_density: Callable[[Tensor], Tensor], centre: Tensor, scale: Tensor) -> TabulatedTheta:
    """Look a log density up around its mode, and interpolate between 129 knots.

    Args:
        log_density: (B, S) -> (B, S), up to a constant; of one mode.
        centre, scale: (B,) where to look first, and roughly how wide; the table then follows what it finds.

    Examples:
        >>> found = tabulate(lambda x: -x.square() / 2, torch.ones(1), torch.ones(1))
        >>> mean, sd = found.moments()
        >>> bool((mean.abs() < 1e-4).all() and ((sd - 1).abs() < 1e-4).all())
        True
    """
    centre, scale = centre.double(), scale.double()
    for _ in range(_MOST_TRIES):
        found, resolved, top = _table(log_density, centre, scale)
        mean, sd = found.moments()
        close = ((sd / scale).log().abs() < math.log(_CLOSE)) & ((mean - centre).abs() < _CLOSE * scale)
        settled = resolved & close
        if bool(settled.all()):
            break
        # A peak between two knots has no moments to go by, but a highest knot. Settled tables do not wait for others'.
        centre = torch.where(settled, centre, torch.where(resolved, mean, top[0]))
        scale = torch.where(settled, scale, torch.where(resolved, sd, top[1]))
    return found


def _table(log_density: Callable[[Tensor], Tensor], centre: Tensor, scale: Tensor) -> (
        tuple[TabulatedTheta, Tensor, Tensor]):
    """The density at places centre + scale sinh(u), for even u between where it is low enough on either side.

    Returns:
        It, whether enough knots are near its top (B,), and place and distance to the next of the highest knot (2, B).
    """
    from scipy.interpolate import Akima1DInterpolator

    def at(u: Tensor) -> Tensor:
        return log_density(centre[:, None] + scale[:, None] * u.sinh()).nan_to_num(-torch.inf)

    probes = torch.linspace(-_FARTHEST, _FARTHEST, _PROBES).to(centre)
    heights = at(probes.expand(len(centre), -1))
    deep = heights < heights.amax(-1, keepdim=True) - _DEPTH
    low, high = probes[_leading(deep) - 1], probes[_PROBES - _leading(deep.flip(-1))]
    shares, fine = (torch.linspace(0, 1, count).to(centre) for count in (_KNOTS, _PLACES))
    u = torch.lerp(low[:, None], high[:, None], shares)
    height = at(u)
    height = (height - height.amax(-1, keepdim=True)).nan_to_num(_LOWEST).clamp(min=_LOWEST)
    curve = Akima1DInterpolator(shares.cpu().numpy(), height.cpu().numpy(), axis=1, method="makima")
    density = torch.from_numpy(curve(fine.cpu().numpy())).to(centre.device).clamp(max=1.0).exp()
    places = centre[:, None] + scale[:, None] * torch.lerp(low[:, None], high[:, None], fine).sinh()
    found = TabulatedTheta(places, density / torch.trapezoid(density, places, dim=-1)[:, None])
    knots, highest = centre[:, None] + scale[:, None] * u.sinh(), height.argmax(-1, keepdim=True)
    top = torch.stack([values.gather(-1, highest.clamp(max=values.shape[-1] - 1))[:, 0]
                       for values in (knots, knots.diff(dim=-1))])
    return found, (height > -_NEAR).sum(-1) >= _ENOUGH, top


def _leading(deep: Tensor) -> Tensor:
    """(B,) how many of deep (B, K) are True before the first that is not, at least one."""
    return deep.to(torch.uint8).cumprod(-1).sum(-1).clamp(min=1)
