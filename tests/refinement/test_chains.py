"""Many short chains: known answers, and that every dataset comes to an end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import HalfCauchy, Laplace, Normal

from posteria.bench.trust_shifts import SHIFTS, draw_shifted
from posteria.models import CustomModel, LinearClassification, LinearRegression, Model, Parameter, build_model
from posteria.randomness import generator_for
from posteria.refinement import Accuracy, Moments, chains, run_chains
from posteria.refinement.chains import ChainRun, overdispersed
from posteria.refinement.problem import Problem
from posteria.refinement.tailored import tailored
from posteria.trust.posing import problem_of, to_theta
from posteria.types import Dataset
from tests.problems import simulated


def run(model: Model, dataset: Dataset) -> ChainRun:
    problem = problem_of(model, dataset)
    draws = torch.zeros(len(dataset), 4, problem.active.shape[1])
    return run_chains(problem, overdispersed(problem, draws), Accuracy(), generator_for(0))


def two_modes() -> tuple[Model, Dataset]:
    """y ~ N(root², 0.5²)."""
    def predict(params: dict[str, Tensor], x: Tensor) -> Normal:
        return Normal((params["root"] ** 2).expand(x.shape[0]), 0.5)

    model = CustomModel([Parameter("root", prior=Normal(0.0, 2.0))], predict=predict)
    return model, Dataset.of(torch.zeros(1, 20, 1), 4.0 + 0.5 * torch.randn(1, 20, generator=generator_for(0)))


def test_chains_draw_from_a_known_posterior() -> None:
    model = LinearRegression()
    dataset = simulated(model, 2, rows=30, batch=3)
    done = run(model, dataset)
    assert done.converged.all()
    assert done.z.shape == (3, 64 * 40, 3)
    exact, theta = model.exact_posterior(dataset), to_theta(problem_of(model, dataset), done.z)
    # The sizes are the smaller ones of those for means and (doubled) for variances: both errors are at most this.
    error = done.ess[:, None].rsqrt()
    assert (((theta.mean(1) - exact.mean) / exact.stddev).abs() < 4.0 * error).all()
    assert ((theta.std(1) / exact.stddev).log().abs() < 4.0 * error).all()


@pytest.mark.parametrize(("name", "options", "priors"), [
    ("linear_classification", {}, {}), ("poisson_regression", {}, {"weights": Laplace(0.0, 1.0)}),
    ("neural_regression", {"hidden": 4}, {}), ("gaussian_mixture", {"components": 2}, {}),
    ("linear_regression", {"noise": "inferred"}, {"noise_scale": HalfCauchy(1.0)})])
def test_trajectories_are_led_by_the_score_in_single_precision(name: str, options: dict[str, Any],
                                                               priors: dict[str, Any]) -> None:
    model = build_model(name, priors=priors, **options)
    problem = problem_of(model, simulated(model, 3, rows=20, batch=3))
    assert problem.steer is not None
    z = torch.where(problem.active[:, None], problem.joint.fixed_noise(5, 1).double(), 0.0)
    exact, led = problem.joint.score(z)[1], problem.steer(z)
    assert led.dtype == torch.double
    torch.testing.assert_close(led, exact, rtol=1e-4, atol=1e-3)


def test_modes_apart_are_given_up_after_two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    original = chains._round

    def counted(problem: object, z: Tensor, number: int, *rest: object) -> ChainRun:
        begun.append(number)
        return original(problem, z, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(chains, "_round", counted)
    done = run(*two_modes())
    assert not done.converged.any()
    assert (done.r_hat > 1.2).all()
    assert begun == [0, 1]


def test_superchains_that_leave_a_side_mode_together_are_not_believed() -> None:
    """A mixture with heavy-tailed noise on top: half the chains begin in a mode with 0.3% of the mass."""
    model = build_model("gaussian_mixture", components=2)
    dataset = draw_shifted(model, 2, SHIFTS["heavy_tails"], 100, 0)[torch.tensor([2])]
    problem, generator = problem_of(model, dataset), generator_for(0)
    side = torch.tensor([[-0.50, 0.52, 0.69, -2.09], [0.53, -1.98, -0.76, 0.40], [0.60, -1.87, -0.52, 0.73],
                         [-0.76, 0.48, 0.73, -1.78]], dtype=torch.double)
    wide = torch.tensor([[-1.84, -0.15, 0.19, -1.49], [1.14, -0.35, 0.18, 0.82]], dtype=torch.double)
    done = run_chains(problem, torch.cat([side, wide, -wide])[None], Accuracy(), generator)
    exact = tailored(problem, torch.tensor([[[-1.0, -1.9, 0.9, 0.5]]]).double(), Accuracy(), generator)
    (drawn, weights), = [(z, found) for places, z, found in exact.parts if len(places)]
    known, got = Moments.of(problem.values(drawn), weights.weights), problem.values(done.z)
    assert done.converged.all()
    assert ((got.mean(1) - known.mean).abs() < 0.1 * known.sd).all()
    assert ((got.std(1) / known.sd).log().abs() < 0.1).all()


class Slow:
    """Moves of a standard normal that keep so much of where they are; implements `Moves`."""

    cost = torch.ones(1)

    def __init__(self, kept: float):
        self.kept, self.made = kept, 0

    def __call__(self, z: Tensor, generator: torch.Generator) -> Tensor:
        self.made += 1
        noise = torch.randn(z.shape, dtype=z.dtype, generator=generator)
        return self.kept * z + (1.0 - self.kept**2) ** 0.5 * noise


def own_run(kept: float, start: float = 0.0) -> tuple[ChainRun, Slow]:
    """Chains of a normal posterior with slow moves, all from points around a start."""
    model, moves = LinearRegression(), Slow(kept)
    problem = problem_of(model, Dataset.of(torch.zeros(1, 4, 1), torch.zeros(1, 4)))  # x says nothing
    slow = replace(problem, moves=moves, pick=lambda index: slow)
    starts = start + torch.randn(1, 8, 1, dtype=torch.double, generator=generator_for(3))
    return run_chains(slow, starts, Accuracy(), generator_for(4)), moves


@pytest.mark.parametrize(("kept", "least"), [(0.5, 160), (0.9, 320), (0.95, 640)])
def test_own_moves_go_on_as_long_as_they_must(kept: float, least: int) -> None:
    done, moves = own_run(kept)
    assert done.converged.all(), (kept, done.r_hat, done.ess)
    assert moves.made >= least
    assert done.evaluations.item() == 64 * moves.made
    error = done.ess.rsqrt()
    assert (done.z.mean(1).abs() < 4.0 * error).all()
    assert (done.z.std(1).log().abs() < 4.0 * error).all()


def test_own_moves_that_will_not_get_there_are_given_up_early() -> None:
    done, moves = own_run(0.9997)
    assert not done.converged.any()
    assert moves.made == chains._sweeps(160)  # the third look


@pytest.mark.parametrize("which", [1, 3])
def test_own_moves_that_pass_once_by_luck_are_not_believed(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look says yes, the others say no."""
    looks, judged = [], chains._judged

    def lucky(problem: Problem, draws: Tensor, target: Accuracy) -> ChainRun:
        looks.append(draws.shape[2])
        run = judged(problem, draws, target)
        return replace(run, converged=torch.full_like(run.converged, len(looks) == which))

    monkeypatch.setattr(chains, "_judged", lucky)
    done, _ = own_run(0.95)
    assert len(looks) > which
    assert not done.converged.any()


def test_own_moves_forget_where_they_came_from() -> None:
    """Warm-up ends on the way in; what was drawn there is dropped."""
    done, _ = own_run(0.9, start=4_000.0)
    assert done.converged.all()
    assert (done.z.mean(1).abs() < 4.0 * done.ess.rsqrt()).all()


def test_log_densities_beyond_rounding_are_not_believed() -> None:
    model = LinearRegression()
    dataset = simulated(model, 2, rows=30, batch=2)
    assert dataset.y is not None
    done = run(model, replace(dataset, y=dataset.y * torch.tensor([[1.0], [1e6]])))
    assert done.known.tolist() == done.converged.tolist() == [True, False]


def test_draws_that_begin_elsewhere_are_not_steady() -> None:
    problem = problem_of(*two_modes())
    draws = torch.randn(1, 64, 40, 1, generator=generator_for(1), dtype=torch.double)
    assert chains._judged(problem, draws, Accuracy()).steady.all()
    draws[:, :20, :6] += 2.0
    late = chains._judged(problem, draws, Accuracy())
    assert not late.steady.any()
    assert not late.converged.any()


def test_nothing_is_begun_when_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "_MOST_EVALUATIONS", 1)
    short = run(*two_modes())
    monkeypatch.undo()
    assert not short.converged.any()
    assert (short.evaluations < run(*two_modes()).evaluations).all()


def test_chains_that_nearly_agree_go_on() -> None:
    """Forty draws per chain are too few here; more of them, thinned, are enough, and cheaper than another warm-up."""
    model = LinearClassification(classes=2, temperature=0.3, reference=True)
    done = run(model, simulated(model, 12, rows=60, batch=1))
    assert done.converged.all()
    assert done.z.shape[1] == 64 * 40


def test_a_proposal_that_cannot_be_learned_is_given_up() -> None:
    model = LinearClassification(classes=2, temperature=0.05, reference=True)
    problem = problem_of(model, simulated(model, 20, rows=60, batch=2))
    answer = tailored(problem, torch.zeros(2, 1, problem.active.shape[1]).double(), Accuracy(), generator_for(0))
    assert sum(len(index) for index, _, _ in answer.parts) == 0
    assert (answer.ess < problem.active.sum(-1)).all()
    assert answer.evaluations < 10_000
