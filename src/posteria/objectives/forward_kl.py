"""Forward KL: E over (theta, D) of KL(p(theta | D) || q(theta | D)), up to a constant.

E_D KL(p || q) = -E_{theta, D ~ p} log q(theta | D) - E_D H[p(theta | D)], and the last term does not depend on q
(neural posterior estimation; arXiv 2502.06601, section 3). It needs the theta that generated each dataset, so it
trains only on data simulated from the assumed model.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from posteria.errors import UnsupportedError
from posteria.models.base import Model
from posteria.objectives.base import Objective, Step
from posteria.types import Dataset, ThetaDistribution

WHY_THETA = (
    "Forward KL is the mean of -log q(theta | D) over parameters drawn with their data from the assumed model, and "
    "these datasets have none (they come from elsewhere, or were changed after the simulation); reverse_kl needs none"
)


class ForwardKL(Objective):
    """-log q(theta | D) per parameter, averaged over datasets."""

    needs_theta: ClassVar[bool] = True

    def __call__(self, distribution: ThetaDistribution, dataset: Dataset, theta: Tensor | None, model: Model,
                 step: Step) -> Tensor:
        if theta is None:
            raise UnsupportedError(f"theta: got None; takes the parameters that generated each dataset. {WHY_THETA}")
        log_prob = distribution.log_prob(theta[:, None])[:, 0]
        return (-log_prob / distribution.active.sum(-1)).mean()
