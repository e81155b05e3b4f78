"""Count regression with an exposure column: a user's own model, written as a user would write it.

y ~ NegativeBinomial with mean exposure * exp(intercept + x·weights) and variance mean + mean² / concentration:
a Poisson count whose rate varies by a gamma factor of that concentration (Cameron & Trivedi 2013, chapter 3).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution, LogNormal, NegativeBinomial, Normal, constraints

from posteria.models.custom import CustomModel
from posteria.models.parameters import FEATURES, Parameter

# Priors for standardised features: one standard deviation of a feature changes the rate by about a factor
# of 1.35, and the concentration lies between 1 (strong overdispersion) and 20 (almost Poisson).
PARAMETERS = (
    Parameter("weights", (FEATURES,), prior=Normal(0.0, 0.3)),
    Parameter("intercept", prior=Normal(0.5, 1.0)),
    Parameter("concentration", support=constraints.positive, prior=LogNormal(1.5, 0.75)),
)
# No count is expected above e¹⁵ (three million): keeps draws from a wide prior within float32.
_LARGEST_LOG_MEAN = 15.0


def predict(params: dict[str, Tensor], x: Tensor) -> Distribution:
    """Distribution of the counts (N,) given x (N, 1 + D), exposure first."""
    exposure, features = x[:, 0], x[:, 1:]
    log_mean = exposure.log() + params["intercept"] + features @ params["weights"]
    concentration = params["concentration"]
    logits = log_mean.clamp(max=_LARGEST_LOG_MEAN) - concentration.log()
    return NegativeBinomial(concentration, logits=logits)


def draw_inputs(rows: int, columns: int) -> Tensor:
    """(rows, columns): exposures between 0.5 and 2, then standard normal features."""
    exposure = torch.empty(rows, 1).uniform_(0.5, 2.0)
    return torch.cat([exposure, torch.randn(rows, columns - 1)], -1)


def poisson_regression(priors: Mapping[str, Distribution] | None = None) -> CustomModel:
    """Overdispersed Poisson regression; the first column of x is the exposure.

    Args:
        priors: distributions per parameter name, in place of the defaults.

    Examples:
        >>> poisson_regression().layout(3).scalar_names
        ('weights[0]', 'weights[1]', 'intercept', 'concentration')
    """
    return CustomModel(PARAMETERS, predict=predict, draw_inputs=draw_inputs, name="poisson_regression",
                       extra_columns={"exposure": constraints.positive}, target="count", priors=priors)
