"""Observation families by name: what generalized linear and hierarchical models take as ``family``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from posteria.errors import InputError
from posteria.models.heads import CategoricalHead, GaussianHead, Head, regression_head
from posteria.models.heads_binary import ProbitHead
from posteria.models.heads_counts import BetaBinomialHead, NegativeBinomialHead, PoissonHead
from posteria.models.heads_real import GammaHead, KnownNoiseHead, StudentTHead, SurvivalHead


def gaussian(noise: str | float = "inferred") -> GaussianHead:
    """Normal noise: "inferred", a known variance, or "column" for a known sd per row in the extra column ``noise``."""
    return KnownNoiseHead() if noise == "column" else regression_head(noise)


def bernoulli() -> CategoricalHead:
    """Two classes with a logit link, one output."""
    return CategoricalHead(2, temperature=1.0, reference=True)


def categorical(classes: int = 3) -> CategoricalHead:
    """Classes with a softmax link, the first one's logit zero."""
    return CategoricalHead(classes, temperature=1.0, reference=True)


FAMILIES: dict[str, Callable[..., Head]] = {
    "gaussian": gaussian,
    "student_t": StudentTHead,
    "bernoulli": bernoulli,
    "probit": ProbitHead,
    "categorical": categorical,
    "poisson": PoissonHead,
    "negative_binomial": NegativeBinomialHead,
    "beta_binomial": BetaBinomialHead,
    "gamma": GammaHead,
    "survival": SurvivalHead,
}


def build_head(family: str, **options: Any) -> Head:
    """The head of a family.

    Args:
        family: a key of ``FAMILIES``.
        options: the family's own: ``noise`` of "gaussian", ``degrees`` of "student_t", ``classes`` of "categorical",
            ``exposure`` of "poisson" and "negative_binomial".

    Raises:
        InputError: an unknown family, option or value.

    Examples:
        >>> build_head("categorical", classes=4).num_outputs
        3
    """
    if family not in FAMILIES:
        raise InputError.of("family", repr(family), f"one of {sorted(FAMILIES)}")
    known = list(inspect.signature(FAMILIES[family]).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError.of(f"options of the family {family}", str(unknown), f"options among {known}")
    return FAMILIES[family](**options)
