"""Conditional normalizing flows: coupling blocks around the context's frame, over a standard normal.

theta = frame(T(eps)), T = T_L ∘ ... ∘ T_1, eps ~ N(0, I)
log q(theta) = log N(eps; 0, I) - sum_l log|det T_l'| - log|det frame'|

The blocks start at the identity, so a flow starts as the Gaussian of its frame. The frame plays the part
of the context-dependent Gaussian base and of activation normalisation (settings of arXiv 2502.06601,
appendix): it stands outside the blocks, so that they always see numbers of about unit size. Scalar maps
are zuko's: affine (Dinh et al., 2016, https://arxiv.org/abs/1605.08803) with log-scales bounded softly,
and rational-quadratic splines (Durkan et al., 2019, https://arxiv.org/abs/1906.04032) with linear tails.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from posteria.densities.base import Density
from posteria.densities.coupling import Coupling, CouplingBlock, FixedCoupling, TokenCoupling, halves, squash
from posteria.densities.frame import Frame, FrameHead
from posteria.densities.gaussian import soft_limit
from posteria.errors import InputError
from posteria.randomness import randn
from posteria.types import Context, ContextSpec

_LOG_2PI = math.log(2 * math.pi)
# One affine block scales by a factor between this and its inverse, and shifts by a few units at most.
_LEAST_AFFINE_SLOPE, _LARGEST_SHIFT = 0.2, 5.0
# Least ratio of a spline's bins and slopes: smaller ones cannot be inverted in single precision.
_LEAST_SPLINE_SLOPE = 0.05


@dataclass(frozen=True)
class FlowTheta:
    """theta = frame(T(eps)) for B datasets.

    Attributes:
        frame: affine map.
        blocks: couplings in the order in which they move eps.
    """

    frame: Frame
    blocks: tuple[CouplingBlock, ...]

    @property
    def active(self) -> Tensor:
        """(B, P) bool."""
        return self.frame.active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) reparametrised draws; zero at inactive parameters."""
        return self.rsample_and_log_prob(num_samples, generator)[0]

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S), in one pass."""
        return self._moved(self._noise(num_samples, generator))

    def draws_of(
        self, index: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (b, S, P) and their log density (b, S) of some datasets (b,) alone, the same as among all."""
        return self[index]._moved(self._noise(num_samples, generator)[index])

    def _noise(self, num_samples: int, generator: torch.Generator | None) -> Tensor:
        batch, size = self.active.shape
        return randn(batch, num_samples, size, like=self.frame.location, generator=generator) * self.active[:, None]

    def _moved(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        unit, log_prob = eps, self._base_log_prob(eps)
        for block in self.blocks:
            unit, log_det = block.forward(unit)
            log_prob = log_prob - log_det
        return self.frame.to_theta(unit), log_prob - self.frame.log_volume[:, None]

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        unit, log_dets = self.frame.to_unit(theta), self.frame.log_volume[:, None]
        for block in reversed(self.blocks):
            unit, log_det = block.inverse(unit)
            log_dets = log_dets + log_det
        return self._base_log_prob(unit) - log_dets

    def __getitem__(self, index: Tensor) -> FlowTheta:
        """That of the chosen datasets."""
        return FlowTheta(self.frame[index], tuple(block[index] for block in self.blocks))

    def detach(self) -> FlowTheta:
        """The same with all its parameters cut from the graph."""
        return replace(self, frame=self.frame.detach(), blocks=tuple(block.detach() for block in self.blocks))

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> None:
        """None: there is no closed form."""
        return None

    def _base_log_prob(self, eps: Tensor) -> Tensor:
        return -0.5 * (eps**2).sum(-1) - 0.5 * _LOG_2PI * self.active.sum(-1)[:, None]


class CouplingFlow(Density):
    """Base class of coupling flows; a subclass names the scalar map and the number of its raw parameters.

    Args:
        spec: widths of the context. With a fixed number of parameters the couplings have weights per
            parameter and see the summary; with a free one they are generated from the tokens.
        raw_dim: raw parameters of one scalar map.
        transforms: number of coupling blocks, at least two so that every parameter moves.
        hidden: widths of the conditioners' hidden layers.
    """

    def __init__(self, spec: ContextSpec, raw_dim: int, transforms: int = 6, hidden: Sequence[int] = (128,)):
        super().__init__(spec)
        if transforms < 2:
            raise InputError.of("transforms", transforms, "a whole number of at least 2")
        if not hidden or min(hidden) < 1:
            raise InputError.of("hidden", hidden, "one positive width or more")
        self.frame = FrameHead(spec)
        self.couplings = nn.ModuleList(_coupling(spec, hidden, raw_dim) for _ in range(transforms))

    @abstractmethod
    def univariate(self, raw: Tensor) -> Transform:
        """Monotonic scalar maps of (...) from raw (..., raw_dim), the identity where raw is zero."""

    def forward(self, context: Context) -> FlowTheta:
        """The distribution over theta, one per dataset of the context."""
        frame = self.frame(context)
        summary = squash(context.summary.float())
        tokens = None
        if context.tokens is not None:
            tokens = squash(torch.where(context.active[..., None], context.tokens.float(), 0.0))
        blocks = (self._block(i, frame.active, summary, tokens) for i in range(len(self.couplings)))
        return FlowTheta(frame, tuple(blocks))

    def _block(self, index: int, active: Tensor, summary: Tensor, tokens: Tensor | None) -> CouplingBlock:
        half = halves(active, index // 2)
        # Two blocks per split, one for each half. A lone parameter is in no half: the even blocks move it.
        given = half if index % 2 == 0 else active & ~half
        coupling = self.couplings[index]
        assert isinstance(coupling, Coupling)
        conditioner = coupling.conditioner(summary, tokens, given)
        return CouplingBlock(given[:, None], (active & ~given)[:, None], conditioner, self.univariate)


def _coupling(spec: ContextSpec, hidden: Sequence[int], raw_dim: int) -> Coupling:
    if spec.num_parameters is not None:
        return FixedCoupling(spec.num_parameters, spec.summary_dim, hidden, raw_dim)
    assert spec.token_dim is not None  # the frame has refused a spec without
    return TokenCoupling(spec.token_dim, spec.summary_dim, hidden, raw_dim)


class AffineFlow(CouplingFlow):
    """Affine coupling flow, as in the paper: six blocks with one hidden layer of 128 units.

    Args:
        spec: widths of the context.
        transforms: number of coupling blocks.
        hidden: widths of the conditioners' hidden layers.

    Raises:
        InputError: an option out of range, or a spec with neither located tokens nor a fixed number of parameters.

    Examples:
        >>> flow = AffineFlow(ContextSpec(summary_dim=4, token_dim=None, num_parameters=3))
        >>> flow(Context(torch.zeros(1, 4), torch.ones(1, 3, dtype=torch.bool))).rsample(5).shape
        torch.Size([1, 5, 3])
    """

    def __init__(self, spec: ContextSpec, transforms: int = 6, hidden: Sequence[int] = (128,)):
        super().__init__(spec, 2, transforms, hidden)

    def univariate(self, raw: Tensor) -> Transform:
        """See :meth:`CouplingFlow.univariate`."""
        return MonotonicAffineTransform(soft_limit(raw[..., 0], _LARGEST_SHIFT), raw[..., 1], slope=_LEAST_AFFINE_SLOPE)


class SplineFlow(CouplingFlow):
    """Rational-quadratic spline coupling flow, the identity outside ``bound`` standardised units.

    Args:
        spec: widths of the context.
        transforms: number of coupling blocks.
        hidden: widths of the conditioners' hidden layers.
        bins: segments of a spline.
        bound: splines bend in [-bound, bound].

    Raises:
        InputError: as for :class:`AffineFlow`.
    """

    def __init__(self, spec: ContextSpec, transforms: int = 6, hidden: Sequence[int] = (128,), bins: int = 8,
                 bound: float = 5.0):
        if bins < 2:
            raise InputError.of("bins", bins, "a whole number of at least 2")
        if not bound > 0:
            raise InputError.of("bound", bound, "a positive number")
        super().__init__(spec, 3 * bins - 1, transforms, hidden)
        self.bins, self.bound = bins, bound

    def univariate(self, raw: Tensor) -> Transform:
        """See :meth:`CouplingFlow.univariate`."""
        widths, heights, slopes = raw.split((self.bins, self.bins, self.bins - 1), -1)
        return MonotonicRQSTransform(widths, heights, slopes, bound=self.bound, slope=_LEAST_SPLINE_SLOPE)
