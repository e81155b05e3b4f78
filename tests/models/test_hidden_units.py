"""Moves of networks unit by unit leave the posterior as it is, and reach all of it."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal

from posteria.bench.samplers import predictions
from posteria.bench.trust_importance import importance_moments
from posteria.models import LinearRegression, Model, NeuralClassification, NeuralRegression
from posteria.models.hidden_units import UnitMoves, unit_moves
from posteria.models.log_joint import ModelLogJoint
from posteria.models.whitened import Whitened, whitened
from posteria.randomness import generator_for
from posteria.refinement import Accuracy
from posteria.refinement.chains import run_chains
from posteria.tasks import SimulatedTask
from posteria.trust.posing import problem_of
from posteria.types import Dataset

_SHIFTED = {"output_weights": Normal(0.7, 2.0)}
_HEAVY = {"hidden_weights": Laplace(0.0, 1.0)}
MODELS = {
    "relu": NeuralRegression(hidden=3),
    "tanh": NeuralRegression(hidden=2, activation="tanh"),
    "noise_inferred": NeuralRegression(hidden=2, noise="inferred"),
    "shifted_prior": NeuralRegression(hidden=2, priors=_SHIFTED),
    "laplace_prior": NeuralRegression(hidden=2, priors=_HEAVY),
}


def _moves(model: Model, dataset: Dataset) -> UnitMoves:
    own = whitened(model)
    moves = unit_moves(own, dataset, ModelLogJoint(own, dataset))
    assert moves is not None
    return moves


def _drawn(model: Model, count: int, rows: int, columns: int = 2, seed: int = 1) -> tuple[Dataset, Tensor]:
    """Datasets, and z (B, 1, P) of the parameters that made them."""
    dataset, theta = SimulatedTask(model, (rows, rows), (columns, columns)).draw(count, generator_for(seed))
    dataset, own = dataset.double(), whitened(model)
    u = own.units(theta.double(), dataset) if isinstance(own, Whitened) else theta.double()
    joint = ModelLogJoint(own, dataset)
    return dataset, ((u - joint.location) / joint.scale)[:, None]


@pytest.mark.parametrize("name", MODELS)
def test_moves_leave_the_posterior_as_it_is(name: str) -> None:
    """theta of the prior and y of theta: theta is a draw of the posterior, and so is what moves make of it.

    Over all y it is a draw of the prior again, and goes with y as before.
    """
    model, count = MODELS[name], 600
    dataset, began = _drawn(model, count, rows=6)
    moves, z, generator = _moves(model, dataset), began, generator_for(2)
    for _ in range(3):
        z = moves(z, generator)
    assert ((z - began).abs() > 1e-3).double().mean() > 0.7
    assert dataset.y is not None
    power = dataset.y.square().mean(-1).log()
    power = (power - power.mean()) / power.std()
    for statistic in (lambda z: z, lambda z: z**2 - 1.0, lambda z: (z**2 - 1.0) * power[:, None]):
        change = statistic(z[:, 0]) - statistic(began[:, 0])
        score = change.mean(0) / (change.std(0) / math.sqrt(count))
        assert score.abs().max() < 4.2, (name, score)  # of some 30 numbers, by chance once in 1,000 runs


@pytest.mark.parametrize("name", ["relu", "tanh", "shifted_prior"])
def test_chains_of_moves_have_the_posterior_s_moments(name: str) -> None:
    model = MODELS[name]
    dataset, _ = _drawn(model, 1, rows=8, columns=1, seed=5)
    moments, enough, _ = importance_moments(model, dataset, predictions, 20_000.0, seed=0)
    assert enough.all()
    moves, generator = _moves(model, dataset), generator_for(3)
    size = model.layout_of(dataset).size
    z, kept = torch.randn(1, 200, size, dtype=torch.double, generator=generator), []
    for i in range(150):
        z = moves(z, generator)
        if i >= 30:
            kept.append(predictions(model, dataset, moves.joint.theta(z)[:, :, None])[0, :, 0])
    draws = torch.stack(kept, 1)  # (chains, length, quantities)
    # Chains are independent of each other, whatever is in them.
    error = (draws.mean(1).std(0) / math.sqrt(len(draws)))
    z_scores = (draws.mean((0, 1)) - moments.mean[0]) / (error.square() + moments.mean_error[0].square()).sqrt()
    assert z_scores.abs().max() < 4.0, z_scores
    spread = draws.flatten(0, 1).std(0) / moments.sd[0]
    assert ((spread - 1.0).abs() < 0.05).all(), spread


def test_padding_changes_nothing() -> None:
    dataset, z = _drawn(MODELS["relu"], 2, rows=6)
    own, longer = _moves(MODELS["relu"], dataset), _moves(MODELS["relu"], dataset.padded(9, 2))
    torch.testing.assert_close(own(z, generator_for(4)), longer(z, generator_for(4)), rtol=0.0, atol=0.0)
    wide = _moves(MODELS["relu"], dataset.padded(9, 3))
    places = wide.joint.active[0].nonzero()[:, 0]
    widened = torch.zeros(2, 1, wide.joint.active.shape[1], dtype=torch.double)
    widened[..., places] = z
    moved = wide(widened, generator_for(4))
    assert moved.isfinite().all()
    assert (moved[..., ~wide.joint.active[0]] == 0.0).all()


def test_numbers_that_rounding_swallows_stand_still_or_stay_finite() -> None:
    dataset, z = _drawn(MODELS["relu"], 1, rows=6)
    huge = Dataset(dataset.x * 1e9, dataset.y, dataset.observed, dataset.features)
    z = z.expand(1, 20, -1).clone()
    moved = _moves(MODELS["relu"], huge)(z, generator_for(4))
    assert moved.isfinite().all()


@pytest.mark.parametrize("model", [NeuralRegression(hidden=2, layers=2), NeuralClassification(hidden=2),
                                   LinearRegression(),
                                   NeuralRegression(hidden=2, priors={"output_weights": Laplace(0.0, 1.0)})])
def test_other_models_have_no_such_moves(model: Model) -> None:
    dataset, _ = SimulatedTask(model, (6, 6), (2, 2)).draw(2, generator_for(0))
    assert problem_of(model, dataset).moves is None


def test_networks_with_rows_that_contradict_the_noise_end_on_chains_of_moves() -> None:
    """Gradients did not get there: the posterior of such data is a bundle of narrow ridges."""
    model = NeuralRegression(hidden=8)
    dataset, _ = _drawn(model, 1, rows=30, columns=1, seed=8)
    assert dataset.y is not None
    bent = Dataset(dataset.x, 3.0 * dataset.y, dataset.observed, dataset.features)
    problem = problem_of(model, bent)
    assert problem.moves is not None
    starts = torch.randn(1, 8, 24, dtype=torch.double, generator=generator_for(6))
    run = run_chains(problem, starts, Accuracy(), generator_for(7))
    assert run.converged.all(), (run.r_hat, run.ess)
    assert run.evaluations.item() > 0
