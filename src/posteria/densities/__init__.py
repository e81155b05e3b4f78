"""Densities: context -> distribution over theta.

A new density is one file with a :class:`Density`, one entry here, and nothing else: the contract suite
in ``posteria.testing`` runs over this registry.
"""

from __future__ import annotations

from posteria.densities.base import Density
from posteria.densities.flow import AffineFlow, SplineFlow
from posteria.densities.gaussian import DiagonalGaussian, FullGaussian
from posteria.densities.low_rank import LowRankGaussian
from posteria.densities.skewed import SkewedGaussian
from posteria.densities.symmetric import Symmetrised, permutations_of_axis

DENSITIES: dict[str, type[Density]] = {
    "gaussian": DiagonalGaussian,
    "full": FullGaussian,
    "low_rank": LowRankGaussian,
    "skewed": SkewedGaussian,
    "flow": AffineFlow,
    "spline_flow": SplineFlow,
}

__all__ = [
    "DENSITIES",
    "AffineFlow",
    "Density",
    "DiagonalGaussian",
    "FullGaussian",
    "LowRankGaussian",
    "SkewedGaussian",
    "SplineFlow",
    "Symmetrised",
    "permutations_of_axis",
]
