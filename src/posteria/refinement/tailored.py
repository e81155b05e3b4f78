"""Importance sampling with a proposal of each dataset's own (rung 3 of the ladder).

Natural-gradient steps give a Gaussian around a mode. Where its weights are not good enough, the proposal moves to the
mean and covariance of the weighted draws and tries again (adaptive importance sampling; Cappé et al. 2008).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from posteria.curvature import cholesky
from posteria.refinement.accuracy import Accuracy, Moments
from posteria.refinement.modes import DENSE_UP_TO, widened
from posteria.refinement.problem import Counted, Problem
from posteria.refinement.proposal import Proposal, flip
from posteria.refinement.weights import Weights

_NUM_SAMPLES, _MORE, _MOST_SAMPLES, _ROUNDS = 1000, 4, 16_000, 4
_SEED = 5_171
# Moments of fewer effective draws per parameter are mostly noise.
_DRAWS_PER_PARAMETER = 2.0
LEAST_ESS = 100.0
# Components with less than this share stay in the proposal, so that no mode is lost to an estimate of its mass.
_LEAST_SHARE = 0.05


@dataclass
class Tailored:
    """What came of it, for B datasets.

    Attributes:
        parts: the datasets that passed, group by group: indices (b,), draws (b, S, P) and their weights.
        pareto_k, ess: (B,) of the last try.
        evaluations: per dataset, one number or (B,).
    """

    pareto_k: Tensor
    ess: Tensor
    evaluations: int | Tensor = 0
    parts: list[tuple[Tensor, Tensor, Weights]] = field(default_factory=list)


def tailored(problem: Problem, starts: Tensor, target: Accuracy, generator: torch.Generator) -> Tailored:
    """Weighted draws from proposals around the modes uphill of starts (B, K, P)."""
    lost = torch.full((len(problem),), torch.inf, dtype=torch.double)
    answer = Tailored(lost, torch.zeros_like(lost))
    if starts.shape[-1] > DENSE_UP_TO:
        return answer
    proposal, answer.evaluations = _around_modes(problem, starts)
    index, num = torch.arange(len(problem)), _NUM_SAMPLES
    for number in range(_ROUNDS):
        part = problem[index]
        z, plain, weights = _weighted(part, proposal, num, number, generator)
        answer.evaluations += num
        answer.pareto_k[index], answer.ess[index] = weights.pareto_k, weights.ess
        effort = Moments.of(part.values(z), weights.weights).effort(target, part.counted)
        done = weights.reliable & (effort <= 1.0) & (weights.ess >= LEAST_ESS)
        answer.parts.append((index[done], z[done], weights[done]))
        # Fewer effective draws than parameters say nothing of a covariance: the proposal would not get better.
        left = ~done & ((weights.ess >= part.active.sum(-1)) | (number == 0))
        index = index[left]
        if not len(index):
            break
        proposal = _moved(proposal, plain, weights)[left]
        num = min(_MORE * num, _MOST_SAMPLES)
    return answer


def _around_modes(problem: Problem, starts: Tensor) -> tuple[Proposal, int]:
    """A component per start, weighed by Laplace's estimate of its mass; and what the climbs cost."""
    num = starts.shape[1]
    many = problem[torch.arange(len(problem)).repeat_interleave(num)]
    counted = Counted(many.joint)
    guess = widened(replace(many, joint=counted), starts.flatten(0, 1).nan_to_num(0.0))
    factor = guess.curvature.factor()
    assert factor is not None  # few enough parameters for a dense curvature
    height = many.density(guess.z[:, None])[:, 0]
    log_mass = (height - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)).view(-1, num)
    share = log_mass.nan_to_num(-torch.inf, neginf=-torch.inf, posinf=-torch.inf).softmax(-1).nan_to_num(1.0 / num)
    centre = torch.where(many.active, guess.z, 0.0)
    proposal = Proposal(centre.unflatten(0, (-1, num)), factor.unflatten(0, (-1, num)), _floored(share),
                        problem.active, problem.permutations)
    return proposal, num * (counted.evaluations + 1)


def _floored(share: Tensor) -> Tensor:
    share = share.clamp(min=_LEAST_SHARE)
    return share / share.sum(-1, keepdim=True)


def _weighted(problem: Problem, proposal: Proposal, num: int, number: int,
              generator: torch.Generator) -> tuple[Tensor, Tensor, Weights]:
    """Draws (B, S, P), the same before relabelling, and their weights. All datasets share their random numbers."""
    noise = problem.joint.fixed_noise(num, _SEED + number + generator.initial_seed() % _SEED).double()
    coins = flip(num, torch.Generator().manual_seed(generator.initial_seed() + number))
    z, plain = proposal.draw(noise, coins)
    return z, plain, Weights.of(problem.density(z), proposal.log_prob(z))


def _moved(proposal: Proposal, plain: Tensor, weights: Weights) -> Proposal:
    """With the means and covariances of the weighted draws (B, S, P), as far as these are enough to go by."""
    parts = proposal.parts(plain)
    mine = weights.weights[..., None] * (parts - parts.logsumexp(-1, keepdim=True)).exp()
    mass = mine.sum(1)
    weight = mine / mass[:, None].clamp(min=1e-12)
    draws = 1.0 / weight.square().sum(1).clamp(min=1e-12)
    trust = draws / (draws + _DRAWS_PER_PARAMETER * proposal.active.sum(-1, keepdim=True))
    trust = torch.where(mass > 1e-6, trust, 0.0)
    centre, factor = [], []
    for k in range(mass.shape[1]):
        new_centre, new_factor = _refitted(proposal, k, plain, weight[..., k], trust[:, k])
        centre.append(new_centre)
        factor.append(new_factor)
    return Proposal(torch.stack(centre, 1), torch.stack(factor, 1), _floored(mass), proposal.active,
                    proposal.permutations)


def _refitted(proposal: Proposal, k: int, plain: Tensor, weight: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (B, P) and factor (B, P, P) of one component, between the old ones and those of the draws."""
    centre = torch.lerp(proposal.centre[:, k], (weight[..., None] * plain).sum(1), trust[:, None])
    away = plain - centre[:, None]
    covariance = (weight[..., None] * away).mT @ away
    mixed = torch.lerp(torch.cholesky_inverse(proposal.factor[:, k]), covariance, trust[:, None, None])
    both = proposal.active[:, :, None] & proposal.active[:, None]
    mixed = torch.where(both, mixed, torch.eye(plain.shape[-1]).to(mixed))
    return centre, cholesky(torch.cholesky_inverse(cholesky(mixed)))
