"""Simulated datasets of the library's models, and climbs on them: shared by the tests of ascent and search."""

from __future__ import annotations

from typing import Any

import torch

from posteria.ascent import Guess, climb
from posteria.models import Model, ModelLogJoint, build_model
from posteria.randomness import generator_for
from posteria.types import Dataset

DENSE, CLIMBS = 256, 12
CONJUGATE: dict[str, tuple[str, dict[str, Any], int]] = {
    "regression": ("linear_regression", {}, 3),
    "little_noise": ("linear_regression", {"noise": 0.04}, 5),
    "mean": ("gaussian_mean", {"covariance": [0.5, 1.0, 2.0]}, 3),
}


def simulated(model: Model, columns: int, rows: int = 40, batch: int = 4, seed: int = 0) -> Dataset:
    x = model.draw_inputs(batch, rows, columns, generator_for(seed, 1))
    inputs = Dataset(x, None, torch.ones(batch, rows, dtype=torch.bool), torch.ones(batch, columns, dtype=torch.bool))
    theta = model.sample_prior(inputs, 1, generator_for(seed, 2))[:, 0]
    return model.simulate(theta, inputs, generator_for(seed, 3))


def climbed(log_joint: ModelLogJoint, iterations: int = CLIMBS, damping: float = 0.0, dense: int = DENSE) -> Guess:
    return climb(log_joint, torch.zeros(log_joint.active.shape), iterations, damping, dense)


def logistic(temperature: float = 1.0) -> Model:
    return build_model("linear_classification", temperature=temperature, reference=True)
