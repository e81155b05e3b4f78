"""Randomness is always explicit: a ``torch.Generator`` goes in, and nothing touches the global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_LARGEST_SEED = 2**62


def generator_for(seed: int, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends only on (seed, step), so that a resumed run draws what the unbroken one drew."""
    mixed = (seed * 1_000_003 + step * 7_919 + 12_345) % _LARGEST_SEED
    return torch.Generator(device=device).manual_seed(mixed)


def randn(*shape: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal draws with the device and dtype of ``like``."""
    return torch.randn(shape, device=like.device, dtype=like.dtype, generator=generator)


def seed_global_state(seed: int, device: torch.device) -> None:
    """Seed the global state of the CPU and of one device.

    ``torch.manual_seed`` would do, but on a machine without a GPU it costs a third of a millisecond per call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Run code that only knows the global state (torch.distributions) from an explicit generator.

    The global state is as before afterwards. With ``None`` the global state is used and advances.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(_LARGEST_SEED, (1,), generator=generator, device=generator.device).item())
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed_global_state(seed, generator.device)
        yield
