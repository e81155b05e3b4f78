"""Observation families of two classes beside the logistic one (:class:`posteria.models.heads.CategoricalHead`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from posteria.models.base import Target
from posteria.models.heads import Extra, Head
from posteria.models.links import mills


class ProbitHead(Head):
    """y = 1 with probability Φ(f(x)); information φ² / (Φ(f) Φ(-f)). Accurate far into both tails."""

    target: Target = "class"
    num_classes = 2

    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        return torch.special.log_ndtr((2.0 * y - 1.0) * outputs[..., 0])

    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        signs = 2.0 * y - 1.0
        return (signs * mills(signs * outputs[..., 0]))[..., None]

    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        return (mills(outputs[..., 0]) * mills(-outputs[..., 0])).sqrt()[..., None, None]

    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        logits = torch.special.log_ndtr(torch.stack([-outputs[..., 0], outputs[..., 0]], -1))
        return Categorical(logits=logits, validate_args=False)
