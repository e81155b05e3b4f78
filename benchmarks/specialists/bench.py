"""Special training from the universal network against training from nothing: results.json and README.md.

    python benchmarks/specialists/bench.py [--minutes 6] [--case logistic] [--threads 1] [--runs runs]

Every case is one model at one size. A specialist of the same density gets the whole budget; the universal network goes
on for a tenth of it (`posteria train --from universal`); all are measured on the same fresh datasets with the same
random numbers. Cases that are measured already are kept; those asked for by name are run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posteria.bench.workspace import machine
from posteria.estimator import Estimator
from posteria.every_model import universal
from posteria.models import build_model
from posteria.randomness import generator_for
from posteria.shipped import load
from posteria.tasks import SimulatedTask
from posteria.training import TrainConfig, train

HERE = Path(__file__).parent
NUM_DATASETS, NUM_SAMPLES, BATCH, SEED, ROWS = 512, 256, 64, 31_337, (16, 128)
# Of fine-tuning: weights that are good already take smaller steps.
SHARE, LEARNING_RATE = 0.1, 3e-4
# Nats per observation.
MOST_BELOW = 0.005
# Name -> the model, and its columns.
CASES: Mapping[str, tuple[dict[str, Any], int]] = {
    "logistic": ({"name": "generalized_linear", "options": {"family": "bernoulli"}}, 10),
    "poisson": ({"name": "poisson_regression", "options": {}}, 6),
    "gamma": ({"name": "generalized_linear", "options": {"family": "gamma"}}, 5),
    "negative_binomial": ({"name": "generalized_linear", "options": {"family": "negative_binomial"}}, 5),
    "three_classes": ({"name": "linear_classification", "options": {"classes": 3, "temperature": 1.0}}, 4),
    "gaussian_mean": ({"name": "gaussian_mean", "options": {}}, 10),
    "probit": ({"name": "generalized_linear", "options": {"family": "probit"}}, 10),
    "neural": ({"name": "neural_regression", "options": {"hidden": 8}}, 2),
}
WAYS = ("universal", "fine-tuned", "specialist")

_README = """# Special training: from the universal network, and from nothing

    python benchmarks/specialists/bench.py --minutes {minutes:g}

One model at one size per row, {rows[0]} to {rows[1]} rows. *specialist*: encoder and density as in the universal
network but for tokens that know their block, reverse KL, {minutes:g} minutes on one thread. *fine-tuned*: the
universal network after {short:g} minutes on the model (`posteria train --from universal`, learning rate {rate:g}); it
looks as long as the universal network does in use, the specialist as long as in training, which suits each best.
*universal*: before. The evidence lower bound, in nats per observation, is that of {datasets} fresh datasets, {samples}
draws each, with the same random numbers for all; differences are to the specialist, with the standard error over
datasets. Goals: at most {most:g} nats per observation below the specialist; and after fine-tuning not below it at all,
but for two standard errors.

Machine: {processor}, torch {torch}. Seed {seed}.

{table}
"""


def config_of(case: str, way: str, minutes: float) -> TrainConfig:
    """Of a training run."""
    model, columns = CASES[case]
    network = load("universal").describe()
    task = {"name": "simulated", "options": {"rows": list(ROWS), "columns": [columns, columns], "rows_scale": "log"}}
    fields: dict[str, Any] = {"model": model, "objective": "reverse_kl", "task": task, "seed": 0}
    if way == "fine-tuned":
        return TrainConfig.of(**fields, start="universal", minutes=SHARE * minutes, learning_rate=LEARNING_RATE)
    encoder = {"name": "iterative", "options": {**network["encoder"]["options"], "shared": False}}
    return TrainConfig.of(**fields, encoder=encoder, density=network["density"], minutes=minutes)


def trained(case: str, way: str, minutes: float, runs: Path) -> Estimator:
    """The estimator of a case; training goes on where it was stopped."""
    if way == "universal":
        return universal().estimator(build_model(CASES[case][0]["name"], **CASES[case][0]["options"]))
    return train(config_of(case, way, minutes), out=runs / f"{case}_{way}", resume=True).estimator


@torch.no_grad()
def bounds(estimator: Estimator, case: str) -> Tensor:
    """(NUM_DATASETS,) evidence lower bounds per observation."""
    columns = CASES[case][1]
    task = SimulatedTask(estimator.model, ROWS, (columns, columns), "log")
    found = []
    for batch in range(NUM_DATASETS // BATCH):
        dataset, _ = task.draw(BATCH, generator_for(SEED, batch))
        distribution = estimator.posterior(dataset).distribution
        theta, log_q = distribution.rsample_and_log_prob(NUM_SAMPLES, generator_for(SEED + 1, batch))
        gap = estimator.model.log_joint(theta, dataset) - log_q
        found.append(gap.double().mean(-1) / dataset.num_observations)
    return torch.cat(found)


def measure(case: str, minutes: float, runs: Path) -> dict[str, Any]:
    """Means per way, and differences to the specialist with their standard errors."""
    of = {way: bounds(trained(case, way, minutes, runs), case) for way in WAYS}
    away = {way: of[way] - of["specialist"] for way in WAYS}
    return {"minutes": minutes, "bound": {way: float(values.mean()) for way, values in of.items()},
            "difference": {way: float(values.mean()) for way, values in away.items()},
            "error": {way: float(values.std() / len(values) ** 0.5) for way, values in away.items()}}


def write_report(results: dict[str, Any]) -> None:
    """README.md from the results."""
    rows = ["| model | specialist | fine-tuned - specialist | universal - specialist | both close | not below |",
            "|---|---|---|---|---|---|"]
    for case, found in results["cases"].items():
        shown = [f"{found['difference'][way]:+.5f} ± {found['error'][way]:.5f}" for way in ("fine-tuned", "universal")]
        close = all(found["difference"][way] > -MOST_BELOW for way in ("fine-tuned", "universal"))
        reached = found["difference"]["fine-tuned"] > -2 * found["error"]["fine-tuned"]
        verdicts = " | ".join("yes" if met else "no" for met in (close, reached))
        rows.append(f"| {case}, {CASES[case][1]} columns | {found['bound']['specialist']:.4f} | {' | '.join(shown)} | "
                    f"{verdicts} |")
    minutes = next(iter(results["cases"].values()))["minutes"]
    settings = {"minutes": minutes, "short": SHARE * minutes, "rate": LEARNING_RATE, "rows": ROWS, "seed": SEED,
                "datasets": NUM_DATASETS, "samples": NUM_SAMPLES, "most": MOST_BELOW, **results["machine"]}
    (HERE / "README.md").write_text(_README.format(table="\n".join(rows), **settings))


def main() -> None:
    """Measure what is asked for, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/specialists"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    file = HERE / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {"cases": {}}
    for case in arguments.case or [name for name in CASES if name not in results["cases"]]:
        results["cases"][case] = measure(case, arguments.minutes, arguments.runs)
        results["machine"] = machine()
        file.write_text(json.dumps(results, indent=1) + "\n")
        write_report(results)


if __name__ == "__main__":
    main()
