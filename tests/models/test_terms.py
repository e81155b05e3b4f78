"""Terms of a log joint: their sum is the log joint, for all families that have them."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Distribution, Laplace, StudentT

from posteria.models import Model, build_model
from posteria.models.repriored import repriored
from posteria.models.terms import LinearTerms, terms_of
from posteria.randomness import generator_for
from posteria.types import Dataset, Terms
from tests.problems import simulated

FAMILIES = ("bernoulli", "probit", "poisson", "survival")
WITHOUT = (
    ("linear_classification", {"classes": 3}), ("neural_regression", {}), ("gaussian_mean", {}),
    ("generalized_linear", {"family": "gamma"}), ("generalized_linear", {"family": "beta_binomial"}),
    ("linear_regression", {"noise": "inferred"}), ("hierarchical", {"family": "bernoulli"}),
)


def glm(family: str) -> Model:
    return build_model("generalized_linear", family=family)


def terms(model: Model, dataset: Dataset) -> LinearTerms:
    found = terms_of(model, dataset)
    assert found is not None
    assert isinstance(found, Terms)
    return found


def summed(found: LinearTerms, z: torch.Tensor) -> torch.Tensor:
    """(B, S) the log joint at z (B, S, P), up to a constant, out of its terms."""
    at = found.directions @ z.mT + found.offsets[..., None]
    values = torch.where(found.real[..., None], found.values(at), 0.0).sum(1)
    squares = torch.where(found.active[:, None], found.pull * z.square(), 0.0).sum(-1)
    return values - 0.5 * squares


def assert_sums_to_the_log_joint(model: Model, dataset: Dataset) -> None:
    wide = dataset.double()
    found = terms(model, wide)
    z = torch.randn(len(wide), 6, found.num_parameters, generator=generator_for(9), dtype=torch.double)
    z = torch.where(found.active[:, None], z, 0.0)
    theta = torch.where(found.active[:, None], found.location + found.scale * z, 0.0)
    off = summed(found, z) - model.log_joint(theta, wide)
    torch.testing.assert_close(off, off[:, :1].expand_as(off), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_sum_to_the_log_joint(family: str) -> None:
    model = glm(family)
    columns = 2 + len(model.extra_columns)
    assert_sums_to_the_log_joint(model, simulated(model, columns, rows=7))


@pytest.mark.parametrize("reference", [True, False])
def test_two_classes(reference: bool) -> None:
    model = build_model("linear_classification", classes=2, temperature=0.3, reference=reference)
    assert_sums_to_the_log_joint(model, simulated(model, 3))


@pytest.mark.parametrize("prior", [Laplace(1.0, 2.0), StudentT(4.0, -0.5, 0.3)])
def test_priors_that_are_not_normal_have_terms_too(prior: Distribution) -> None:
    model = repriored(glm("bernoulli"), {"weights": prior})
    dataset = simulated(model, 3, rows=5)
    assert terms(model, dataset).num_terms == 5 + 3
    assert_sums_to_the_log_joint(model, dataset)


def test_padding_counts_for_nothing() -> None:
    model = repriored(glm("bernoulli"), {"weights": Laplace(0.0, 1.0)})
    assert_sums_to_the_log_joint(model, simulated(model, 2, rows=5).padded(8, 4))


def test_some_terms_of_some_datasets() -> None:
    model = repriored(glm("bernoulli"), {"weights": Laplace(0.0, 1.0)})
    found = terms(model, simulated(model, 2, rows=5).double())
    at = torch.randn(4, 7, 3, generator=generator_for(1), dtype=torch.double)
    index, places = torch.tensor([2, 0]), torch.tensor([[6, 1], [0, 5]])
    some = found[index].values(at[index].gather(1, places[..., None].expand(-1, -1, 3)), places)
    torch.testing.assert_close(some, found.values(at)[index].gather(1, places[..., None].expand(-1, -1, 3)))


@pytest.mark.parametrize(("name", "options"), WITHOUT)
def test_models_that_are_no_such_sum(name: str, options: dict[str, object]) -> None:
    model = build_model(name, **options)
    columns = 3 + len(model.extra_columns)
    inputs = Dataset.of(torch.ones(1, 4, columns), torch.ones(1, 4))
    assert terms_of(model, inputs) is None
