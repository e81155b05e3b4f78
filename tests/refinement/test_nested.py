"""Nested proposals: conjugate models and eight schools by quadrature, batches, padding, wrong proposals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import HalfNormal, Normal, constraints

from posteria.models import CustomModel, Hierarchical, Model, Parameter, build_model
from posteria.randomness import generator_for
from posteria.refinement import Accuracy, Moments, Problem, nested
from posteria.refinement.conditional import Conditional, conditional
from posteria.refinement.tailored import Tailored
from posteria.refinement.weights import Weights
from posteria.trust.posing import problem_of, to_theta
from posteria.trust.refined import refine_draws
from posteria.types import Dataset
from tests.models.test_hierarchical import EFFECTS, ERRORS, eight_schools
from tests.problems import simulated


def answered(problem: Problem, target: Accuracy | None = None) -> Tailored:
    """From draws that know nothing of the posterior."""
    z = problem.joint.fixed_noise(200, 1).double().expand(len(problem), -1, -1)
    return nested.nested(problem, z, target or Accuracy(), generator_for(3))


def only(answer: Tailored) -> tuple[Tensor, Weights]:
    """The draws and weights of one dataset that passed."""
    (part,) = (part for part in answer.parts if len(part[0]))
    return part[1], part[2]


def exact(model: Hierarchical, dataset: Dataset, noise: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and variance (P,) of all parameters, group_scale in its logarithm, and the log evidence.

    Given the scale the model is linear and normal; the scale itself on a grid. Normal priors elsewhere.
    """
    layout, wide = model.layout_of(dataset), replace(dataset, x=dataset.x.double())
    place = layout["group_scale"].start
    rest = torch.tensor([i for i in range(layout.size) if i != place and model.active(dataset)[0, i]])
    location, scale = (moment.double()[rest] for moment in layout.prior_moments)
    assert dataset.y is not None
    y, mean, second, log_density = dataset.y[0].double(), [], [], []
    grid, ones = torch.linspace(-14.0, 4.0, 700, dtype=torch.double), torch.ones(1, 1, len(y), 1, 1).double()
    for log_scale in grid:
        theta = torch.zeros(1, 1, layout.size, dtype=torch.double)
        theta[..., place] = log_scale
        design = model.linearize(theta, wide).jacobian(ones)[0, 0][:, rest]
        covariance = design * scale**2 @ design.T + torch.diag(noise**2)
        gain = scale[:, None] ** 2 * design.T @ torch.linalg.inv(covariance)
        away = y - design @ location
        mean.append(location + gain @ away)
        second.append((scale**2 - (gain * design.T).sum(-1) * scale**2) + mean[-1] ** 2)
        density = torch.distributions.MultivariateNormal(design @ location, covariance).log_prob(y)
        log_density.append(density + layout["group_scale"].log_prior_terms(theta)[0, 0, 0])
    log_density = torch.stack(log_density)
    weights = log_density.softmax(0)
    means, seconds = (weights @ torch.stack(values) for values in (mean, second))
    moments = torch.zeros(2, layout.size, dtype=torch.double)
    moments[0, rest], moments[1, rest] = means, seconds - means**2
    moments[0, place] = weights @ grid
    moments[1, place] = weights @ (grid - moments[0, place]) ** 2
    return moments[0], moments[1], float(log_density.logsumexp(0) + math.log(float(grid[1] - grid[0])))


def check_against(problem: Problem, answer: Tailored, mean: Tensor, variance: Tensor, log_evidence: float) -> None:
    z, weights = only(answer)
    found, active = Moments.of(to_theta(problem, z), weights.weights), problem.active[0]
    shift = ((found.mean[0] - mean) / found.sd[0] / found.mean_error[0])[active]
    widening = ((found.sd[0] / variance.sqrt()).log() / found.sd_error[0])[active]
    assert shift.abs().max() < 4
    assert widening.abs().max() < 4
    assert abs(float(weights.log_evidence) - log_evidence) < 4 * float(weights.log_evidence_error) + 2e-3


@pytest.mark.parametrize(("columns", "groups", "rows"), [(2, 6, 40), (3, 20, 30)])
def test_a_conjugate_model_by_quadrature(columns: int, groups: int, rows: int) -> None:
    model = Hierarchical(groups=groups, noise=0.25, priors={"weights": Normal(0.3, 2.0)})
    dataset = simulated(model, columns, rows, batch=1)
    problem, noise = problem_of(model, dataset), torch.full((rows,), 0.5, dtype=torch.double)
    check_against(problem, answered(problem), *exact(model, dataset, noise))


def test_eight_schools_by_quadrature() -> None:
    model, dataset = eight_schools()
    problem = problem_of(model, dataset)
    answer = answered(problem)
    check_against(problem, answer, *exact(model, dataset, torch.tensor(ERRORS, dtype=torch.double)))
    assert float(answer.pareto_k) < 0.5


def schools_of_ones_own() -> tuple[CustomModel, Dataset]:
    """Eight schools, as a user would write them."""
    school = torch.eye(8)
    effects = Parameter("effects", ("schools",))
    scale = Parameter("tau", (), constraints.positive, HalfNormal(5.0))
    model = CustomModel([Parameter("mu", prior=Normal(0.0, 5.0)), scale, effects], axes={"schools": 8},
                        predict=lambda p, x: Normal(p["mu"] + p["tau"] * x[:, 1:] @ p["effects"], x[:, 0]),
                        extra_columns=["noise"])
    model.hyperparameters = ("tau",)
    return model, Dataset.of(torch.cat([torch.tensor(ERRORS)[:, None], school], 1), torch.tensor(EFFECTS))


def test_a_model_of_ones_own_declares_its_hyperparameters() -> None:
    model, dataset = schools_of_ones_own()
    problem, schools = problem_of(model, dataset), eight_schools()
    mean, variance, log_evidence = exact(*schools, torch.tensor(ERRORS, dtype=torch.double))
    kept = [schools[0].layout_of(schools[1]).scalar_names.index(name)
            for name in ("intercept", "group_scale", *(f"group_offsets[{i}]" for i in range(8)))]
    check_against(problem, answered(problem), mean[kept], variance[kept], log_evidence)


def test_answers_do_not_depend_on_the_batch_or_on_padding() -> None:
    model = Hierarchical(groups=5, varying_slopes=True, priors={"slope_offsets": torch.distributions.Laplace(0.0, 1.0)})
    dataset = simulated(model, 3, 25, batch=3)
    target = Accuracy(0.5, 0.5)
    together, padded = answered(problem_of(model, dataset), target), answered(
        problem_of(model, dataset.padded(31, 4)), target)
    for b in range(3):
        alone = answered(problem_of(model, dataset[torch.tensor([b])]), target)
        for other in (together, padded):
            torch.testing.assert_close(alone.pareto_k[0], other.pareto_k[b], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(alone.ess[0], other.ess[b], rtol=1e-3, atol=0.1)


def test_a_density_is_normalised() -> None:
    """Of h and one r, on a grid; its mean weight is the evidence, which the grid gives too."""
    tau = Parameter("tau", (), constraints.positive, HalfNormal(1.0))
    model = CustomModel([tau, Parameter("effect", prior=torch.distributions.StudentT(4.0))],
                        predict=lambda p, x: Normal(p["tau"] * p["effect"] * x[:, 0], 1.0))
    model.hyperparameters = ("tau",)
    dataset = Dataset.of(torch.ones(3, 1), torch.tensor([1.0, 2.5, 0.5]))
    problem = problem_of(model, dataset)
    climb = nested._Climb(answered(problem), Accuracy(), 0, False, torch.zeros(1, dtype=torch.long))
    proposal, _ = nested.first_look(problem, 0.5 * problem.joint.fixed_noise(100, 1).double()[None])
    line = torch.linspace(-10, 10, 151, dtype=torch.double)
    grid = torch.cartesian_prod(line, line)[None]
    area = float(line[1] - line[0]) ** 2
    assert float(proposal.log_prob(problem, grid).exp().sum()) * area == pytest.approx(1.0, abs=0.02)
    log_evidence = float(problem.density(grid).logsumexp(-1)) + math.log(area)
    weights = climb.drawn(problem, proposal, 0, torch.tensor([0])).weights()
    assert abs(float(weights.log_evidence) - log_evidence) < 4 * float(weights.log_evidence_error) + 1e-3


def shifted(problem: Problem, z: Tensor) -> Conditional:
    """Normals whose centres are off by three standard deviations of every parameter."""
    found = conditional(problem, z)
    away = found.z.clone()
    away[..., found.nesting.rest] += 3.0 * found.factor.variances().sqrt()
    return replace(found, z=away)


def narrow(problem: Problem, z: Tensor) -> Conditional:
    """Normals of a third of the width."""
    found = conditional(problem, z)
    factor = replace(found.factor, common=3.0 * found.factor.common, own=3.0 * found.factor.own,
                     bridge=3.0 * found.factor.bridge)
    return replace(found, factor=factor)


@pytest.mark.parametrize("wrong", [shifted, narrow])
def test_a_wrong_proposal_is_refused(wrong: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Hierarchical(groups=6, noise=0.25)
    problem = problem_of(model, simulated(model, 2, 40, batch=2))
    assert (answered(problem).pareto_k < 0.5).all()
    monkeypatch.setattr(nested, "conditional", wrong)
    answer = answered(problem)
    assert (answer.pareto_k > 0.7).all()
    assert not any(len(part[0]) for part in answer.parts)


def test_the_ladder_says_which_proposal_it_was() -> None:
    model, dataset = eight_schools()
    theta = model.sample_prior(dataset, 500, generator_for(0))
    found = refine_draws(model, dataset, theta, method="laplace")
    assert found.status == ("refined",)
    assert found.reason[0].startswith("refined (nested proposal): k-hat")


def test_a_proposal_that_leaves_out_a_mode_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, dataset = eight_schools()
    problem = problem_of(model, dataset)
    z = problem.joint.fixed_noise(200, 1).double()[None]
    passed = nested.nested(problem, z, Accuracy(), generator_for(3), look_for_modes=True)
    assert sum(len(part[0]) for part in passed.parts) == 1
    log_prob = nested.NestedProposal.log_prob
    monkeypatch.setattr(nested.NestedProposal, "log_prob", lambda self, problem, z: log_prob(self, problem, z) - 20.0)
    refused = nested.nested(problem, z, Accuracy(), generator_for(3), look_for_modes=True)
    assert not any(len(part[0]) for part in refused.parts)


def test_models_that_declare_nothing_or_too_much_do_not_nest() -> None:
    plain: Model = build_model("linear_regression")
    assert not nested.nests(problem_of(plain, simulated(plain, 2, batch=1)))
    many = Hierarchical(groups=2, varying_slopes=True)
    assert many.hyperparameters == ("group_scale", "slope_scale", "noise_scale")
    assert not nested.nests(problem_of(many, simulated(many, 13, 10, batch=1)))
    assert nested.nests(problem_of(many, simulated(many, 3, 10, batch=1)))


@pytest.mark.slow
@pytest.mark.parametrize("slopes", [False, True])
def test_where_the_others_are_normal_one_look_and_one_try_say_all(slopes: bool) -> None:
    model = Hierarchical(groups=5, varying_slopes=slopes)
    problem = problem_of(model, simulated(model, 3, 30, batch=2))
    assert problem.nesting is not None
    assert problem.nesting.exact
    inner = conditional(problem, 3.0 * problem.joint.fixed_noise(4, 1).double().expand(2, -1, -1).contiguous())
    assert inner.looks == 1
    noise = torch.randn(6, len(problem.nesting.rest), dtype=torch.double, generator=generator_for(2))
    ratio = inner.log_ratio(problem, inner.at(noise), noise, 0.0)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-9, atol=1e-7)
    laplace = torch.distributions.Laplace(0.0, 1.0)
    for other in (Hierarchical("poisson"), Hierarchical(priors={"group_offsets": laplace})):
        posed = problem_of(other, simulated(other, 3, 30, batch=1))
        assert posed.nesting is not None
        assert not posed.nesting.exact


def test_counts_in_groups_agree_with_long_chains() -> None:
    pytest.importorskip("numpyro")
    from posteria.reference import NUTS, run_baseline

    model = Hierarchical("poisson", groups=8)
    dataset = simulated(model, 3, 60, batch=2)
    run = run_baseline(model, dataset, NUTS, num_chains=4, num_samples=2000, target_accept=0.95)
    assert run.converged.all()
    theta = model.sample_prior(dataset, 500, generator_for(0))
    found = refine_draws(model, dataset, theta, method="laplace", num_draws=4000)
    assert found.status == ("refined", "refined")
    draws, reference = found.posterior.distribution.theta, run.theta.flatten(1, 2)  # type: ignore[attr-defined]
    shift = (draws.mean(1) - reference.mean(1)) / reference.std(1)
    assert shift[model.active(dataset)].abs().max() < 0.1
    ratio = (draws.std(1) / reference.std(1))[model.active(dataset)]
    assert ratio.min() > 0.9
    assert ratio.max() < 1.1
