"""One of several tries stays: weights mean what they say, and entries that choose for themselves lose less."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, StudentT

from posteria.errors import UnsupportedError
from posteria.models import GaussianMean, Hierarchical
from posteria.models.log_joint import ModelLogJoint
from posteria.models.whitened import whitened
from posteria.randomness import generator_for
from posteria.refinement.conditional import Conditional, conditional
from posteria.refinement.problem import Nesting, Problem
from posteria.refinement.tries import Tries, one_of, one_of_each
from posteria.tasks import SimulatedTask
from posteria.trust.posing import problem_of
from posteria.types import Dataset

_COUNT = 4000


def _posed(groups: int, rows: int, priors: dict, slopes: bool = False) -> tuple[Problem, Dataset]:
    model = Hierarchical("gaussian", groups=groups, varying_slopes=slopes, priors=priors)
    dataset, _ = SimulatedTask(model, (rows, rows), (2, 2)).draw(2, generator_for(4))
    return problem_of(model, dataset), dataset


def _given(problem: Problem, count: int) -> tuple[Conditional, Nesting]:
    """q(r | h) at one h, many times."""
    assert problem.nesting is not None
    z = torch.zeros(*problem.active.shape, dtype=torch.double)[:, None]
    inner = conditional(problem, z)
    inner = conditional(problem, inner.z.expand(-1, count, -1).contiguous())
    return inner, problem.nesting


def _noise(problem: Problem, nesting: Nesting, count: int, tries: int, seed: int) -> Tensor:
    return torch.randn(count, tries, len(nesting.rest), dtype=torch.double, generator=generator_for(seed))


@pytest.mark.parametrize("slopes", [False, True])
def test_weights_of_both_kinds_have_the_same_means(slopes: bool) -> None:
    """Both estimate p(h, D) without bias, and together with a function of r its posterior mean given h."""
    problem, _ = _posed(3, 12, {"group_offsets": Laplace(0.0, 1.0)}, slopes)
    inner, nesting = _given(problem, _COUNT)
    assert nesting.entries is not None
    whole = one_of(problem, inner, Tries.of(_noise(problem, nesting, _COUNT, 4, 1), (4, 1), (1, 0),
                                            replace(nesting, entries=None), generator_for(2)))
    each = one_of_each(problem, inner, Tries.of(_noise(problem, nesting, _COUNT, 8, 3), (2, 1), (4, 1), nesting,
                                                generator_for(4)))
    top = whole[1].amax(1, keepdim=True)
    for value in (torch.ones_like, lambda z: z[..., nesting.own.flatten()], lambda z: z[..., nesting.common] ** 2):
        means, errors = [], []
        for z, ratio in (whole, each):
            terms = (ratio - top).exp()[..., None] * value(z)
            means.append(terms.mean(1))
            errors.append(terms.std(1) / math.sqrt(_COUNT))
        scores = (means[0] - means[1]) / (errors[0].square() + errors[1].square()).sqrt()
        assert scores.abs().max() < 4.0, scores


def test_entries_that_choose_for_themselves_keep_many_groups_apart() -> None:
    problem, _ = _posed(60, 400, {"group_offsets": StudentT(4.0, 0.0, 1.0)})
    inner, nesting = _given(problem, 500)
    whole = one_of(problem, inner, Tries.of(_noise(problem, nesting, 500, 8, 1), (8, 2), (1, 0),
                                            replace(nesting, entries=None), generator_for(2)))
    each = one_of_each(problem, inner, Tries.of(_noise(problem, nesting, 500, 8, 1), (2, 1), (4, 1), nesting,
                                                generator_for(2)))
    effective = [(ratio.softmax(-1).square().sum(-1) ** -1) for _, ratio in (whole, each)]
    assert (effective[1] > 1.5 * effective[0]).all(), effective


@pytest.mark.parametrize("priors", [{}, {"group_offsets": Laplace(0.0, 1.0)}])
@pytest.mark.parametrize("slopes", [False, True])
def test_rows_of_entries_make_up_the_likelihood(priors: dict, slopes: bool) -> None:
    model = whitened(Hierarchical("poisson", groups=4, varying_slopes=slopes, priors=priors))
    dataset, theta = SimulatedTask(model, (9, 9), (3, 3)).draw(2, generator_for(0))
    dataset = dataset.padded(12, 4)
    theta = torch.randn(2, 5, model.layout_of(dataset).size, generator=generator_for(1), dtype=torch.double) * 0.3
    theta = torch.where(model.active(dataset)[:, None], theta, 0.0)
    found = model.likelihood_by_entry(theta, dataset.double())
    whole = ModelLogJoint(model, dataset.double()).model.log_likelihood(theta, dataset.double())
    torch.testing.assert_close(found.sum(-1), whole, rtol=1e-10, atol=1e-10)


def test_other_models_say_that_they_have_no_such_rows() -> None:
    model = GaussianMean()
    dataset, _ = SimulatedTask(model, (3, 3), (1, 1)).draw(1, generator_for(0))
    with pytest.raises(UnsupportedError, match="no rows that belong"):
        model.likelihood_by_entry(torch.zeros(1, 1, 1), dataset)
