"""References for small models without an exact posterior: importance sampling from mixtures that are fitted to it.

A mixture starts around the modes that many climbs find, which begin where a few rows alone would lead, and moves
towards the posterior by steps of EM on weighted draws (M-PMC; Cappé, Douc, Guillin, Marin & Robert 2008). One component
is the prior, which keeps its share: no weight exceeds the likelihood's largest value over that share, so that their
mean has a finite variance whatever the data. A mode that no climb finds shows in few effective draws if a draw of the
prior hits it; one that is small and far out may not. Nothing of the estimator, or of its ladder's answer, goes into it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from posteria.ascent import climb
from posteria.bench.samplers import Moments, Quantities
from posteria.bench.trust_importance import weighted_moments
from posteria.models import Model
from posteria.models.log_joint import ModelLogJoint
from posteria.randomness import generator_for
from posteria.refinement.problem import Problem
from posteria.refinement.proposal import Proposal, flip
from posteria.trust.outlying import led_by_few
from posteria.trust.posing import problem_of, to_theta
from posteria.types import Dataset

_STARTS, _FEW_ROWS, _CLIMBS, _DAMPING, _DENSE_UP_TO = 48, 6, 60, 1.0, 512
# Modes of less than this share of the greatest's mass, by Laplace's estimate, get no component; nor do those within so
# many sds of another.
_LEAST_MASS, _APART = 1e-6, 1.0
# Components around modes; the prior's share; and what each of the others keeps of an even one.
_PARTS, _PRIOR, _EVEN = 8, 0.1, 0.05
# Draws are cheap, so that errors are to be half of those that are asked for.
_SHARPER = 4.0
# EM ends early where so many of the draws are effective. Draws come so many at a time, up to so many.
_ROUNDS, _ENOUGH, _TOGETHER, _MOST = 8, 0.4, 2_048, 800_000
# Draws times rows that go through the likelihood together: what a processor's cache holds.
_ENTRIES = 2**16


def mixture_moments(model: Model, dataset: Dataset, quantities: Quantities, min_ess: float, seed: int = 0) -> (
        tuple[Moments, Tensor, Tensor]):
    """Means and sds (B, Q) of quantities of theta, whether (B,) they rest on enough effective draws, and the log
    density (B,) of the highest draw in prior-whitened parameters.

    Args:
        model: with a likelihood.
        dataset: B datasets.
        quantities: functions of theta.
        min_ess: a quarter of the effective draws of every mean and every sd at which a dataset has enough, see
            :func:`posteria.bench.trust_importance.weighted_moments`.
        seed: of the draws; a dataset's own are the same in every batch, but for its place there.
    """
    problem = problem_of(model, dataset)
    first = _around_modes(problem)
    places = torch.arange(len(dataset)).split(1)
    found = [_of_one(model, problem[i], first[i], quantities, _SHARPER * min_ess, generator_for(seed + int(i)))
             for i in places]
    moments = Moments(*(torch.cat([getattr(one, name) for one, *_ in found]) for name in Moments.__dataclass_fields__))
    enough, highest = (torch.tensor(figures) for figures in list(zip(*found, strict=True))[1:])
    return moments, enough, highest


# -- where to begin -------------------------------------------------------------------------------
def _around_modes(problem: Problem) -> Proposal:
    """Components around the modes of B posteriors, with their curvature; the last is the prior's."""
    batch, size = problem.active.shape
    joint = problem.joint
    assert isinstance(joint, ModelLogJoint)  # of a model
    starts = torch.cat([_of_few_rows(joint), led_by_few(joint.model, joint.dataset)], 1)
    many = problem[torch.arange(batch).repeat_interleave(starts.shape[1])]
    guess = climb(many.joint, starts.flatten(0, 1), _CLIMBS, _DAMPING, _DENSE_UP_TO)
    factor = guess.curvature.factor()
    assert factor is not None  # curvature is dense up to _DENSE_UP_TO parameters
    factor = torch.where(_both(many.active), factor, torch.eye(size).to(factor))
    mass = _height(many, guess.z[:, None])[:, 0] - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    each = zip(guess.z.view(starts.shape), factor.view(*starts.shape, size),
               mass.nan_to_num(-torch.inf).view(batch, -1), problem.active, strict=True)
    images = torch.arange(size)[None] if problem.permutations is None else problem.permutations
    centres, factors = zip(*(_weightiest(*one, images) for one in each), strict=True)
    share = torch.full((batch, _PARTS), (1.0 - _PRIOR) / _PARTS, dtype=torch.double)
    return _with_prior(torch.stack(centres), torch.stack(factors), share, problem.active, problem.permutations)


def _of_few_rows(joint: ModelLogJoint) -> Tensor:
    """Where climbs (B, M, P) from draws of the prior end that see a few rows only, each of them others.

    Mass may lie where no climb on all rows leads, around a few outliers for example; subsets of rows lead there
    (elemental sets; Rousseeuw 1984).
    """
    dataset, generator = joint.dataset, generator_for(2)
    z = torch.where(joint.active[:, None], joint.fixed_noise(_STARTS, 0).double(), 0.0)
    order = torch.rand(_STARTS, dataset.x.shape[1], generator=generator)
    order = torch.where(dataset.observed[:, None], order, 2.0).argsort(-1).argsort(-1)
    few = torch.arange(_STARTS)[:, None] % _FEW_ROWS + 1
    index = torch.arange(len(dataset)).repeat_interleave(_STARTS)
    some = dataset[index]
    subset = ModelLogJoint(joint.model, replace(some, observed=some.observed & (order < few).flatten(0, 1)))
    return climb(subset, z.flatten(0, 1), _CLIMBS, _DAMPING, _DENSE_UP_TO).z.view(z.shape)


def _weightiest(z: Tensor, factor: Tensor, mass: Tensor, active: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (K, P) and factors (K, P, P) of the weightiest of M modes that are apart, over and over; of the images
    (G, P) of a mode under relabellings, one.

    All but the first of a mode are moved by one draw of its normal, so that EM can tell them apart.
    """
    chosen: list[int] = []
    for i in mass.argsort(descending=True).tolist():
        apart = all((((z[i][images] - z[j]) @ factor[j]).norm(dim=-1) > _APART).all() for j in chosen)
        if apart and mass[i] >= mass.amax() + math.log(_LEAST_MASS) and len(chosen) < _PARTS:
            chosen.append(i)
    places = torch.tensor([chosen[i % len(chosen)] for i in range(_PARTS)])
    again = torch.arange(_PARTS)[:, None] >= len(chosen)
    noise = torch.randn(_PARTS, z.shape[-1], 1, generator=generator_for(1), dtype=z.dtype)
    moved = torch.linalg.solve_triangular(factor[places].mT, noise, upper=True)[..., 0]
    return z[places] + torch.where(again & active, moved, 0.0), factor[places]


def _with_prior(centre: Tensor, factor: Tensor, share: Tensor, active: Tensor, permutations: Tensor | None) -> Proposal:
    """Of K components, the prior's being the one more."""
    batch, _, size = centre.shape
    return Proposal(torch.cat([centre, torch.zeros(batch, 1, size).to(centre)], 1),
                    torch.cat([factor, torch.eye(size).to(factor).expand(batch, 1, -1, -1)], 1),
                    torch.cat([share, torch.full((batch, 1), _PRIOR).to(share)], 1), active, permutations)


# -- draws and weights ----------------------------------------------------------------------------
@torch.no_grad()
def _of_one(model: Model, problem: Problem, proposal: Proposal, quantities: Quantities, min_ess: float,
            generator: torch.Generator) -> tuple[Moments, bool, float]:
    for _ in range(_ROUNDS):
        z, log_w, _ = _drawn(problem, proposal, generator)
        if _effective(log_w) > _ENOUGH * _TOGETHER:
            break
        proposal = _moved(proposal, z, log_w)
    heights, values, wanted, highest = [], [], 2 * _TOGETHER, -math.inf
    while True:
        while len(heights) * _TOGETHER < wanted:
            z, log_w, top = _drawn(problem, proposal, generator)
            heights.append(log_w[0])
            highest = max(highest, top)
            values.append(quantities(model, problem.joint.dataset, to_theta(problem, z)[:, None])[0, 0])
        moments, least = weighted_moments(torch.cat(heights), torch.cat(values))
        # What it will take, with some to spare.
        wanted = int(1.1 * min_ess / least * len(heights) * _TOGETHER)
        if least >= min_ess or wanted > _MOST:
            return moments, least >= min_ess, highest


def _drawn(problem: Problem, proposal: Proposal, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """z (1, S, P), log weights (1, S), and the highest log joint density."""
    noise = torch.randn(_TOGETHER, proposal.centre.shape[-1], dtype=torch.double, generator=generator)
    z, _ = proposal.draw(noise, flip(_TOGETHER, generator))
    height = _height(problem, z).nan_to_num(-torch.inf, neginf=-torch.inf, posinf=-torch.inf)
    return z, height - proposal.log_prob(z), float(height.amax())


def _height(problem: Problem, z: Tensor) -> Tensor:
    """(B, S) log joint densities of z (B, S, P)."""
    some = max(1, _ENTRIES // problem.joint.dataset.x.shape[1])
    return torch.cat([problem.density(part) for part in z.split(some, 1)], 1)


def _effective(log_w: Tensor) -> float:
    """The effective sample size of draws with log weights (1, S)."""
    return float((2.0 * log_w.logsumexp(-1) - (2.0 * log_w).logsumexp(-1)).exp())


def _moved(proposal: Proposal, z: Tensor, log_w: Tensor) -> Proposal:
    """A step of EM, the prior's component excepted, on weights that are truncated (Ionides 2008)."""
    w = (log_w - log_w.logsumexp(-1, keepdim=True)).exp().clamp(max=z.shape[1]**-0.5)
    orders = proposal.permutations
    images = z[:, None] if orders is None else z[..., orders].movedim(2, 1)  # (1, G, S, P)
    parts = torch.stack([proposal.parts(image) for image in images.unbind(1)], 1)
    each = w[:, None, :, None] * (parts - parts.logsumexp((1, 3), keepdim=True)).exp()
    z, each = images.flatten(1, 2), each[..., :-1].flatten(1, 2)  # (1, G S, K)
    share = each.sum(1)
    each = each / share[:, None].clamp(min=1e-12)
    centre = each.mT @ z
    away = z[:, None] - centre[:, :, None]
    covariance = (each.mT[..., None] * away).mT @ away
    # A component of few draws keeps some of the shape that it had.
    size = proposal.active.sum()
    keep = (2.0 * size / (2.0 * size + 1.0 / each.square().sum(1)))[..., None, None]
    covariance = torch.lerp(covariance, torch.cholesky_inverse(proposal.factor[:, :-1]), keep)
    covariance = torch.where(_both(proposal.active)[:, None], covariance, torch.eye(z.shape[-1]).to(z))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)))
    share = (1.0 - _PRIOR) * torch.lerp(share / share.sum(), torch.full_like(share, 1.0 / _PARTS), _EVEN)
    return _with_prior(centre, factor, share, proposal.active, proposal.permutations)


def _both(active: Tensor) -> Tensor:
    """(B, P, P) bool: pairs of active parameters."""
    return active[:, None] & active[..., None]
