"""Linear regression and linear classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from posteria.errors import UnsupportedError
from posteria.models.heads import CategoricalHead, Head, InferredNoiseHead, regression_head
from posteria.models.outputs import OutputModel
from posteria.models.parameters import FEATURES, Parameter
from posteria.types import Dataset


@dataclass(frozen=True)
class _LinearLine:
    """Outputs X Wᵀ + b; the Jacobian is X itself."""

    outputs: Tensor
    x: Tensor  # (B, N, D), zero at padding

    def pull_back(self, cotangent: Tensor) -> Tensor:
        rows = cotangent.mT  # (B, S, K, N): one product per dataset, without a copy of x per draw
        weights = (rows.flatten(1, 2) @ self.x).unflatten(1, rows.shape[1:3])
        return torch.cat([weights.flatten(2), cotangent.sum(2)], -1)

    def pull_back_squared(self, root: Tensor) -> Tensor:
        return self._square_line().pull_back((root**2).sum(-1))

    def jacobian(self, root: Tensor) -> Tensor:
        turned = root.movedim(-1, 3).flatten(2, 3)  # (B, S, N R, K)
        x = self.x.repeat_interleave(root.shape[-1], 1)[:, None, :, None]
        return torch.cat([(turned[..., None] * x).flatten(3), turned], -1)

    def _square_line(self) -> _LinearLine:
        return _LinearLine(self.outputs, self.x**2)


class _Linear(OutputModel):
    """f(x) = W x + b, with one row of W per output."""

    linear_outputs: ClassVar[bool] = True
    linear_blocks = ("weights", "intercept")

    def __init__(self, head: Head, priors: Mapping[str, Distribution] | None):
        many = head.target == "class"
        outputs = ("classes",) if many else ()
        parameters = (Parameter("weights", (*outputs, FEATURES)), Parameter("intercept", outputs))
        super().__init__(head, parameters, {"classes": head.num_outputs} if many else {}, priors)

    def design(self, theta: Tensor, dataset: Dataset) -> Tensor:
        x = dataset.x * dataset.features[:, None]
        return torch.cat([x, torch.ones_like(x[..., :1])], -1)[:, None]

    def linearize(self, theta: Tensor, dataset: Dataset) -> _LinearLine:
        layout, outputs = self.layout_of(dataset), self.head.num_outputs
        batch, draws, columns = *theta.shape[:2], dataset.x.shape[-1]
        weights = layout["weights"].take(theta).reshape(batch, draws * outputs, columns)
        intercept = layout["intercept"].take(theta).reshape(batch, draws, 1, outputs)
        x = dataset.x * dataset.features[:, None]
        # Rows are last in memory: what is done per row is then done without a copy.
        values = (weights @ x.mT).unflatten(1, (draws, outputs)).mT
        return _LinearLine(values + intercept, x)


class LinearRegression(_Linear):
    """y ~ N(x·weights + intercept, noise), weights and intercept N(0, 1) by default.

    Args:
        noise: known noise variance (0.25 in the paper), or "inferred": then ``noise_scale``, a standard
            deviation with a half-normal prior, is a parameter too.
        priors: distributions per parameter name, in place of the defaults.

    Examples:
        >>> LinearRegression(noise="inferred").layout(2).scalar_names
        ('weights[0]', 'weights[1]', 'intercept', 'noise_scale')
    """

    name = "linear_regression"

    def __init__(self, noise: str | float = 0.25, priors: Mapping[str, Distribution] | None = None):
        self._options = {"noise": noise}
        super().__init__(regression_head(noise), priors)

    def exact_posterior(self, dataset: Dataset) -> MultivariateNormal:
        """Conjugate posterior (Bishop 2006, eq. 3.50), in double precision; known noise and normal priors only."""
        layout = self.layout_of(dataset)
        if isinstance(self.head, InferredNoiseHead) or not layout.has_normal_prior:
            raise UnsupportedError("linear_regression has an exact posterior for known noise and normal priors only")
        wide = dataset.double()
        location, scale = (m.double().to(dataset.device) for m in layout.prior_moments)
        start = location.expand(len(dataset), -1)
        prior = torch.diag_embed((scale**-2).expand_as(start))
        precision = self.likelihood_precision(start[:, None], wide) + prior
        score = self.likelihood_geometry(start[:, None], wide).score[:, 0]
        mean = start + torch.linalg.solve(precision, score[..., None])[..., 0]
        return MultivariateNormal(mean, torch.linalg.inv(precision), validate_args=False)

    def in_units(self, draws: Mapping[str, Tensor], x_location: Tensor, x_scale: Tensor, y_location: float,
                 y_scale: float) -> dict[str, Tensor]:
        """Draws of a model fitted to standardised data, for the data in their own units."""
        weights = draws["weights"] * y_scale / x_scale
        intercept = y_location + draws["intercept"] * y_scale - (weights * x_location).sum(-1)
        scaled = {"weights": weights, "intercept": intercept}
        return scaled | ({"noise_scale": draws["noise_scale"] * y_scale} if "noise_scale" in draws else {})


class LinearClassification(_Linear):
    """y ~ softmax((W x + b) / temperature), entries of W and b N(0, 1) by default.

    Args:
        classes: number of classes, 2 or more.
        temperature: 0.1 in the paper; 1 is ordinary logistic regression.
        reference: fix the first class's logit at zero (one row of weights fewer).
        priors: distributions per parameter name, in place of the defaults.
    """

    name = "linear_classification"

    def __init__(self, classes: int = 2, temperature: float = 0.1, reference: bool = False,
                 priors: Mapping[str, Distribution] | None = None):
        self._options = {"classes": classes, "temperature": temperature, "reference": reference}
        super().__init__(CategoricalHead(classes, temperature, reference), priors)

    def in_units(self, draws: Mapping[str, Tensor], x_location: Tensor, x_scale: Tensor, y_location: float,
                 y_scale: float) -> dict[str, Tensor]:
        """Draws of a model fitted to standardised inputs, for inputs in their own units."""
        weights = draws["weights"] / x_scale
        return {"weights": weights, "intercept": draws["intercept"] - (weights * x_location).sum(-1)}
