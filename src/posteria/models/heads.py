"""Observation families: how a model's outputs f(x) become a distribution of y.

Each gives, beside the density, its score and a root of its (Gauss-Newton = Fisher) curvature with
respect to the outputs. Shapes: outputs (B, S, N, K), y (B, 1, N), root (B, S, N, K, R).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, HalfNormal, Normal, constraints
from torch.nn import functional

from posteria.errors import InputError
from posteria.models.base import Target
from posteria.models.extra_columns import ExtraColumn
from posteria.models.parameters import Parameter

# Constrained parameters of the head, each (B, S), and its extra columns of x, each (B, 1, N).
Extra = Mapping[str, Tensor]
# Below, differences of scores drown in rounding.
_LEAST_VARIANCE = 1e-5
# The ratio of a secant step is not trusted below this.
_LEAST_RATIO = 0.02


class Head(ABC):
    """An observation family.

    Attributes:
        num_outputs: K, width of the outputs it reads.
        parameters: its own parameters (scalars), which follow the model's.
        columns: the extra columns of x that it reads.
        limit: the name of the column that y does not exceed, or None.
        target: kind of y.
        canonical: the curvature in the outputs is the Fisher information, whatever y is.
    """

    num_outputs: int = 1
    num_classes: int = 0
    parameters: tuple[Parameter, ...] = ()
    columns: tuple[ExtraColumn, ...] = ()
    limit: str | None = None
    target: Target = "real"
    canonical: ClassVar[bool] = False

    @property
    def contrast(self) -> tuple[float, ...] | None:
        """(K,) weights of the one combination of outputs that the density depends on; None where it sees more."""
        return (1.0,) if self.num_outputs == 1 and not self.parameters else None

    @abstractmethod
    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        """(B, S, N) log density of y."""

    @abstractmethod
    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        """(B, S, N, K) gradient of the log density in the outputs."""

    @abstractmethod
    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        """(B, S, N, K, R) with root rootᵀ = Fisher information of the outputs."""

    def averages(self, outputs: Tensor, y: Tensor, extra: Extra,
                 score: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means of the score, (B, 1, N, K), and of the curvature, (B, 1, N, K, K), over outputs that are normal.

        The precision of the best Gaussian is made of the curvature that y causes, which by Stein's lemma is
        -E[s (f - E f)] / Var f for a score s of one output f. The Fisher information stands in for it where it is the
        same, where the outputs hardly vary, and where a family has several. A score that is known already can be given.
        """
        if self.canonical or self.num_outputs > 1:
            score, information = self.score_and_information(outputs, y, extra)
            return score.mean(1, keepdim=True), information.mean(1, keepdim=True)
        score = self.score(outputs, y, extra) if score is None else score
        mean = score.mean(1, keepdim=True)
        away = outputs - outputs.mean(1, keepdim=True)
        variance = away.square().mean(1, keepdim=True)
        wide = variance > _LEAST_VARIANCE
        seen = -((score - mean) * away).mean(1, keepdim=True) / torch.where(wide, variance, 1.0)
        seen = seen.clamp(min=0.0)[..., None]
        if wide.all():
            return mean, seen
        return mean, torch.where(wide[..., None], seen, self._information(outputs, extra).mean(1, keepdim=True))

    def score_and_information(self, outputs: Tensor, y: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        """:meth:`score`, and the Fisher information (B, S, N, K, K) that :meth:`root` is a root of."""
        return self.score(outputs, y, extra), self._information(outputs, extra)

    def _information(self, outputs: Tensor, extra: Extra) -> Tensor:
        root = self.root(outputs, extra)
        # A product of many matrices of one number takes many times longer.
        return root.square() if root.shape[-2:] == (1, 1) else root @ root.mT

    @abstractmethod
    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        """Distribution of y with batch shape (B, S, N)."""

    def own_score(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        """(B, S, H) gradient in the head's own unconstrained parameters."""
        return outputs.new_zeros(*outputs.shape[:2], 0)

    def scores(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        """:meth:`score` and :meth:`own_score`, which may share terms."""
        return self.score(outputs, y, extra), self.own_score(outputs, y, observed, extra)

    def own_curvature(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra, score: Tensor,
                      information: Tensor) -> Tensor:
        """(B, S, H) positive curvature in the head's own unconstrained parameters; near a mode their information.

        Args:
            score, information: what :meth:`own_score` and :meth:`own_information` gave for the same arguments.
        """
        return outputs.new_zeros(*outputs.shape[:2], 0)

    def own_information(self, outputs: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        """(B, S, H) Fisher information of the head's own unconstrained parameters, or a positive stand-in."""
        return outputs.new_zeros(*outputs.shape[:2], 0)


class GaussianHead(Head):
    """y ~ N(f(x), noise_variance), the variance known.

    Args:
        noise_variance: positive; 0.25 in the paper.
    """

    canonical: ClassVar[bool] = True

    def __init__(self, noise_variance: float = 0.25):
        if not noise_variance > 0:
            raise InputError.of("noise_variance", repr(noise_variance), "a positive number")
        self.noise_variance = noise_variance

    def scale(self, extra: Extra) -> Tensor | float:
        return math.sqrt(self.noise_variance)

    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        scale = torch.as_tensor(self.scale(extra), dtype=outputs.dtype, device=outputs.device)
        return -0.5 * ((y - outputs[..., 0]) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)

    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        return ((y - outputs[..., 0]) / self.scale(extra) ** 2)[..., None]

    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        return (torch.ones_like(outputs[..., 0]) / self.scale(extra))[..., None, None]

    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        return Normal(outputs[..., 0], self.scale(extra), validate_args=False)


class InferredNoiseHead(GaussianHead):
    """y ~ N(f(x), noise_scale²), the scale a positive parameter with a half-normal prior."""

    def __init__(self) -> None:
        prior = HalfNormal(1.0, validate_args=False)
        self.parameters = (Parameter("noise_scale", (), constraints.positive, prior),)

    def scale(self, extra: Extra) -> Tensor:
        return extra["noise_scale"][..., None]

    def own_score(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        squares = ((y - outputs[..., 0]) / self.scale(extra)) ** 2 - 1.0
        return torch.where(observed[:, None], squares, 0.0).sum(-1, keepdim=True)

    def own_curvature(self, outputs: Tensor, y: Tensor, observed: Tensor, extra: Extra, score: Tensor,
                      information: Tensor) -> Tensor:
        """2n (r - 1) / log r, with r the mean squared residual over the noise variance.

        Equal to the information 2n where r = 1; elsewhere the secant with which a Newton step ends at r = 1, however
        far that is (with 2n the log scale would fall by at most a half per step).
        """
        count = observed.sum(-1)[:, None].clamp(min=1)
        squares = ((y - outputs[..., 0]) / self.scale(extra)) ** 2
        log = (torch.where(observed[:, None], squares, 0.0).sum(-1) / count).clamp(1e-12, 1e12).log()
        small = log.abs() < 1e-3
        secant = torch.where(small, 1 + log / 2, torch.expm1(log) / torch.where(small, 1.0, log))
        return (2.0 * count * secant)[..., None]

    def own_information(self, outputs: Tensor, observed: Tensor, extra: Extra) -> Tensor:
        return times_rows(outputs.new_full((*outputs.shape[:2], 1), 2.0), observed)


class CategoricalHead(Head):
    """y ~ softmax(f(x) / temperature).

    Args:
        classes: number of classes K, at least 2.
        temperature: positive; 0.1 in the paper.
        reference: fix the first class's logit at zero, so that K-1 outputs remain
            (ordinary logistic regression); the paper has one output per class.
    """

    target: Target = "class"
    canonical: ClassVar[bool] = True

    def __init__(self, classes: int = 2, temperature: float = 0.1, reference: bool = False):
        if classes < 2:
            raise InputError.of("classes", repr(classes), "2 or more")
        if not temperature > 0:
            raise InputError.of("temperature", repr(temperature), "a positive number")
        self.num_classes, self.temperature, self.reference = classes, temperature, reference
        self.num_outputs = classes - 1 if reference else classes

    @property
    def contrast(self) -> tuple[float, ...] | None:
        return (-1.0, 1.0) if self.num_classes == 2 and not self.reference else super().contrast

    def logits(self, outputs: Tensor) -> Tensor:
        """(B, S, N, classes) logits of the outputs."""
        if self.reference:
            outputs = functional.pad(outputs, (1, 0))
        return outputs / self.temperature

    def log_prob(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        if self.num_classes == 2:
            signs = 2.0 * y - 1.0
            return functional.logsigmoid(signs * self._contrast(outputs))
        log_probs = self.logits(outputs).log_softmax(-1)
        index = y.long()[..., None].expand(*log_probs.shape[:-1], 1)
        return log_probs.gather(-1, index)[..., 0]

    def score(self, outputs: Tensor, y: Tensor, extra: Extra) -> Tensor:
        if self.num_classes == 2:
            error = (y - torch.sigmoid(self._contrast(outputs))) / self.temperature
            return error[..., None] if self.reference else torch.stack([-error, error], -1)
        error = self._chosen(y, outputs) - self.logits(outputs).softmax(-1)
        return error[..., self.num_classes - self.num_outputs:] / self.temperature

    def root(self, outputs: Tensor, extra: Extra) -> Tensor:
        # diag(p) - p pᵀ = S Sᵀ with S = diag(√p) - p √pᵀ.
        if self.num_classes == 2:
            p = torch.sigmoid(self._contrast(outputs))
            half = (p * (1 - p)).sqrt() / self.temperature
            return half[..., None, None] if self.reference else torch.stack([-half, half], -1)[..., None]
        p = self.logits(outputs).softmax(-1)
        root = torch.diag_embed(p.sqrt()) - p[..., :, None] * p.sqrt()[..., None, :]
        return root[..., self.num_classes - self.num_outputs:, :] / self.temperature

    def score_and_information(self, outputs: Tensor, y: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        if self.num_classes > 2 or not self.reference:
            return super().score_and_information(outputs, y, extra)
        p = torch.sigmoid(self._contrast(outputs))
        return ((y - p) / self.temperature)[..., None], (p * (1 - p) / self.temperature**2)[..., None, None]

    def averages(self, outputs: Tensor, y: Tensor, extra: Extra,
                 score: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.num_classes == 2:
            return super().averages(outputs, y, extra, score)
        # Both need only the first two moments of the probabilities, without a root per draw. Draws last: a softmax over
        # a few classes is fast across a long axis.
        p = self.logits(outputs).permute(0, 2, 3, 1).contiguous().softmax(2)  # (B, N, K, S)
        mean, kept = p.mean(-1), self.num_classes - self.num_outputs
        information = torch.diag_embed(mean) - p @ p.mT / p.shape[-1]
        error = (self._chosen(y, outputs) - mean[:, None])[..., kept:] / self.temperature
        return error, information[:, None, :, kept:, kept:] / self.temperature**2

    def _chosen(self, y: Tensor, like: Tensor) -> Tensor:
        return functional.one_hot(y.long(), self.num_classes).to(like.dtype)

    def distribution(self, outputs: Tensor, extra: Extra) -> Distribution:
        return Categorical(logits=self.logits(outputs), validate_args=False)

    def _contrast(self, outputs: Tensor) -> Tensor:
        logits = outputs[..., 0] if self.reference else outputs[..., 1] - outputs[..., 0]
        return logits / self.temperature


def regression_head(noise: str | float) -> GaussianHead:
    """The head of a regression model: ``"inferred"``, or a known noise variance."""
    if isinstance(noise, str):
        if noise != "inferred":
            raise InputError.of("noise", repr(noise), "'inferred' or a positive noise variance")
        return InferredNoiseHead()
    return GaussianHead(noise)


def summed(rows: Tensor, observed: Tensor) -> Tensor:
    """(B, S, 1) sum of rows (B, S, N) over the real ones."""
    return torch.where(observed[:, None], rows, 0.0).sum(-1, keepdim=True)


def times_rows(per_row: Tensor, observed: Tensor) -> Tensor:
    """(B, S, 1) the sum over the real rows of what is the same (B, S, 1) in each."""
    return per_row * observed.sum(-1)[:, None, None]


def precision_secant(score: Tensor, information: Tensor) -> Tensor:
    """Curvature (B, S, 1) in the logarithm of a precision-like parameter (a shape, a concentration).

    The score there is about information * (1 - r), with r the parameter over its best value. The curvature
    information * (r - 1) / log r is the information near r = 1, and ends a Newton step at r = 1 from afar.
    """
    ratio = 1 - score / information.clamp(min=torch.finfo(information.dtype).tiny)
    log = ratio.clamp(_LEAST_RATIO, 1e12).log()
    small = log.abs() < 1e-3
    return information * torch.where(small, 1 + log / 2, torch.expm1(log) / torch.where(small, 1.0, log))
