"""Generalized linear models: a line, and any observation family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from posteria.models.families import build_head
from posteria.models.outputs import OutputModel
from posteria.models.parameters import FEATURES, Parameter
from posteria.types import Dataset


@dataclass(frozen=True)
class _DesignLine:
    """Outputs W x + b as products with a design: the features, then a column of ones if there is an intercept."""

    outputs: Tensor
    design: Tensor  # (B, N, M), zero at masked features
    num_features: int

    def pull_back(self, cotangent: Tensor) -> Tensor:
        return self._times(cotangent, self.design)

    def pull_back_squared(self, root: Tensor) -> Tensor:
        return self._times((root**2).sum(-1), self.design**2)

    def jacobian(self, root: Tensor) -> Tensor:
        turned = root.movedim(-1, 3).flatten(2, 3)  # (B, S, N R, K)
        design = self.design.repeat_interleave(root.shape[-1], 1)[:, None, :, None]
        return self._flat(turned[..., None] * design)

    def _times(self, cotangent: Tensor, design: Tensor) -> Tensor:
        """(B, S, Q) of v (B, S, N, K), as one product per dataset."""
        products = cotangent.mT.flatten(1, 2) @ design
        return self._flat(products.unflatten(1, (cotangent.shape[1], cotangent.shape[3])))

    def _flat(self, values: Tensor) -> Tensor:
        """(..., Q) the weights (K, D) of all outputs, then their intercepts, from values (..., K, M)."""
        weights, intercepts = values[..., :self.num_features], values[..., self.num_features:]
        return torch.cat([weights.flatten(-2), intercepts.flatten(-2)], -1)


class GeneralizedLinear(OutputModel):
    """y ~ family(x·weights + intercept), weights and intercept N(0, 1) by default (McCullagh & Nelder 1989).

    Families and their own parameters: "gaussian" (``noise_scale`` where the noise is inferred), "student_t"
    (``noise_scale``), "bernoulli" (logit), "probit", "categorical" (softmax; a row of weights for every class but the
    first), "poisson" (log), "negative_binomial" (log; ``concentration``), "beta_binomial" (logit; ``concentration``;
    extra column ``trials``), "gamma" (log; ``shape``), "survival" (exponential times, log hazard; extra column
    ``censoring``).

    Args:
        family: a key of :data:`posteria.models.families.FAMILIES`.
        intercept: with an intercept.
        priors: distributions per parameter name, in place of the defaults.
        options: the family's own, see :func:`posteria.models.families.build_head`.

    Raises:
        InputError: an unknown family or option.

    Examples:
        >>> GeneralizedLinear("gamma").layout(2).scalar_names
        ('weights[0]', 'weights[1]', 'intercept', 'shape')
    """

    name = "generalized_linear"
    linear_outputs: ClassVar[bool] = True

    def __init__(self, family: str = "gaussian", intercept: bool = True,
                 priors: Mapping[str, Distribution] | None = None, **options: Any):
        self._options = {"family": family, "intercept": intercept, **options}
        head, self.intercept = build_head(family, **options), intercept
        outputs = ("classes",) if head.num_outputs > 1 else ()
        parameters = (Parameter("weights", (*outputs, FEATURES)),)
        parameters += (Parameter("intercept", outputs),) if intercept else ()
        self.linear_blocks = tuple(parameter.name for parameter in parameters)
        super().__init__(head, parameters, {"classes": head.num_outputs} if outputs else {}, priors)

    def design(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return self._design(dataset)[:, None]

    def linearize(self, theta: Tensor, dataset: Dataset) -> _DesignLine:
        design, count, outputs = self._design(dataset), self._features(dataset).shape[-1], self.head.num_outputs
        layout, (batch, draws) = self.layout_of(dataset), theta.shape[:2]
        coefficients = layout["weights"].take(theta).reshape(batch, draws * outputs, count)
        if self.intercept:
            own = layout["intercept"].take(theta).reshape(batch, draws * outputs, 1)
            coefficients = torch.cat([coefficients, own], -1)
        values = (design @ coefficients.mT).reshape(batch, -1, draws, outputs).transpose(1, 2)
        return _DesignLine(values, design, count)

    def _design(self, dataset: Dataset) -> Tensor:
        """(B, N, M) the features, and ones where there is an intercept."""
        features = self._features(dataset)
        return torch.cat([features, torch.ones_like(features[..., :1])], -1) if self.intercept else features

    def in_units(self, draws: Mapping[str, Tensor], x_location: Tensor, x_scale: Tensor, y_location: float,
                 y_scale: float) -> dict[str, Tensor] | None:
        """Draws of a model fitted to standardised data, for the data in their own units; None without intercept."""
        if not self.intercept:
            return None
        weights = draws["weights"] * y_scale / x_scale
        intercept = y_location + draws["intercept"] * y_scale - (weights * x_location).sum(-1)
        scaled = {name: value * y_scale for name, value in draws.items() if name == "noise_scale"}
        return dict(draws) | {"weights": weights, "intercept": intercept} | scaled
