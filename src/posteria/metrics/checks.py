"""Checks of the arguments of metrics: each names the argument, what it got and what it takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posteria.errors import InputError


def check_shape(argument: str, values: Tensor, shape: Sequence[int | None], names: str) -> None:
    """Raise an InputError unless ``values`` has this shape, None for any length; ``names`` says what is meant."""
    fits = values.ndim == len(shape) and all(
        wanted in (None, got) for got, wanted in zip(values.shape, shape, strict=True))
    if not fits:
        known = f" = ({', '.join('any' if size is None else str(size) for size in shape)})"
        raise InputError.of(argument, f"shape {tuple(values.shape)}", f"shape {names}{known}")


def check_finite(argument: str, values: Tensor, real: Tensor | None = None) -> None:
    """Raise an InputError when an entry is NaN or infinite; entries where ``real`` is False do not count."""
    bad = ~torch.isfinite(values)
    if real is not None:
        bad = bad & real
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise InputError.of(argument, f"{int(bad.sum())} NaN or infinite values, the first at {where}",
                            "finite numbers")


def check_mask(argument: str, mask: Tensor, shape: tuple[int, int], unit: str) -> None:
    """Raise an InputError unless ``mask`` is boolean, of this shape, with a True entry for every dataset."""
    check_shape(argument, mask, shape, f"(datasets, {unit}s)")
    if mask.dtype != torch.bool:
        raise InputError.of(argument, f"dtype {mask.dtype}", "a boolean mask, True = real")
    empty = ~mask.any(-1)
    if empty.any():
        raise InputError.of(argument, f"no {unit} in dataset {int(empty.nonzero()[0])}",
                            f"at least one {unit} per dataset")


def check_draws(argument: str, draws: int, least: int) -> None:
    """Raise an InputError when there are fewer than ``least`` draws."""
    if draws < least:
        raise InputError.of(argument, f"{draws} draw" + "s" * (draws != 1), f"{least} draws or more")
