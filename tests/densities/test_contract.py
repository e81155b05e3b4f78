"""Every density of the registry keeps the contract, with every kind of context."""

import pytest
import torch

from posteria.densities import DENSITIES, Symmetrised
from posteria.randomness import generator_for
from posteria.testing.densities import (
    check_density,
    check_finite,
    check_sample_matches_log_prob,
    example_context,
    randomise,
)
from posteria.types import ContextSpec

SUMMARY, TOKEN = 8, 6
# kind of context -> (token width, located, with a factor, a fixed number of parameters)
KINDS = {
    "summary": (None, False, False, True),
    "tokens": (TOKEN, True, False, False),
    "factor": (TOKEN, True, True, False),
    "fixed_tokens": (TOKEN, True, False, True),
}
SIZES = {"one": [1, 1], "two": [2, 2], "padded": [1, 2, 5, 7], "hundred": [100, 37]}


def build(name, kind, sizes, magnitude=1.0, noise=0.05):
    token_dim, located, factor, fixed = KINDS[kind]
    spec = ContextSpec(SUMMARY, token_dim, max(sizes) if fixed else None, located)
    density = randomise(DENSITIES[name](spec), scale=noise)
    return density, example_context(spec, sizes, magnitude=magnitude, factor=factor)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DENSITIES)
def test_density_keeps_the_contract(name, kind, sizes):
    check_density(*build(name, kind, SIZES[sizes]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DENSITIES)
def test_density_is_finite_for_an_extreme_context(name, kind):
    check_finite(*build(name, kind, [1, 2, 20], magnitude=1e3))


@pytest.mark.parametrize("kind", ["summary", "tokens"])
@pytest.mark.parametrize("name", ["gaussian", "low_rank", "flow", "spline_flow"])
def test_density_is_finite_at_3500_parameters(name, kind):
    density, context = build(name, kind, [3500], noise=0.01)
    check_finite(density, context, samples=2)
    check_sample_matches_log_prob(density, context)


@pytest.mark.parametrize("name", ["gaussian", "low_rank", "flow"])
def test_symmetrised_density_keeps_the_contract(name):
    density, context = build(name, "tokens", [2, 2])
    check_density(Symmetrised(density, lambda size: torch.tensor([[0, 1], [1, 0]])), context)


@pytest.mark.parametrize("symmetrised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["flow", "spline_flow"])
def test_draws_of_some_datasets_are_those_among_all(name, kind, symmetrised):
    """A flow that is asked for some of its datasets pushes those alone through its blocks."""
    density, context = build(name, kind, [2, 2, 2])
    whole = density(context)
    if symmetrised:
        whole = Symmetrised(density, lambda size: torch.tensor([[0, 1], [1, 0]]))(context)
    index = torch.tensor([2, 0])
    with torch.no_grad():
        everyone = whole.rsample_and_log_prob(50, generator_for(0))
        some = whole.draws_of(index, 50, generator_for(0))
    for part, of_all in zip(some, everyone, strict=True):
        torch.testing.assert_close(part, of_all[index], rtol=1e-4, atol=1e-4)


def test_draws_of_some_of_a_symmetrised_gaussian_are_those_among_all():
    density, context = build("gaussian", "tokens", [2, 2, 2])
    whole = Symmetrised(density, lambda size: torch.tensor([[0, 1], [1, 0]]))(context)
    index = torch.tensor([1])
    for part, of_all in zip(whole.draws_of(index, 50, generator_for(0)),
                            whole.rsample_and_log_prob(50, generator_for(0)), strict=True):
        torch.testing.assert_close(part, of_all[index])
