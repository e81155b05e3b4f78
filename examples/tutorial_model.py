"""Tutorial: an estimator of your own, trained, checked and compared. Run: python examples/tutorial_model.py [steps]"""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd
import torch
from torch.distributions import Distribution, HalfNormal, LogNormal, Normal, constraints

import posteria
from posteria import CustomModel, Dataset, Estimator, Parameter, SimulatedTask

# --8<-- [start:model]
PARAMETERS = [
    Parameter("baseline", prior=Normal(0.0, 1.0)),
    Parameter("effect", support=constraints.positive, prior=LogNormal(0.5, 0.5)),
    Parameter("log_half_dose", prior=Normal(0.0, 1.0)),
    Parameter("noise_scale", support=constraints.positive, prior=HalfNormal(0.5)),
]


def predict(params: dict[str, torch.Tensor], x: torch.Tensor) -> Distribution:
    """Responses to log doses x (rows, 1): from the baseline up by the effect, half of it at the half dose."""
    rise = torch.sigmoid(2.0 * (x[:, 0] - params["log_half_dose"]))
    return Normal(params["baseline"] + params["effect"] * rise, params["noise_scale"])


def log_doses(rows: int, columns: int) -> torch.Tensor:
    """What experiments look like: log doses anywhere from -2 to 2."""
    return 4.0 * torch.rand(rows, columns) - 2.0


def build_dose_response() -> CustomModel:
    return CustomModel(PARAMETERS, predict=predict, draw_inputs=log_doses, name="dose_response")
# --8<-- [end:model]


# --8<-- [start:train]
def train(model: CustomModel, budget: dict[str, Any]) -> Estimator:
    task = {"name": "simulated", "options": {"rows": [15, 40], "columns": [1, 1]}}
    config = {"objective": "forward_kl", "density": "spline_flow", "task": task, "seed": 0, **budget}
    return posteria.train(config, model=model).estimator
# --8<-- [end:train]


def main(budget: dict[str, Any], num_datasets: int = 500) -> None:
    model = build_dose_response()
    estimator = train(model, budget)

    # --8<-- [start:calibration]
    task = SimulatedTask(model, rows=(15, 40), columns=(1, 1))
    report = posteria.check_calibration(estimator.posterior, task, model, num_datasets=num_datasets)
    print(report.summary)
    print(report.coverage([0.5, 0.9]).round(2).to_string())
    # --8<-- [end:calibration]

    # --8<-- [start:sampler]
    torch.manual_seed(0)
    x = log_doses(25, 1)
    truth = {"baseline": 0.5, "effect": 2.0, "log_half_dose": 1.0, "noise_scale": 0.4}
    y = predict({name: torch.tensor(value) for name, value in truth.items()}, x).sample()
    experiment = Dataset.of(x, y)

    posterior = estimator.posterior(experiment)
    refined = posterior.refine()
    print(f"{refined.status[0]}: {refined.reason[0]}")
    sampler = posteria.run_baseline(model, experiment, "hmc", seed=0)
    print(*sampler.notes, sep="\n")
    tables = {"network": posterior.summary(), "refined": refined.posterior.summary(), "hmc": sampler.summary()}
    sides = {name: table[["mean", "sd", "2.5%", "97.5%"]] for name, table in tables.items()}
    print(pd.concat({"truth": pd.Series(truth), **sides}, axis=1).round(2).to_string())
    # --8<-- [end:sampler]


if __name__ == "__main__":
    main({"steps": int(sys.argv[1]) if len(sys.argv) > 1 else 600, "batch_size": 32})
