"""Priors as JSON: a closed dict of families, so that configs and checkpoints can name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributions as d

from posteria.errors import InputError

_FAMILIES: dict[str, tuple[Callable[..., d.Distribution], tuple[str, ...]]] = {
    "beta": (d.Beta, ("concentration1", "concentration0")),
    "cauchy": (d.Cauchy, ("loc", "scale")),
    "dirichlet": (d.Dirichlet, ("concentration",)),
    "exponential": (d.Exponential, ("rate",)),
    "gamma": (d.Gamma, ("concentration", "rate")),
    "half_cauchy": (d.HalfCauchy, ("scale",)),
    "half_normal": (d.HalfNormal, ("scale",)),
    "inverse_gamma": (d.InverseGamma, ("concentration", "rate")),
    "laplace": (d.Laplace, ("loc", "scale")),
    "log_normal": (d.LogNormal, ("loc", "scale")),
    "normal": (d.Normal, ("loc", "scale")),
    "student_t": (d.StudentT, ("df", "loc", "scale")),
    "uniform": (d.Uniform, ("low", "high")),
}

Priors = Mapping[str, d.Distribution | Mapping[str, Any]]


def prior_from_json(value: Mapping[str, Any]) -> d.Distribution:
    """The prior that a JSON object names.

    Raises:
        InputError: an unknown family, wrong arguments or values.

    Examples:
        >>> prior_from_json({"family": "normal", "loc": 0, "scale": 2})
        Normal(loc: 0.0, scale: 2.0)
    """
    arguments = dict(value)
    family = arguments.pop("family", None)
    if family not in _FAMILIES:
        raise InputError.of("family", repr(family), f"one of {sorted(_FAMILIES)}")
    build, names = _FAMILIES[family]
    if set(arguments) != set(names):
        raise InputError.of(f"prior {family}", str(sorted(arguments)), f"exactly {list(names)}")
    try:
        tensors = {name: torch.as_tensor(arguments[name], dtype=torch.get_default_dtype()) for name in names}
        return build(**tensors, validate_args=True)
    except (TypeError, ValueError) as error:
        raise InputError.of(f"prior {family}", str(arguments), f"valid values ({error})") from error


def prior_to_json(prior: d.Distribution) -> dict[str, Any]:
    """The JSON object that names a prior; :func:`prior_from_json` builds it again.

    Raises:
        InputError: the family has no name here.
    """
    for family, (build, names) in _FAMILIES.items():
        if type(prior) is build:
            return {"family": family} | {name: _plain(getattr(prior, name)) for name in names}
    raise InputError.of("prior", repr(prior), f"one of the families {sorted(_FAMILIES)}")


def priors_from_json(values: Priors) -> dict[str, d.Distribution]:
    """Priors per parameter name, those already built left as they are."""
    return {name: p if isinstance(p, d.Distribution) else prior_from_json(p) for name, p in values.items()}


def _plain(value: Tensor | float) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
