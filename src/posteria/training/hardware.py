"""Where and how precisely to compute."""

from __future__ import annotations

import torch

from posteria.encoders import Encoder
from posteria.errors import InputError


def choose_device(name: str) -> torch.device:
    """The named device; "auto" is the GPU where there is one.

    Raises:
        InputError: a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError.of("device", repr(name), f"'auto', 'cpu' or a device of this machine ({error})") from error
    return device


def choose_encoder_dtype(precision: str, encoder: Encoder, device: torch.device) -> torch.dtype | None:
    """bfloat16 or None (float32) for the encoder's matrix products; see ``Recipe.precision``.

    An encoder that evaluates the likelihood keeps float32 unless told otherwise: residuals of a good fit are small
    differences of large numbers.
    """
    automatic = precision == "auto" and _multiplies_bf16(device) and not encoder.needs_likelihood
    return torch.bfloat16 if automatic or precision == "bf16" else None


def _multiplies_bf16(device: torch.device) -> bool:
    """The device has instructions for bfloat16 products, so that they are faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
