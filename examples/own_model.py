"""A model of your own: counts with an exposure, and an overdispersion that is inferred.

    y ~ NegativeBinomial with mean exposure * exp(intercept + x·weights) and variance mean + mean² / concentration

The model is named parameters and one function. Both objectives train on it; each takes a minute here, which is
enough to see that it works. Give `train` more minutes for posteriors to rely on.

Run: python examples/own_model.py [minutes]
"""

from __future__ import annotations

import sys

import torch
from torch.distributions import Distribution, LogNormal, NegativeBinomial, Normal, constraints

import posteria
from posteria import CustomModel, Dataset, Parameter

# The axis "features" gets its length from the dataset.
PARAMETERS = [
    Parameter("weights", ("features",), prior=Normal(0.0, 0.3)),
    Parameter("intercept", prior=Normal(0.5, 1.0)),
    Parameter("concentration", support=constraints.positive, prior=LogNormal(1.5, 0.75)),
]


def predict(params: dict[str, torch.Tensor], x: torch.Tensor) -> Distribution:
    """The counts of one dataset: x is (rows, 1 + features), the exposure first."""
    log_mean = x[:, 0].log() + params["intercept"] + x[:, 1:] @ params["weights"]
    # Draws from the prior can reach far; e¹⁵ is more than any count here.
    return NegativeBinomial(params["concentration"], logits=log_mean.clamp(max=15) - params["concentration"].log())


def draw_inputs(rows: int, columns: int) -> torch.Tensor:
    """What x looks like in training: exposures between 0.5 and 2, standard normal features."""
    return torch.cat([0.5 + 1.5 * torch.rand(rows, 1), torch.randn(rows, columns - 1)], 1)


def build_counts_model() -> CustomModel:
    return CustomModel(PARAMETERS, predict=predict, draw_inputs=draw_inputs, target="count", name="counts",
                       extra_columns={"exposure": constraints.positive})


def simulate_shop_visits(rows: int = 120) -> Dataset:
    """A dataset with known parameters: weights 0.5, -0.3 and 0, intercept 1, concentration 5."""
    torch.manual_seed(7)
    x = draw_inputs(rows, 4)
    params = {"weights": torch.tensor([0.5, -0.3, 0.0]), "intercept": torch.tensor(1.0),
              "concentration": torch.tensor(5.0)}
    return Dataset.of(x, predict(params, x).sample())


def main(budget: dict[str, float]) -> None:
    model, dataset = build_counts_model(), simulate_shop_visits()
    task = {"name": "simulated", "options": {"columns": [4, 4]}}
    for objective in ("reverse_kl", "forward_kl"):
        config = {"objective": objective, "task": task, "seed": 0, **budget}
        estimator = posteria.train(config, model=model).estimator
        posterior = estimator.posterior(dataset).with_coords(features=["price", "rain", "noise"])
        print(f"\n{objective}\n{posterior.summary().round(3).to_string()}")


if __name__ == "__main__":
    main({"minutes": float(sys.argv[1]) if len(sys.argv) > 1 else 1.0})
