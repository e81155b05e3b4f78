"""A posterior of a model that no network was trained on, and of the same model under two priors.

    python examples/any_model.py
"""

# --8<-- [start:model]
from __future__ import annotations

import torch
from torch.distributions import Distribution, Normal, Weibull, constraints

import posteria
from posteria import CustomModel, Dataset, Parameter


def predict(params: dict[str, torch.Tensor], x: torch.Tensor) -> Distribution:
    """Lifetimes (N,) of machines that run under conditions x (N, D)."""
    log_scale = params["intercept"] + x @ params["effects"]
    return Weibull(log_scale.clamp(-10, 10).exp(), params["shape"])


lifetimes = CustomModel(
    [Parameter("effects", ("features",), prior=Normal(0.0, 0.5)),
     Parameter("intercept", prior=Normal(1.0, 1.0)),
     Parameter("shape", support=constraints.positive, prior=torch.distributions.LogNormal(0.5, 0.5))],
    predict=predict, target="positive", name="lifetimes")
# --8<-- [end:model]


def simulated(machines: int = 80) -> Dataset:
    """Lifetimes with known effects (0.6, -0.3) and shape 2."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(machines, 2, generator=generator)
    scale = (1.0 + x @ torch.tensor([0.6, -0.3])).exp()
    uniform = torch.rand(machines, generator=generator)
    return Dataset.of(x, scale * (-uniform.log()) ** 0.5)


def main() -> None:
    """Print both posteriors, and whether they can be trusted."""
    dataset = simulated()
    # --8<-- [start:infer]
    universal = posteria.universal()
    posterior = universal.posterior(lifetimes, dataset)    # nothing is trained
    refined = posterior.refine(seed=0)
    print(refined.status[0], "because", refined.reason[0])
    print(refined.posterior.summary(seed=0).round(2))

    sceptical = universal.posterior(lifetimes, dataset, priors={"effects": Normal(0.0, 0.05)})
    print(sceptical.refine(seed=0).posterior.summary(seed=0).round(2))
    # --8<-- [end:infer]


if __name__ == "__main__":
    main()
