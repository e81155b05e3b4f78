"""Kinds of features: what real columns look like, made from independent standard normal ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Change = Callable[[Tensor, torch.Generator], Tensor]
_DEGREES = 4.0
_LEAST_SHARE = 0.1


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return x


def _correlated(x: Tensor, generator: torch.Generator) -> Tensor:
    """Columns that share a few factors, up to 95% of their variance, so that designs come ill-conditioned."""
    batch, _, columns = x.shape
    factors = max(1, columns // 4)
    loadings = torch.randn(batch, factors, columns, generator=generator, device=x.device)
    loadings = loadings / loadings.norm(dim=1, keepdim=True)
    common = torch.randn(*x.shape[:2], factors, generator=generator, device=x.device) @ loadings
    share = 0.95 * torch.rand(batch, 1, 1, generator=generator, device=x.device)
    return share.sqrt() * common + (1 - share).sqrt() * x


def _heavy_tailed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rows scaled by an inverse chi: Student's t with about four degrees of freedom and unit variance."""
    chi = torch.randn(*x.shape[:2], int(_DEGREES), generator=generator, device=x.device).square().mean(-1)
    return x * ((_DEGREES - 2) / _DEGREES) ** 0.5 / chi.clamp(min=1e-3).sqrt()[..., None]


def _binary(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the columns become 0/1 with a share of ones of their own, standardised by it."""
    share = torch.rand(x.shape[0], 1, x.shape[2], generator=generator, device=x.device)
    share = share * (1 - 2 * _LEAST_SHARE) + _LEAST_SHARE
    ones = (x < torch.special.ndtri(share)).to(x.dtype)
    chosen = torch.rand(x.shape[0], 1, x.shape[2], generator=generator, device=x.device) < 0.5
    return torch.where(chosen, (ones - share) / (share * (1 - share)).sqrt(), x)


INPUTS: dict[str, Change] = {"normal": _normal, "correlated": _correlated, "heavy_tailed": _heavy_tailed,
                                "binary": _binary}
