"""Methods of `posteria bench alternatives` that take all datasets at once: posteria's own, and Laplace's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posteria.baselines import laplace
from posteria.bench.alternatives_answers import Answer, Solver
from posteria.every_model import universal
from posteria.models import Model, ModelLogJoint
from posteria.randomness import generator_for, randn
from posteria.types import Dataset

# Datasets that go through together: bounds memory.
_TOGETHER = 250


def build_posteria(model: Model, draws: int) -> Solver:
    """The universal network, and the whole trust ladder after it.

    Args:
        model: the model.
        draws: of the answer.
    """
    network = universal()

    def solve(dataset: Dataset, seed: int) -> Answer:
        refined = network.posterior(model, dataset).refine(num_draws=draws, seed=seed)
        return Answer.of(refined.posterior.sample_theta(draws, seed))

    return _in_parts(solve)


def build_posteria_raw(model: Model, draws: int) -> Solver:
    """The universal network alone; arguments as for :func:`build_posteria`."""
    network = universal()
    return _in_parts(lambda dataset, seed: Answer.of(network.posterior(model, dataset).sample_theta(draws, seed)))


def build_posteria_weighted(model: Model, draws: int) -> Solver:
    """The universal network with importance weights; arguments as for :func:`build_posteria`."""
    network = universal()

    def solve(dataset: Dataset, seed: int) -> Answer:
        posterior = network.posterior(model, dataset)
        theta, log_q = posterior.distribution.rsample_and_log_prob(draws, generator_for(seed))
        return Answer.weighted(theta.double(), model.log_joint(theta.double(), dataset.double()), log_q.double())

    return _in_parts(solve)


def build_batched_laplace(model: Model, draws: int) -> Solver:
    """Our Laplace approximation of all datasets at once; arguments as for :func:`build_posteria`."""
    return _in_parts(lambda dataset, seed: Answer.of(_laplace(model, dataset, draws, seed)[0]))


def build_batched_laplace_psis(model: Model, draws: int) -> Solver:
    """The same with importance weights; arguments as for :func:`build_posteria`."""
    def solve(dataset: Dataset, seed: int) -> Answer:
        theta, log_q = _laplace(model, dataset, draws, seed)
        return Answer.weighted(theta, model.log_joint(theta, dataset.double()), log_q)

    return _in_parts(solve)


def _laplace(model: Model, dataset: Dataset, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws theta (B, S, P) around the modes uphill of the prior's centre, and their log density (B, S) up to a
    constant.

    The constant is a dataset's own, so that its weights do not change.
    """
    joint = ModelLogJoint(model, dataset.double())
    start = torch.zeros(len(dataset), 1, joint.active.shape[1], dtype=torch.double)
    state = laplace.build(joint, num_starts=1).init(start, generator_for(seed))
    factor = state.curvature.factor()
    assert factor is not None  # dense up to a thousand parameters
    noise = randn(1, draws, start.shape[-1], like=start, generator=generator_for(seed)).expand(len(dataset), -1, -1)
    offset = torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
    return joint.theta(state.mode[:, None] + offset), -0.5 * noise.square().sum(-1)


def _in_parts(solve: Callable[[Dataset, int], Answer]) -> Solver:
    """The same, in batches that fit in memory."""
    def parts(dataset: Dataset, seed: int) -> Answer:
        with torch.no_grad():
            return Answer.joined([solve(dataset[part], seed) for part in torch.arange(len(dataset)).split(_TOGETHER)])

    return parts
