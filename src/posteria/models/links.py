"""Links from an output to a positive mean or a probability."""

from __future__ import annotations

import torch
from torch import Tensor

# exp of this is three million (and its inverse); beyond, means grow with the output in proportion, not exponentially.
_LARGEST = 15.0


def bounded_log(outputs: Tensor) -> Tensor:
    """The logarithm of a mean: the output itself up to ±15, beyond ±(15 + log(1 + |output| - 15)).

    Part of every log-link model's definition: it keeps draws from a wide prior within float32. Unlike a clamp it has
    a slope everywhere, so that a search that went too far finds its way back.
    """
    if _all_within(outputs):
        return outputs
    return outputs.clamp(-_LARGEST, _LARGEST) + outputs.sign() * torch.log1p(_beyond(outputs))


def bounded_log_slope(outputs: Tensor) -> Tensor:
    """Derivative of :func:`bounded_log`: one within ±15."""
    if _all_within(outputs):
        return outputs.new_ones(()).expand_as(outputs)
    return 1.0 / (1.0 + _beyond(outputs))


def mills(outputs: Tensor) -> Tensor:
    """φ(f) / Φ(f) of the standard normal, accurate in both tails."""
    # Above 10 the ratio is below 1e-22; the clamp keeps erfcx from overflowing.
    return (2.0 / torch.pi) ** 0.5 / torch.special.erfcx(-outputs.clamp(max=10.0) * 0.5**0.5)


def _all_within(outputs: Tensor) -> bool:
    """So it nearly always is, which is quicker to find out than to bound; an accelerator would have to wait for it."""
    if outputs.device.type != "cpu" or not outputs.numel():
        return False
    least, most = outputs.detach().aminmax()
    return bool(least >= -_LARGEST) and bool(most <= _LARGEST)


def _beyond(outputs: Tensor) -> Tensor:
    return torch.relu(outputs.abs() - _LARGEST)  # no gradient at zero, unlike a clamp, which has its own there
