"""A Gaussian with exact terms: a density, the posterior where observations are few, and probabilities of orthants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal, StudentT

from posteria.densities.exact_terms import ExactTermsTheta
from posteria.densities.gaussian import GaussianTheta
from posteria.estimator import Estimator, EstimatorInfo
from posteria.exact_terms import with_exact_terms
from posteria.models import Model, build_model
from posteria.models.repriored import repriored
from posteria.randomness import generator_for
from posteria.refinement import Weights
from posteria.types import Dataset
from tests.problems import logistic, simulated


def prior_of(model: Model, dataset: Dataset) -> GaussianTheta:
    location, scale = model.layout_of(dataset).prior_moments
    return GaussianTheta(location.expand(len(dataset), -1), scale.expand(len(dataset), -1), model.active(dataset))


def searched(model: Model, dataset: Dataset) -> GaussianTheta:
    """What the search finds, and no network has touched."""
    found = Estimator(model, "iterative", "full", EstimatorInfo(columns=(1, 1))).eval().posterior(dataset).distribution
    assert isinstance(found, GaussianTheta)
    return found


def exact(model: Model, dataset: Dataset) -> ExactTermsTheta:
    """From the prior: all that is needed is found from there."""
    found = with_exact_terms(prior_of(model, dataset), model, dataset)
    assert isinstance(found, ExactTermsTheta)
    return found


def weights(model: Model, dataset: Dataset, num_samples: int = 1000) -> Weights:
    theta, log_q = exact(model, dataset).rsample_and_log_prob(num_samples, generator_for(0))
    return Weights.of(model.log_joint(theta.double(), dataset.double()), log_q)


def steep(scale: float = 5.0) -> Model:
    return repriored(logistic(), prior_scale=scale)


def test_density_integrates_to_one_and_draws_follow_it() -> None:
    model = steep()
    dataset = simulated(model, 1, rows=6, batch=1)
    found = exact(model, dataset)
    line = torch.linspace(-25.0, 25.0, 501)
    grid = torch.cartesian_prod(line, line)
    density = found.log_prob(grid[None])[0].double().exp() * 0.01
    assert float(density.sum()) == pytest.approx(1.0, abs=2e-3)
    drawn, log_prob = (values[0] for values in found.rsample_and_log_prob(40_000, generator_for(0)))
    torch.testing.assert_close(found.log_prob(drawn[None])[0], log_prob, rtol=1e-4, atol=1e-4)
    for statistic in (lambda z: z[:, 0], lambda z: z[:, 1].sin(), lambda z: (-0.1 * z.square().sum(-1)).exp()):
        sample = statistic(drawn)
        assert abs(sample.mean() - (statistic(grid) * density).sum()) < 4 * sample.std() / 200 + 5e-3


@pytest.mark.parametrize("reference", [True, False])
def test_observations_fewer_than_parameters_leave_little_to_weights(reference: bool) -> None:
    """Four steps in nine dimensions and more: no Gaussian has half of its draws effective."""
    model = build_model("linear_classification", temperature=0.1, reference=reference)
    found = weights(model, simulated(model, 8, rows=4))
    assert found.relative_ess.min() > 0.97
    assert (found.pareto_k < 0.5).all()


@pytest.mark.parametrize("correlation", [0.0, 0.6, -0.9])
def test_the_evidence_of_two_steps_is_an_orthant_s_probability(correlation: float) -> None:
    """P(u > 0, v > 0) = 1/4 + asin(r) / 2 pi for normals with correlation r (Sheppard 1899)."""
    model = build_model("generalized_linear", family="probit", intercept=False)
    across = math.sqrt(1 - correlation**2)
    x = 1000.0 * torch.tensor([[[1.0, 0.0], [correlation, across]]])
    found = weights(model, Dataset.of(x, torch.ones(1, 2)), 4000)
    known = math.log(0.25 + math.asin(correlation) / (2 * math.pi))
    assert float(found.log_evidence) == pytest.approx(known, abs=4 * float(found.log_evidence_error) + 2e-3)
    assert float(found.relative_ess) > 0.9


def test_a_cone_of_many_observations() -> None:
    """Sixty steps in eleven dimensions, where the prior itself has no effective draws."""
    model = logistic(0.1)
    dataset = simulated(model, 10, rows=60, batch=8)
    found = weights(model, dataset)
    assert found.reliable.all()
    assert found.ess.min() > 50
    twice = weights(model, dataset, 4000)
    error = (found.log_evidence_error.square() + twice.log_evidence_error.square()).sqrt()
    assert ((found.log_evidence - twice.log_evidence).abs() < 4 * error).all()


def test_other_priors() -> None:
    """A Laplace prior is a term like any other: against quadrature in two dimensions."""
    model = repriored(logistic(), {"weights": Laplace(1.0, 4.0)})
    dataset = simulated(model, 1, rows=5, batch=2)
    line = torch.linspace(-60.0, 60.0, 1201, dtype=torch.double)
    grid = torch.cartesian_prod(line, line).expand(2, -1, -1)
    known = (model.log_joint(grid, dataset.double()) + 2 * math.log(0.1)).logsumexp(-1)
    found = weights(model, dataset, 4000)
    assert ((found.log_evidence - known).abs() < 4 * found.log_evidence_error + 1e-3).all()


@pytest.mark.parametrize("steepness", [1e1, 1e4, 1e7])
@pytest.mark.parametrize("prior", [Normal(0.0, 1.0), Laplace(0.0, 0.35), StudentT(3.0, 0.0, 2.0)])
def test_one_observation_has_even_chances_however_steep_its_step(prior: Distribution, steepness: float) -> None:
    """Under priors that are symmetric around zero: nothing is lost, or the answer is left as it was."""
    model = repriored(logistic(), {"weights": prior, "intercept": prior})
    dataset = Dataset.of(steepness * torch.tensor([[[1.0, -2.0, 0.5]]]), torch.ones(1, 1))
    theta, log_q = with_exact_terms(prior_of(model, dataset), model, dataset).rsample_and_log_prob(
        4000, generator_for(0))
    found = Weights.of(model.log_joint(theta.double(), dataset.double()), log_q)
    assert float(found.log_evidence) == pytest.approx(math.log(0.5), abs=4 * float(found.log_evidence_error) + 2e-3)


def test_a_dataset_s_density_is_its_own() -> None:
    """Neither the datasets beside it, nor padding of rows and columns, nor the order of rows change it."""
    model = steep()
    dataset = simulated(model, 2, rows=9)
    found = exact(model, dataset)
    theta = found.rsample(50, generator_for(1))
    alone = exact(model, dataset[torch.tensor([2])]).log_prob(theta[2:3])
    torch.testing.assert_close(alone[0], found.log_prob(theta)[2], rtol=1e-4, atol=1e-3)
    order = torch.randperm(9, generator=generator_for(2))
    assert dataset.y is not None
    turned = Dataset(dataset.x[:, order], dataset.y[:, order], dataset.observed, dataset.features)
    torch.testing.assert_close(exact(model, turned).log_prob(theta), found.log_prob(theta), rtol=1e-3, atol=1e-2)
    padded = torch.zeros(4, 50, 5)
    padded[..., torch.tensor([0, 1, 4])] = theta
    torch.testing.assert_close(exact(model, dataset.padded(12, 4)).log_prob(padded), found.log_prob(theta), rtol=1e-3,
                               atol=1e-2)


def test_some_datasets_of_a_batch() -> None:
    model = steep()
    dataset = simulated(model, 2, rows=9)
    found, index = exact(model, dataset), torch.tensor([3, 1])
    some = found.draws_of(index, 20, generator_for(3))
    for part, whole in zip(some, found.rsample_and_log_prob(20, generator_for(3)), strict=True):
        torch.testing.assert_close(part, whole[index])


def test_answers_that_are_normal_stay_as_they_are() -> None:
    model = logistic()
    dataset = simulated(model, 1, rows=2000, batch=2)
    near = searched(model, dataset)
    assert with_exact_terms(near, model, dataset) is near
    line = build_model("linear_regression")
    dataset = simulated(line, 2)
    assert with_exact_terms(prior_of(line, dataset), line, dataset).rsample(3).shape == (4, 3, 3)


def test_an_answer_far_off_and_narrow_is_found_out() -> None:
    """Where it is the terms look quadratic; its own weights say that it is wrong."""
    model = logistic(0.1)
    dataset = simulated(model, 8, rows=8)
    location = 3.0 * torch.randn(4, 9, generator=generator_for(5))
    narrow = GaussianTheta(location, torch.full((4, 9), 0.02), model.active(dataset))
    found = with_exact_terms(narrow, model, dataset)
    assert isinstance(found, ExactTermsTheta)
    theta, log_q = found.rsample_and_log_prob(1000, generator_for(0))
    assert Weights.of(model.log_joint(theta.double(), dataset.double()), log_q).relative_ess.min() > 0.5


def test_only_those_that_gain_change() -> None:
    """A batch of a dataset with three observations beside one with two thousand."""
    model = repriored(logistic(), prior_scale=2.0)
    many = simulated(model, 1, rows=2000, batch=1)
    few = simulated(model, 1, rows=3, batch=1).padded(2000, 1)
    both = Dataset(*(torch.cat([getattr(part, name) for part in (many, few)])
                     for name in ("x", "y", "observed", "features")))
    base = prior_of(model, both)
    near = searched(model, many)
    assert near.factor is not None
    base = GaussianTheta(torch.cat([near.mean, base.mean[1:]]), torch.cat([near.scale, base.scale[1:]]), base.active,
                         torch.cat([near.factor, torch.eye(2)[None]]))
    found = with_exact_terms(base, model, both)
    assert isinstance(found, ExactTermsTheta)
    assert found.places.tolist() == [1]
    theta: Tensor = found.rsample(30, generator_for(0))
    torch.testing.assert_close(found.log_prob(theta)[0], base.log_prob(theta)[0])
    assert found.detach().log_prob(theta).shape == (2, 30)
    assert found.kl_to_normal(torch.zeros(2), torch.ones(2)) is None
