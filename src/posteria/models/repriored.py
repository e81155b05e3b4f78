"""The same likelihood under other priors: priors as an argument of a call."""

from __future__ import annotations

import copy
import math

from torch.distributions import Distribution, Normal, constraints

from posteria.errors import InputError
from posteria.models.base import Model
from posteria.models.parameters import Parameter
from posteria.models.priors import Priors, priors_from_json


def repriored(model: Model, priors: Priors | None = None, prior_scale: float | None = None) -> Model:
    """A model with other priors; the model given stays as it is.

    Args:
        model: the likelihood, and the priors of whatever is not named.
        priors: per parameter name a distribution, or its JSON such as {"family": "normal", "loc": 0, "scale": 2}.
        prior_scale: standard deviation of every normal prior on the real line that ``priors`` does not name; the
            centres stay.

    Raises:
        InputError: an unknown name, a prior that does not fit its parameter, a scale that is not positive, or no
            normal prior that it could apply to.

    Examples:
        >>> from posteria.models.linear import LinearRegression
        >>> repriored(LinearRegression(), prior_scale=2.5).parameters[0].prior
        Normal(loc: 0.0, scale: 2.5)
    """
    chosen = priors_from_json(priors or {})
    unknown = sorted(set(chosen) - {p.name for p in model.parameters})
    if unknown:
        raise InputError.of("priors", str(unknown), f"names among {[p.name for p in model.parameters]}")
    if prior_scale is not None:
        chosen = _scaled(model, prior_scale) | chosen
    other = copy.copy(model)
    other.parameters = tuple(Parameter(p.name, p.shape, p.support, chosen.get(p.name, p.prior))
                             for p in model.parameters)
    other.forget_layouts()
    return other


def _scaled(model: Model, scale: float) -> dict[str, Distribution]:
    if not (math.isfinite(scale) and scale > 0):
        raise InputError.of("prior_scale", repr(scale), "a positive number")
    found: dict[str, Distribution] = {
        p.name: Normal(p.prior.loc, scale) for p in model.parameters
        if isinstance(p.prior, Normal) and type(p.support) is type(constraints.real)}
    if not found:
        raise InputError.of("prior_scale", repr(scale), f"a model with normal priors, which {model.name!r} has not")
    return found
