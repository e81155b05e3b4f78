"""Exact terms in place of a Gaussian's stand-ins, for the datasets whose answer is far from normal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.densities.exact_terms import ExactTermsTheta, Order
from posteria.densities.noise import from_noise
from posteria.models import Model
from posteria.models.terms import LinearTerms, terms_of
from posteria.propagation import Sites, linearized, propagated
from posteria.types import Dataset, ThetaDistribution

# Draws by which answers are judged: of the same noise for all, so that no dataset's answer hangs on those beside it.
_DRAWS, _SEED = 256, 8_117
_ROUNDS = 10
# Of the stand-ins' precision that may be kept. Importance weights want tails covered: the least it is, unless another
# makes so many times as many of a few draws effective, as it does where stand-ins are near and parameters many.
_SHARES, _CLEARLY_MORE = (0.65, 0.8, 0.95), 1.25
# Where mean weights are smaller than those of the answer before, mass is lost, however even they are; by more than so
# many standard errors, which are about 1 / sqrt(effective draws).
_MOST_LOST = 3.0
# The variance that exact terms take out of the log weights, below which an answer is left as it is; but not where less
# than half of a few of its draws are effective: it may be so narrow that terms look quadratic where it is.
_LEAST_GAIN, _FEW = 0.15, 64
# Parameters and terms of a dataset beyond which a Gaussian has to do, and numbers that are there at a time.
_MOST_PARAMETERS, _MOST_TERMS, _MOST_NUMBERS = 128, 4096, 2**15

_Found = tuple[Tensor, Sites, Order]


@torch.no_grad()
def with_exact_terms(distribution: ThetaDistribution, model: Model, dataset: Dataset) -> ThetaDistribution:
    """The distribution, with exact terms for the datasets of which more draws are effective then.

    Tried are those whose terms are far from quadratic where the distribution has its mass, or whose weights are bad.

    Args:
        distribution: of B datasets.
        model: the model; where its log joint is no sum of functions of single numbers, nothing changes.
        dataset: the B datasets.
    """
    terms = terms_of(model, dataset)
    if terms is None or terms.num_parameters > _MOST_PARAMETERS or terms.num_terms > _MOST_TERMS:
        return distribution
    noise = terms.layout.fixed_noise(_DRAWS, _SEED).to(dataset.x).expand(len(dataset), -1, -1)
    answer = _Answer(distribution, terms, noise, *from_noise(distribution, noise))
    together = max(1, _MOST_NUMBERS // terms.num_terms)
    blocks = torch.arange(len(dataset), device=dataset.device).split(together)
    found = [part for block in blocks for part in answer.bettered(block)]
    if not found:
        return distribution
    places = torch.cat([part[0] for part in found])
    return ExactTermsTheta(distribution, places, terms[places], Sites.joined([part[1] for part in found]),
                           Order.joined([part[2] for part in found]))


@dataclass(frozen=True)
class _Answer:
    """A distribution of B datasets, judged by draws theta (B, S, P) with densities (B, S), made of noise (B, S, P)."""

    distribution: ThetaDistribution
    terms: LinearTerms
    noise: Tensor
    theta: Tensor
    log_q: Tensor

    def bettered(self, block: Tensor) -> list[_Found]:
        """Of the datasets (b,) those that are better off with exact terms, in groups."""
        index, precision, shift = self._gaining(block)
        if not len(index):
            return []
        wide, part = self.terms[index].double(), self.terms[index]
        sites = propagated(wide, precision, shift, _ROUNDS)
        before, evidence = self._weighed(index, self.theta[index], self.log_q[index])
        least = evidence - _MOST_LOST * before.rsqrt()
        tries, best, choice = [], torch.zeros_like(before), torch.full_like(index, -1)
        for number, share in enumerate(_SHARES):
            loose = sites.loosened(wide, share)
            tries.append((loose, Order.of(wide, loose)))
            one = ExactTermsTheta(self.distribution, torch.arange(len(index), device=index.device), part, *tries[-1])
            effective, own_evidence = self._weighed(index, *one.exact_at_noise(self.noise[index]))
            more = (effective > _CLEARLY_MORE * best) & (effective > before) & (own_evidence > least)
            choice, best = torch.where(more, number, choice), torch.where(more, effective, best)
        chosen = [(choice == number).nonzero()[:, 0] for number in range(len(tries))]
        return [(index[mine], loose[mine], order[mine])
                for mine, (loose, order) in zip(chosen, tries, strict=True) if len(mine)]

    def _gaining(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the datasets (b,) those that may gain, and the stand-ins that are best where their answers are."""
        terms = self.terms[block]
        precision, shift, distance = linearized(terms, *self._moments(block))
        exact = min(terms.num_terms, terms.num_parameters)
        bad = self._weighed(block, self.theta[block, :_FEW], self.log_q[block, :_FEW])[0] < 0.5 * _FEW
        gaining = (bad | (distance.topk(exact, -1).values.sum(-1) > _LEAST_GAIN)).nonzero()[:, 0]
        return block[gaining], precision[gaining].double(), shift[gaining].double()

    def _moments(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (b, M) of the terms' numbers, from those of theta: there are many more numbers."""
        terms = self.terms[block]
        z = (self.theta[block] - terms.location) / terms.scale
        centre = z.mean(1, keepdim=True)
        away = z - centre
        covariance = away.mT @ away / (z.shape[1] - 1)
        variance = ((terms.directions @ covariance) * terms.directions).sum(-1)
        return (terms.directions @ centre.mT)[..., 0] + terms.offsets, variance

    def _weighed(self, index: Tensor, theta: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """(b,) effective draws of some datasets, and logs of their mean weights."""
        log_joint = self.terms.model.log_joint(theta.to(self.theta), self.terms.dataset[index])
        ratio = (log_joint.double() - log_q.double()).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        return 1.0 / ratio.softmax(-1).square().sum(-1), ratio.logsumexp(-1)

