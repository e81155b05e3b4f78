"""Frame: the affine map between standardised coordinates and theta that a context gives.

theta = location + scale * R^-T u, so that a density shaped in u starts where the context says the
posterior lies, in its units, and stays well conditioned whatever the scales of theta.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from posteria.densities.gaussian import MeanAndScale, conditional_scale
from posteria.errors import InputError
from posteria.types import Context, ContextSpec


@dataclass(frozen=True)
class Frame:
    """Location, scale and correlation of B datasets.

    Attributes:
        location, scale: (B, P), scale positive; zero and one at inactive parameters.
        active: (B, P) bool.
        factor: R (B, P, P), lower triangular, the identity at inactive parameters; None means R = I.
    """

    location: Tensor
    scale: Tensor
    active: Tensor
    factor: Tensor | None = None

    def to_theta(self, unit: Tensor) -> Tensor:
        """theta (B, S, P), zero at inactive parameters, from unit (B, S, P), also zero there."""
        if self.factor is not None:
            unit = torch.linalg.solve_triangular(self.factor.mT, unit.mT, upper=True).mT
        return self.location[:, None] + self.scale[:, None] * unit

    def to_unit(self, theta: Tensor) -> Tensor:
        """Inverse of :meth:`to_theta`; whatever theta holds at inactive parameters becomes zero.

        Raises:
            InputError: theta is not (B, S, P).
        """
        batch, size = self.active.shape
        if theta.ndim != 3 or theta.shape[0] != batch or theta.shape[2] != size:
            raise InputError.of("theta", f"shape {tuple(theta.shape)}", f"shape ({batch}, draws, {size})")
        real = torch.where(self.active[:, None], theta, 0.0)
        unit = (real - self.location[:, None]) / self.scale[:, None]
        return unit if self.factor is None else unit @ self.factor

    @property
    def log_volume(self) -> Tensor:
        """(B,) log-determinant of theta with respect to unit."""
        logs = self.scale.log()
        if self.factor is not None:
            logs = logs - self.factor.diagonal(dim1=-2, dim2=-1).log()
        return logs.sum(-1)

    def __getitem__(self, index: Tensor) -> Frame:
        """That of the chosen datasets."""
        factor = None if self.factor is None else self.factor[index]
        return Frame(self.location[index], self.scale[index], self.active[index], factor)

    def detach(self) -> Frame:
        """The same with all its parameters cut from the graph."""
        factor = None if self.factor is None else self.factor.detach()
        return replace(self, location=self.location.detach(), scale=self.scale.detach(), factor=factor)


class FrameHead(nn.Module):
    """Reads a frame off a context: its own location, scale and factor, corrected by the tokens, or a head's."""

    def __init__(self, spec: ContextSpec):
        super().__init__()
        self.spec = spec
        self.heads = MeanAndScale(spec)

    def forward(self, context: Context) -> Frame:
        """The frame, one per dataset of the context."""
        active, expected = context.active, self.spec.num_parameters
        if expected is not None and active.shape[1] != expected:
            raise InputError.of("context", f"{active.shape[1]} parameters", f"{expected}, which this density is for")
        location, log_scale = self.heads(context, conditional_scale(context))
        scale = log_scale.exp() if context.scale is None else context.scale * log_scale.exp()
        location, scale = torch.where(active, location, 0.0), torch.where(active, scale, 1.0)
        return Frame(location, scale, active, None if context.factor is None else _masked(context.factor, active))


def _masked(factor: Tensor, active: Tensor) -> Tensor:
    """The factor with identity rows and columns at inactive parameters."""
    eye = torch.eye(active.shape[1], dtype=factor.dtype, device=factor.device)
    return torch.where(active[:, :, None] & active[:, None, :], factor, eye)
