"""Reverse KL: E_D KL(q(theta | D) || p(theta | D)), up to a constant.

KL(q || p(. | D)) = E_q[log q(theta | D) - log p(theta) - log p(D | theta)] + log p(D): minus the evidence lower bound.
It never reads the theta that generated a dataset, so it trains on any data, real ones included.

Two estimators, both from several reparametrised draws per dataset:

- closed: KL(q || prior) in closed form where the density and the prior are Gaussian, and draws for the likelihood
  alone; the KL term can be warmed up from 0 to 1 (the paper's recipe: over the first quarter of training).
- path (Roeder et al. 2017, "sticking the landing"): log q is evaluated with q's parameters cut from the graph,
  which drops a term of zero mean; its gradient has no variance where q is the posterior.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.models.base import Model
from posteria.objectives.base import Objective, Step
from posteria.types import Dataset, ThetaDistribution


class ReverseKL(Objective):
    """-ELBO per dataset, divided by its size (rows + parameters) so that datasets of all sizes weigh alike.

    Args:
        num_samples: draws per dataset.
        path_gradient: use the path estimator (then ``closed_form`` does not apply).
        closed_form: use the exact KL to the prior where there is one.
        warm_up: fraction of training over which the KL term grows from 0 to 1.
        limit: the loss of a single dataset grows only logarithmically beyond this many nats per row and parameter,
            so that a bad start does not drown the batch; None for no limit.
    """

    def __init__(self, num_samples: int = 4, path_gradient: bool = True, closed_form: bool = True,
                 warm_up: float = 0.0, limit: float | None = 20.0):
        if num_samples < 1:
            raise InputError.of("num_samples", repr(num_samples), "1 or more")
        if not 0 <= warm_up <= 1:
            raise InputError.of("warm_up", repr(warm_up), "a fraction of training, 0 to 1")
        self.num_samples, self.path_gradient = num_samples, path_gradient
        self.closed_form, self.warm_up, self.limit = closed_form, warm_up, limit

    def __call__(self, distribution: ThetaDistribution, dataset: Dataset, theta: Tensor | None, model: Model,
                 step: Step) -> Tensor:
        draws, log_q = distribution.rsample_and_log_prob(self.num_samples, step.generator)
        log_likelihood = model.log_likelihood(draws, dataset).mean(-1)
        divergence = self._divergence(distribution, dataset, draws, log_q, model)
        weight = 1.0 if self.warm_up == 0 else min(1.0, step.progress / self.warm_up)
        size = dataset.num_observations + distribution.active.sum(-1)
        return _tamed((weight * divergence - log_likelihood) / size, self.limit).mean()

    def _divergence(self, distribution: ThetaDistribution, dataset: Dataset, draws: Tensor, log_q: Tensor,
                    model: Model) -> Tensor:
        """(B,) estimate of KL(q || prior)."""
        if self.path_gradient:
            log_q = distribution.detach().log_prob(draws)
        elif self.closed_form and model.layout_of(dataset).has_normal_prior:
            location, scale = (m.to(draws) for m in model.layout_of(dataset).prior_moments)
            closed = distribution.kl_to_normal(location, scale)
            if closed is not None:
                return closed
        return (log_q - model.log_prior(draws, dataset)).mean(-1)


def _tamed(loss: Tensor, limit: float | None) -> Tensor:
    """Identity below the limit, logarithmic above."""
    if limit is None:
        return loss
    above = (loss - limit).clamp(min=0)
    return torch.where(loss > limit, limit * (1 + torch.log1p(above / limit)), loss)
