"""Poisson regression against NUTS (NumPyro), with the log joint written a second time, in JAX: ``posteria.referee``.

Reference moments are kept in results/nuts_poisson.json, by a fingerprint of each dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from measures import Figures, mean_and_error
from torch import Tensor

from posteria import referee
from posteria.bench.cases import Case
from posteria.estimator import Estimator
from posteria.models import Model
from posteria.types import Dataset

CACHE = Path(__file__).parent / "results" / "nuts_poisson.json"
_LARGEST_R_HAT = 1.01
_ROWS = 128  # all datasets padded to one shape: one compilation
_LARGEST_DIFFERENCE = 1e-3  # nats, of log joints in the hundreds
_MEAN_TOLERANCE, _SD_TOLERANCE = 0.1, 0.1
Moments = dict[str, list[float]]


class Reference:
    """Moments of the posterior by NUTS, computed once per dataset."""

    def __init__(self, model: Model, path: Path = CACHE):
        self.path = path
        self.known: dict[str, Moments] = json.loads(path.read_text()) if path.exists() else {}
        self._sampler = referee.NutsSampler(model, num_samples=2000, max_r_hat=_LARGEST_R_HAT)

    def moments(self, dataset: Dataset) -> Moments:
        """Means and sds of one dataset (a batch of one), of theta and of the constrained values."""
        padded = dataset.padded(max(_ROWS, dataset.x.shape[1]), dataset.x.shape[2])
        key = _fingerprint(padded)
        if key not in self.known:
            self.known[key] = self._run(padded)
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_text(json.dumps(self.known, indent=0))
        return self.known[key]

    def _run(self, dataset: Dataset) -> Moments:
        draws = self._sampler.run(dataset)
        r_hat = float(draws.convergence.worst["r_hat"])
        if not r_hat < _LARGEST_R_HAT:
            raise RuntimeError(f"NUTS has not converged: R-hat {r_hat:.3f}")
        return _summary(draws.theta[0].flatten(0, 1), r_hat)


def check_density(model: Model, dataset: Dataset) -> None:
    """Raise unless the log joint in JAX is the model's."""
    difference = referee.check_density(model, dataset)
    if not difference < _LARGEST_DIFFERENCE:
        raise RuntimeError(f"the log joints differ by up to {difference:.3g}")


@torch.no_grad()
def compare(estimator: Estimator, cases: Sequence[Case], draws: int) -> Figures:
    """Percent of datasets on which all means and sds agree with NUTS, and how far the worst parameter is off.

    Headline figures are of the named (constrained) parameters; ``..._unconstrained`` of theta.
    """
    reference = Reference(estimator.model)
    check_density(estimator.model, cases[0].dataset[:1])
    collected: dict[str, list[Tensor]] = {}
    for case in cases:
        theta = estimator.posterior(case.dataset).sample_theta(draws, case.generator()).double()
        truth = [reference.moments(case.dataset[i:i + 1]) for i in range(len(case.dataset))]
        spaces = {"": (_named(theta), "named"), "_unconstrained": (theta, "theta")}
        for suffix, (values, space) in spaces.items():
            for name, figure in _differences(values, truth, space).items():
                collected.setdefault(name + suffix, []).append(figure)
    return {name: mean_and_error(torch.cat(values)) for name, values in collected.items()}


def _differences(values: Tensor, truth: list[Moments], space: str) -> dict[str, Tensor]:
    mean, sd = (torch.tensor([t[f"{space}_{which}"] for t in truth], dtype=values.dtype) for which in ("mean", "sd"))
    shift = ((values.mean(1) - mean) / sd).abs().amax(-1)
    ratio = (values.std(1) / sd - 1).abs().amax(-1)
    agreeing = (shift <= _MEAN_TOLERANCE) & (ratio <= _SD_TOLERANCE)
    return {"agreeing": 100.0 * agreeing.double(), "worst_mean_shift": shift, "worst_sd_error": ratio}


def _named(theta: Tensor) -> Tensor:
    """The last parameter is the logarithm of the concentration."""
    return torch.cat([theta[..., :-1], theta[..., -1:].exp()], -1)


def _summary(theta: Tensor, r_hat: float) -> Moments:
    moments = {f"{space}_{which}": [round(value, 6) for value in figures.tolist()]
               for space, values in (("theta", theta), ("named", _named(theta)))
               for which, figures in (("mean", values.mean(0)), ("sd", values.std(0)))}
    return moments | {"r_hat": [round(r_hat, 4)]}


def _fingerprint(dataset: Dataset) -> str:
    assert dataset.y is not None
    tensors = (dataset.x[0].double(), dataset.y[0].double(), dataset.observed[0])
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()[:16]
