"""Train the estimators that ship with the package, and write their model cards.

    python scripts/train_shipped.py [--minutes 8] [--seed 0] [--threads 2] [--runs runs] [name ...]

Each is trained by reverse KL on the task "standardised" (see posteria.tasks.standardised). Reverse KL never reads the
theta that generated a dataset, so that y may be standardised after it was simulated: the target stays the exact
posterior of the shipped model and prior for that standardised dataset. Writes
src/posteria/shipped/<name>/{weights.safetensors,estimator.json,card.md}; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from shipped_card import CARDS, write_card

from posteria import shipped
from posteria.bench.workspace import machine
from posteria.estimator import Estimator
from posteria.models import build_model
from posteria.randomness import generator_for
from posteria.tasks import StandardisedTask
from posteria.training import TrainConfig, build, train
from posteria.types import Dataset

FOLDER = Path(shipped.__file__).parent
ROWS, COLUMNS = (8, 2000), (1, 100)
MOST_CELLS = {"linear": 400_000, "neural": 40_000}
# Training datasets that are remembered, to tell others apart from them.
FAMILIAR_DATASETS = {"linear": 1024, "neural": 256}
# Density by kind of model: a full covariance of thousands of weights would not pay.
DENSITIES = {"linear": "full", "neural": "low_rank"}


def normal(scale: float) -> dict[str, Any]:
    """The JSON of a prior N(0, scale²)."""
    return {"family": "normal", "loc": 0.0, "scale": scale}


NETWORK_PRIORS = {"hidden_weights": normal(0.3), "hidden_bias": normal(1.0), "output_weights": normal(0.5)}
# The cards say why these priors.
MODELS: dict[str, dict[str, Any]] = {
    "linear_regression": {
        "name": "linear_regression", "options": {"noise": "inferred"},
        "priors": {"weights": normal(1.0), "intercept": normal(1.0),
                   "noise_scale": {"family": "half_normal", "scale": 1.0}},
    },
    "linear_classification": {
        "name": "linear_classification", "options": {"classes": 2, "temperature": 1.0, "reference": True},
        "priors": {"weights": normal(1.0), "intercept": normal(5.0)},
    },
    "neural_regression": {
        "name": "neural_regression", "options": {"hidden": 32, "noise": "inferred"},
        "priors": {**NETWORK_PRIORS, "noise_scale": {"family": "half_normal", "scale": 1.0}},
    },
    "neural_classification": {
        "name": "neural_classification", "options": {"hidden": 32, "classes": 2, "temperature": 1.0},
        "priors": NETWORK_PRIORS,
    },
}


def config_of(name: str, minutes: float, seed: int) -> TrainConfig:
    """The whole recipe of one estimator."""
    kind = name.partition("_")[0]
    task = {"name": "standardised",
            "options": {"rows": list(ROWS), "columns": list(COLUMNS), "most_cells": MOST_CELLS[kind]}}
    return TrainConfig.of(model=MODELS[name], encoder="iterative", density=DENSITIES[kind],
                          objective="reverse_kl", task=task, batch_size=64, minutes=minutes, seed=seed)


def reference_of(name: str) -> Dataset:
    """A small dataset of the kind trained on, whose posterior is stored and checked on loading."""
    parts = MODELS[name]
    model = build_model(parts["name"], parts["priors"], **parts["options"])
    return StandardisedTask(model, rows=(64, 64), columns=(5, 5)).draw(2, generator_for(1))[0]


def train_one(name: str, minutes: float, seed: int, runs: Path) -> None:
    """Train, save into the package, measure, write the card."""
    result = train(config_of(name, minutes, seed), out=runs / f"shipped_{name}", resume=True,
                   callbacks=[lambda row: print({k: round(v, 4) for k, v in row.items()}, flush=True)])
    estimator = result.estimator
    estimator.info = replace(estimator.info, training={**estimator.info.training, "machine": machine()})
    estimator.familiarise(build(config_of(name, minutes, seed))[1], FAMILIAR_DATASETS[name.partition("_")[0]])
    estimator.save(FOLDER / name, reference_of(name))
    print(f"{name}: wrote {FOLDER / name}", flush=True)
    write_card(name, FOLDER / name)


def renew_reference(name: str) -> None:
    """Store the reference output anew, with the weights as they are: after a change of the search, compared before."""
    Estimator.load(FOLDER / name, check_reference=False).save(FOLDER / name, reference_of(name))


def main() -> None:
    """Train what the command line names."""
    parser = argparse.ArgumentParser(description="Train the shipped estimators.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {sorted(CARDS)}; default all")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="processor threads; default torch's choice")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for logs and checkpoints")
    parser.add_argument("--renew-reference", action="store_true", help="train nothing, store reference outputs anew")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(MODELS)):
        parser.error(f"name: got {unknown}; takes some of {sorted(MODELS)}")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    for name in arguments.names or sorted(MODELS):
        if arguments.renew_reference:
            renew_reference(name)
        else:
            train_one(name, arguments.minutes, arguments.seed, arguments.runs)


if __name__ == "__main__":
    main()
