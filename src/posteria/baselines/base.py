"""What every sampler shares: a place with its density, and the protocol of build, State, init, update.

Shapes: B datasets, C chains, P parameters in prior-whitened z. A sampler sees a model only through its
:class:`posteria.types.LogJoint`, and works on all datasets and chains at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.types import LogJoint


@dataclass(frozen=True)
class Point:
    """Where the chains are.

    Attributes:
        z: (B, C, P) places.
        log_density: (B, C), -inf where the log joint is not finite.
        score: (B, C, P) gradient there.
    """

    z: Tensor
    log_density: Tensor
    score: Tensor


@dataclass(frozen=True)
class Info:
    """What happened in one update; apart from the state, which is what the next update needs.

    Attributes:
        accept: (B, C) probability with which the proposal was accepted; one for moves that are always made.
        divergent: (B, C) bool, the energy changed by more than 1,000 or was not finite.
        step_size: (B,) of this update.
    """

    accept: Tensor
    divergent: Tensor
    step_size: Tensor


class State(Protocol):
    """Whatever a sampler carries from update to update; ``z`` (B, C, P) is what it has drawn."""

    @property
    def z(self) -> Tensor: ...


class Sampler(Protocol):
    """What ``build(log_joint, ...)`` of every file in this room returns.

    The first ``num_warmup`` updates may adapt to what they see, so that their draws do not count.
    """

    num_warmup: int

    def init(self, z: Tensor, generator: torch.Generator) -> Any:
        """The state at z (B, C, P)."""
        ...

    def update(self, state: Any, generator: torch.Generator) -> tuple[Any, Info]:
        """One iteration of all chains."""
        ...


def evaluate(log_joint: LogJoint, z: Tensor) -> Point:
    """The point at z (B, C, P): zero where inactive, density -inf where it is not finite."""
    log_density, score = log_joint.score(z)
    return Point(z, torch.where(torch.isfinite(log_density), log_density, -torch.inf), score)


def start(log_joint: LogJoint, z: Tensor) -> Point:
    """The first point of chains at z (B, C, P), with inactive parameters at zero.

    Raises:
        InputError: a shape that does not fit, or numbers that are not finite.
    """
    datasets, parameters = log_joint.active.shape
    if z.ndim != 3 or (len(z), z.shape[-1]) != (datasets, parameters) or not z.shape[1]:
        raise InputError.of("z", f"shape {tuple(z.shape)}", f"({datasets}, chains, {parameters}), one chain or more")
    if not torch.isfinite(z).all():
        raise InputError.of("z", "values that are not finite", "finite starting points")
    return evaluate(log_joint, torch.where(log_joint.active[:, None], z, 0.0))


def moved(point: Point, step_size: Tensor) -> Info:
    """The info of an update that is always accepted."""
    accept = torch.ones_like(point.log_density)
    return Info(accept, ~torch.isfinite(point.log_density), step_size)


def noise(log_joint: LogJoint, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers shaped like z (B, C, P), zero where inactive."""
    drawn = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    return torch.where(log_joint.active[:, None], drawn, 0.0)


def at_least(argument: str, value: int, least: int) -> int:
    """The value, when it is a whole number that is large enough; else an :class:`InputError`."""
    if not isinstance(value, int) or value < least:
        raise InputError.of(argument, repr(value), f"a whole number, {least} or more")
    return value


def fraction(argument: str, value: float) -> float:
    """The value, when it lies between 0 and 1; else an :class:`InputError`."""
    if not 0.0 < value < 1.0:
        raise InputError.of(argument, repr(value), "a number between 0 and 1")
    return value
