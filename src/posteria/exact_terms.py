"""Exact terms in place of a Gaussian's stand-ins, for the datasets whose answer is far from normal."""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.densities.exact_terms import ExactTermsTheta, Order
from posteria.models import Model
from posteria.models.terms import LinearTerms, terms_of
from posteria.propagation import Sites, linearized, propagated
from posteria.randomness import generator_for
from posteria.types import Dataset, ThetaDistribution

# Draws of the answer, from which the first stand-ins are made.
_DRAWS = 256
_ROUNDS = 10
# Of the stand-ins' precision that is kept: importance weights want the tails covered.
_SHARE = 0.7
# The variance that exact terms take out of the log weights, below which an answer is left as it is.
_LEAST_GAIN = 0.15
# Parameters and terms of a dataset beyond which a Gaussian has to do, and numbers that are there at a time.
_MOST_PARAMETERS, _MOST_TERMS, _MOST_NUMBERS = 128, 4096, 2**15


@torch.no_grad()
def with_exact_terms(distribution: ThetaDistribution, model: Model, dataset: Dataset, seed: int = 0) -> (
        ThetaDistribution):
    """The distribution, with exact terms for the datasets whose terms are far from quadratic where it has its mass.

    Args:
        distribution: of B datasets.
        model: the model; where its log joint is no sum of functions of single numbers, nothing changes.
        dataset: the B datasets.
        seed: of the draws by which the distribution is judged.
    """
    plain = terms_of(model, dataset)
    if plain is None or plain.num_parameters > _MOST_PARAMETERS or plain.num_terms > _MOST_TERMS:
        return distribution
    theta = distribution.rsample(_DRAWS, generator_for(seed, device=dataset.device))
    together = max(1, _MOST_NUMBERS // plain.num_terms)
    blocks = torch.arange(len(dataset), device=dataset.device).split(together)
    found = [part for block in blocks if (part := _found(model, dataset, theta, block)) is not None]
    if not found:
        return distribution
    places = torch.cat([part[0] for part in found])
    return ExactTermsTheta(distribution, places, plain[places], Sites.joined([part[1] for part in found]),
                           Order.joined([part[2] for part in found]))


def _found(model: Model, dataset: Dataset, theta: Tensor, block: Tensor) -> tuple[Tensor, Sites, Order] | None:
    """Of the datasets (b,) those that gain, with their Gaussians and orders; None where none does."""
    terms = terms_of(model, dataset[block].double())
    assert isinstance(terms, LinearTerms)  # as those of all datasets are
    numbers = (theta[block] - terms.location) / terms.scale @ terms.directions.mT + terms.offsets[:, None]
    precision, shift, distance = linearized(terms, numbers.mean(1), numbers.var(1))
    exact = min(terms.num_terms, terms.num_parameters)
    gaining = (distance.topk(exact, -1).values.sum(-1) > _LEAST_GAIN).nonzero()[:, 0]
    if not len(gaining):
        return None
    terms = terms[gaining]
    sites = propagated(terms, precision[gaining], shift[gaining], _ROUNDS).loosened(terms, _SHARE)
    return block[gaining], sites, Order.of(terms, sites)
