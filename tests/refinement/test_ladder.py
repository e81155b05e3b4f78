"""Rung 2 of the ladder: how long it goes on drawing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posteria.models import GaussianMean, LinearRegression
from posteria.randomness import generator_for
from posteria.refinement import METHODS, STATUSES, Accuracy, Problem, Source, climb_ladder, ladder
from posteria.testing.models import example
from posteria.trust.posing import problem_of

SPREAD = 1.6


def wide_source(problem: Problem, model: LinearRegression, asked: list[list[int]]) -> Source:
    """q too wide by a factor in every direction: weights are bounded, and a fixed share of draws is effective."""
    exact = model.exact_posterior(problem.joint.dataset)
    joint = problem.joint
    factor = SPREAD * torch.linalg.cholesky(exact.covariance_matrix)

    def log_prob(z: Tensor) -> Tensor:
        offset = (joint.location + joint.scale * z - exact.mean[:, None]).mT
        unit = torch.linalg.solve_triangular(factor, offset, upper=False)
        volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - joint.scale.log().sum()
        return -0.5 * unit.square().sum(1) - volume[:, None] - 0.5 * z.shape[-1] * math.log(2 * math.pi)

    def draw(number: int) -> Tensor:
        noise = torch.randn(len(exact.mean), exact.mean.shape[1], 300, dtype=torch.double,
                            generator=generator_for(5, number))
        return ((exact.mean[..., None] + factor @ noise).mT - joint.location) / joint.scale

    def more(index: Tensor, number: int) -> tuple[Tensor, Tensor]:
        asked.append(index.tolist())
        z = draw(number)
        return z[index], log_prob(z)[index]

    z = draw(0)
    return Source(z, log_prob(z), more, log_prob)


@pytest.mark.parametrize("patient", [False, True])
def test_more_draws_are_taken_as_long_as_they_may_do(patient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 300 draws is effective: the target takes more than 8 times as many, which only patience gives."""
    monkeypatch.setattr(ladder, "_MOST_EFFORT", 8)
    model = LinearRegression(0.3)
    dataset, _ = example(model, 5, rows=20)
    problem, asked = problem_of(model, dataset), []
    source = wide_source(problem, model, asked)
    problem = replace(problem, single_mode=not patient, quantities=lambda z: z)
    outcome = climb_ladder(problem, source, Accuracy(mean=0.06, sd=0.06), METHODS["reweight"], generator_for(0), 500)
    labels = [STATUSES[i] for i in outcome.status.tolist()]
    if patient:
        assert labels == ["reweighted"] * 3
        assert len(asked) > 8
    else:
        assert labels == ["failed"] * 3
        assert len(asked) <= 8


def test_datasets_with_many_draws_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, and each is answered; their evidence is the exact one, up to five of its errors."""
    monkeypatch.setattr(ladder, "_TOGETHER", 1)
    model = LinearRegression(0.3)
    dataset, _ = example(model, 5, rows=20)
    problem, asked = problem_of(model, dataset), []
    source = wide_source(problem, model, asked)
    problem = replace(problem, single_mode=False, quantities=lambda z: z)
    outcome = climb_ladder(problem, source, Accuracy(mean=0.06, sd=0.06), METHODS["reweight"], generator_for(0), 500)
    assert [STATUSES[i] for i in outcome.status.tolist()] == ["reweighted"] * 3
    assert [index for index, _ in itertools.groupby(asked)] == [[0], [1], [2]]
    monkeypatch.setattr(ladder, "_TOGETHER", 3)  # no dataset's answer hangs on what was asked for others
    together = climb_ladder(problem, source, Accuracy(mean=0.06, sd=0.06), METHODS["reweight"], generator_for(0), 500)
    torch.testing.assert_close(together.log_evidence, outcome.log_evidence)
    exact, theta = model.exact_posterior(dataset.double()), torch.zeros(3, 1, 6, dtype=torch.double)
    evidence = (model.log_joint(theta, dataset.double())[:, 0] - exact.log_prob(theta[:, 0]))
    assert ((outcome.log_evidence - evidence).abs() < 5 * outcome.ess.rsqrt()).all()


def test_a_hopeless_q_is_not_drawn_from_again() -> None:
    model = GaussianMean()
    dataset, _ = example(model, 3, rows=20)
    problem, asked = problem_of(model, dataset), []
    far = torch.randn(3, 300, 3, dtype=torch.double, generator=generator_for(1)) * 0.3 + 9.0

    def more(index: Tensor, number: int) -> tuple[Tensor, Tensor]:
        asked.append(index)
        return far[index], torch.zeros(len(index), 300, dtype=torch.double)

    source = Source(far, torch.zeros(3, 300, dtype=torch.double), more)
    outcome = climb_ladder(problem, source, Accuracy(), METHODS["reweight"], generator_for(0), 500)
    assert not asked
    assert {STATUSES[i] for i in outcome.status.tolist()} == {"failed"}
