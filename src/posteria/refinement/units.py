"""Units in which a prior is normal: log scales have a long tail towards zero a priori, and often a posteriori."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Values beyond are continued by a straight line.
_FURTHEST = 12.0


@dataclass(frozen=True)
class NormalUnits:
    """An increasing map u(h) of each of H hyperparameters, piecewise linear between M knots.

    Attributes:
        knots: (M,) of h, evenly spaced.
        values: (H, M) u at the knots.
    """

    knots: Tensor
    values: Tensor

    @classmethod
    def of(cls, knots: Tensor, log_density: Tensor) -> NormalUnits:
        """The units in which priors with these log densities (H, M) at evenly spaced knots (M,) are standard normal.

        u = Φ⁻¹(F(h)) with F by the trapezoidal rule, from the nearer end, in logarithms.
        """
        from scipy.special import ndtri_exp

        pair = torch.logaddexp(log_density[:, 1:], log_density[:, :-1])
        nothing = torch.full_like(pair[:, :1], -torch.inf)
        below = torch.cat([nothing, pair.logcumsumexp(-1)], -1)
        above = torch.cat([pair.flip(-1).logcumsumexp(-1).flip(-1), nothing], -1)
        whole = below[:, -1:]
        lower, upper = ((part - whole).clamp(max=0.0).numpy() for part in (below, above))
        values = np.where(lower < upper, ndtri_exp(lower), -ndtri_exp(upper))
        return cls(knots, _continued(torch.from_numpy(values)))

    def units(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """u and log du/dh (..., H) at h (..., H)."""
        step = self.knots[1] - self.knots[0]
        place = ((h - self.knots[0]) / step).floor().nan_to_num(0.0).clamp(0, len(self.knots) - 2).long()
        left, slope = self._left(place), self._slope(place)
        return left + slope * (h - self.knots[place]), slope.log()

    def back(self, u: Tensor) -> Tensor:
        """h (..., H) at u (..., H)."""
        columns = u.movedim(-1, 0).flatten(1)
        place = torch.searchsorted(self.values, columns.contiguous(), right=True) - 1
        place = place.clamp(0, len(self.knots) - 2).unflatten(1, u.shape[:-1]).movedim(0, -1)
        return self.knots[place] + (u - self._left(place)) / self._slope(place)

    def _left(self, place: Tensor) -> Tensor:
        return self.values[torch.arange(place.shape[-1]), place]

    def _slope(self, place: Tensor) -> Tensor:
        return (self._left(place + 1) - self._left(place)) / (self.knots[1] - self.knots[0])


def _continued(values: Tensor) -> Tensor:
    """Knots (H, M) that are far out, replaced by the line through the last two that are not."""
    places = torch.arange(values.shape[1]).to(values)
    inside = values.abs() <= _FURTHEST
    rows = torch.arange(len(values))
    first = inside.to(torch.uint8).argmax(-1)
    last = values.shape[1] - 1 - inside.flip(-1).to(torch.uint8).argmax(-1)
    for end, side, step in ((first, places < first[:, None], 1), (last, places > last[:, None], -1)):
        slope = step * (values[rows, end + step] - values[rows, end])
        line = values[rows, end, None] + slope[:, None] * (places - end[:, None])
        values = torch.where(side, line, values)
    return values
