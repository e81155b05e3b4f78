"""Models: priors and likelihoods over named parameters. One closed dict names them for configs and the CLI."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from posteria.errors import InputError
from posteria.models.base import Model
from posteria.models.custom import CustomModel
from posteria.models.families import FAMILIES
from posteria.models.gaussian import GaussianMean
from posteria.models.generalized_linear import GeneralizedLinear
from posteria.models.hierarchical import Hierarchical
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.models.log_joint import ModelLogJoint
from posteria.models.mixture import GaussianMixture
from posteria.models.neural import NeuralClassification, NeuralRegression
from posteria.models.parameters import Block, Layout, Parameter
from posteria.models.poisson import poisson_regression
from posteria.models.priors import Priors, prior_from_json, prior_to_json, priors_from_json

MODELS: dict[str, Callable[..., Model]] = {
    "gaussian_mean": GaussianMean,
    "gaussian_mixture": GaussianMixture,
    "linear_regression": LinearRegression,
    "linear_classification": LinearClassification,
    "neural_regression": NeuralRegression,
    "neural_classification": NeuralClassification,
    "poisson_regression": poisson_regression,
    "generalized_linear": GeneralizedLinear,
    "hierarchical": Hierarchical,
}


def build_model(name: str, priors: Priors | None = None, **options: Any) -> Model:
    """The model of that name.

    Args:
        name: a key of ``MODELS``.
        priors: per parameter name a distribution, or its JSON such as {"family": "normal", "loc": 0, "scale": 2}.
        options: the model's own arguments.

    Raises:
        InputError: an unknown name, option or value.

    Examples:
        >>> build_model("linear_regression", noise="inferred").layout(1).scalar_names
        ('weights[0]', 'intercept', 'noise_scale')
    """
    if name not in MODELS:
        raise InputError.of("model", repr(name), f"one of {sorted(MODELS)}")
    arguments = inspect.signature(MODELS[name]).parameters
    known = [option for option in arguments if option != "priors"]
    unknown = sorted(set(options) - set(known))
    # A model that takes any option (those of its family) checks them itself.
    if unknown and all(argument.kind is not argument.VAR_KEYWORD for argument in arguments.values()):
        raise InputError.of(f"options of {name}", str(unknown), f"options among {known}")
    return MODELS[name](priors=priors_from_json(priors or {}), **options)


def model_to_json(model: Model) -> dict[str, Any]:
    """Name, options and priors from which :func:`build_model` makes the model again.

    The name is None for a user's own model, whose code cannot be stored.
    """
    if model.name not in MODELS:
        return {"name": None, "own_name": model.name}
    priors = {p.name: prior_to_json(p.prior) for p in model.parameters}
    return {"name": model.name, "options": model.options(), "priors": priors}


__all__ = [
    "FAMILIES",
    "MODELS",
    "Block",
    "CustomModel",
    "GaussianMean",
    "GaussianMixture",
    "GeneralizedLinear",
    "Hierarchical",
    "Layout",
    "LinearClassification",
    "LinearRegression",
    "Model",
    "ModelLogJoint",
    "NeuralClassification",
    "NeuralRegression",
    "Parameter",
    "build_model",
    "model_to_json",
    "poisson_regression",
    "prior_from_json",
    "prior_to_json",
    "priors_from_json",
]
