"""Importance weights of draws, smoothed by a Pareto fit, and what they say (Vehtari et al. 2024, arXiv 1507.02646)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.refinement.accuracy import least_variance

# Log weights that differ by less than this are equal up to rounding: their tail is noise.
_EQUAL = 1e-3
# And so are weights whose relative variance is less than this while none is more than so many times the mean: a tail of
# whatever shape weighs nothing then.
_EQUAL_ENOUGH, _MOST_OF_EQUAL = 0.01, 2.0
_LEAST_DRAWS = 25
_TINY = 1e-300
# Log densities of this size cannot be told apart to a thousandth of a nat: rounding makes all weights alike.
LARGEST_LOG_DENSITY = 1e12
# k-hat below which weights can be relied on, given enough draws.
MAX_PARETO_K = 0.7


def load_arviz() -> ModuleType:
    """ArviZ, imported at first use: it takes seconds."""
    # ArviZ 0.23 announces its own rewrite at import; nothing a user of this library can act on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


@dataclass(frozen=True)
class Weights:
    """Weights of S draws of q for B datasets, and their diagnostics.

    Attributes:
        weights: (B, S) smoothed, summing to one.
        pareto_k: (B,) k-hat; below 0.7 the weights can be relied on, 0 where they are equal or nearly so (99% of
            the draws are effective, and none weighs twice the mean), infinite where lost.
        ess: (B,) 1 / sum of squared weights.
        consistency_variance: (B,) variance over q of log p(theta, D) - log q(theta), zero for the posterior itself;
            infinite where some draw has no density under the model.
        log_evidence, log_evidence_error: (B,) log of the mean weight, and its standard error (delta method).
        bad: (B,) long, draws whose log densities were NaN, +inf, or (for q) not finite; all draws of a dataset whose
            highest log density is so large that double precision cannot tell them apart.
    """

    weights: Tensor
    pareto_k: Tensor
    ess: Tensor
    consistency_variance: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    bad: Tensor

    @classmethod
    def of(cls, log_joint: Tensor, log_q: Tensor) -> Weights:
        """From log p(theta, D) and log q(theta), (B, S) at draws of q.

        Raises:
            InputError: shapes that do not fit, or fewer than 25 draws.

        Examples:
            >>> Weights.of(torch.zeros(1, 50), torch.full((1, 50), -2.0)).log_evidence
            tensor([2.0000], dtype=torch.float64)
        """
        if log_joint.ndim != 2 or log_joint.shape != log_q.shape:
            raise InputError.of("log_q", f"shape {tuple(log_q.shape)}", f"shape {tuple(log_joint.shape)} of log_joint")
        if log_joint.shape[1] < _LEAST_DRAWS:
            raise InputError.of("log_joint", f"{log_joint.shape[1]} draws", f"{_LEAST_DRAWS} draws or more")
        log_joint, log_q = log_joint.double(), log_q.double()
        broken = log_joint.isnan() | (log_joint == torch.inf) | ~log_q.isfinite()
        highest = torch.where(broken, -torch.inf, log_joint).amax(-1, keepdim=True)
        broken |= highest.isfinite() & (highest.abs() > LARGEST_LOG_DENSITY)
        ratio = torch.where(broken, -torch.inf, log_joint - log_q)
        smoothed, pareto_k = _smoothed(ratio)
        evidence, error = _evidence(ratio)
        return cls(smoothed, pareto_k, 1.0 / smoothed.square().sum(-1).clamp(min=1.0 / ratio.shape[1]),
                   ratio.var(-1).nan_to_num(torch.inf, torch.inf), evidence, error, broken.sum(-1))

    @property
    def reliable(self) -> Tensor:
        """(B,) bool: k-hat is below min(1 - 1 / log10 S, 0.7) (their equation 13), and all log densities were sound."""
        limit = min(1.0 - 1.0 / math.log10(self.weights.shape[1]), MAX_PARETO_K)
        return (self.pareto_k < limit) & (self.bad == 0)

    @property
    def relative_ess(self) -> Tensor:
        """(B,) effective share of the draws."""
        return self.ess / self.weights.shape[1]

    def spread_k(self, values: Tensor, counted: Tensor) -> Tensor:
        """(B,) k-hat of weights times squared distances from the mean, the largest over quantities.

        Standard deviations can be relied on below 0.7, as means where k-hat itself is: a weighted square may have a
        heavier tail than its weight, and then a sd is too small without any sign of it in the draws (section 3.3 of the
        paper: k-hat of the function whose expectation is asked for). 0 where the weights are equal.

        Args:
            values: (B, S, Q) quantities of the draws.
            counted: (B, Q) bool, which are asked for.
        """
        found = torch.zeros(len(values), dtype=torch.double)
        for i in (self.pareto_k != 0.0).nonzero()[:, 0].tolist():
            asked, w = values[i][:, counted[i]].double(), self.weights[i].double()
            squares = (asked - w @ asked).square()
            changing = squares[:, squares.amax(0) > least_variance(asked)]
            if changing.shape[1]:
                tails = (w[:, None] * changing).clamp(min=_TINY).log().T.contiguous()
                found[i] = float(np.max(load_arviz().psislw(tails.cpu().numpy())[1]))
        return found

    def __getitem__(self, index: Tensor) -> Weights:
        """Those of the chosen datasets."""
        return Weights(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def _smoothed(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, S) and k-hat (B,); datasets whose weights are equal or lost never reach the fit."""
    weights = (ratio - ratio.amax(-1, keepdim=True)).softmax(-1).nan_to_num(1.0 / ratio.shape[1])
    finite = ratio.isfinite()
    lost = finite.sum(-1) < _LEAST_DRAWS
    count = ratio.shape[1]
    nearly = count * weights.square().sum(-1) - 1.0 < _EQUAL_ENOUGH
    nearly &= count * weights.amax(-1) < _MOST_OF_EQUAL
    equal = ~lost & finite.all(-1) & (nearly | (ratio.amax(-1) - ratio.amin(-1) < _EQUAL))
    pareto_k = torch.where(equal, 0.0, torch.inf).to(ratio)
    fitted = (~lost & ~equal).nonzero()[:, 0]
    if len(fitted):
        with np.errstate(over="ignore"):  # in the fit's own quadrature, where an infinity is meant
            log_weights, k = load_arviz().psislw(ratio[fitted].cpu().numpy())
        weights[fitted] = torch.as_tensor(log_weights).to(weights).exp()
        pareto_k[fitted] = torch.as_tensor(k).to(weights).reshape(-1).nan_to_num(torch.inf, torch.inf)
    return weights, pareto_k


def _evidence(ratio: Tensor) -> tuple[Tensor, Tensor]:
    count = ratio.shape[1]
    log_mean = ratio.logsumexp(-1) - math.log(count)
    share = (ratio - log_mean[:, None]).exp()
    return log_mean, (share.std(-1) / count**0.5).nan_to_num(torch.inf, torch.inf)


def resample(weights: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """(B, num) indices of draws, each as often as its weight (B, S) says up to one (systematic resampling).

    Kitagawa 1996. In random order. One offset and one order serve all datasets: an answer does not depend on the batch.
    """
    offset = torch.rand((), generator=generator, device=generator.device, dtype=torch.double).to(weights.device)
    places = (torch.arange(num, device=weights.device) + offset) / num
    edges = weights.double().cumsum(-1)
    edges = edges / edges[:, -1:]
    chosen = torch.searchsorted(edges, places.expand(len(weights), num).contiguous())
    order = torch.randperm(num, generator=generator, device=generator.device).to(weights.device)
    return chosen.clamp(max=weights.shape[1] - 1)[:, order]
