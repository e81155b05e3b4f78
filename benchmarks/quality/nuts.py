"""Poisson regression against NUTS (NumPyro), with the log joint written a second time, in JAX.

Reference moments are kept in results/nuts_poisson.json, by a fingerprint of each dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import torch
from cases import Case
from jax.scipy.special import gammaln
from jax.scipy.stats import norm
from measures import Figures, mean_and_error
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from torch import Tensor

from posteria.estimator import Estimator
from posteria.models import Model
from posteria.types import Dataset

CACHE = Path(__file__).parent / "results" / "nuts_poisson.json"
CHAINS, WARM_UP, DRAWS = 4, 1000, 2000
_LARGEST_R_HAT = 1.01
_ATTEMPTS = 3
_ROWS = 128  # all datasets padded to one shape: one compilation
_LARGEST_LOG_MEAN = 15.0
_MEAN_TOLERANCE, _SD_TOLERANCE = 0.1, 0.1
Moments = dict[str, list[float]]


def log_joint(theta: Any, x: Any, y: Any, observed: Any) -> jax.Array:
    """Log joint of posteria's poisson_regression at theta (P,) = weights, intercept, log concentration.

    Arrays of JAX or numpy; x (N, 1 + D), y and observed (N,).
    """
    weights, intercept, log_concentration = theta[:-2], theta[-2], theta[-1]
    prior = (norm.logpdf(weights, 0.0, 0.3).sum() + norm.logpdf(intercept, 0.5, 1.0)
             + norm.logpdf(log_concentration, 1.5, 0.75))
    exposure = jnp.where(observed, x[:, 0], 1.0)
    log_mean = jnp.minimum(jnp.log(exposure) + intercept + x[:, 1:] @ weights, _LARGEST_LOG_MEAN)
    concentration = jnp.exp(log_concentration)
    logits = log_mean - log_concentration
    rows = (concentration * jax.nn.log_sigmoid(-logits) + y * jax.nn.log_sigmoid(logits)
            + gammaln(concentration + y) - gammaln(1.0 + y) - gammaln(concentration))
    return prior + jnp.where(observed, rows, 0.0).sum()


def _model(x: jax.Array, y: jax.Array, observed: jax.Array) -> None:
    flat = numpyro.distributions.ImproperUniform(numpyro.distributions.constraints.real_vector, (),
                                                 (x.shape[-1] + 1,))
    theta = numpyro.sample("theta", flat)
    numpyro.factor("log_joint", log_joint(theta, x, y, observed))


class Reference:
    """Moments of the posterior by NUTS, computed once per dataset."""

    def __init__(self, path: Path = CACHE):
        numpyro.enable_x64()
        self.path = path
        self.known: dict[str, Moments] = json.loads(path.read_text()) if path.exists() else {}
        self._samplers: dict[int, MCMC] = {}

    def moments(self, dataset: Dataset) -> Moments:
        """Means and sds of one dataset (a batch of one), of theta and of the constrained values."""
        arrays = _arrays(dataset)
        key = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]
        if key not in self.known:
            self.known[key] = self._run(arrays)
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_text(json.dumps(self.known, indent=0))
        return self.known[key]

    def _run(self, arrays: tuple[np.ndarray, ...]) -> Moments:
        size = arrays[0].shape[-1] + 1
        for attempt in range(_ATTEMPTS):
            start = 0.1 * np.random.default_rng(attempt).standard_normal((CHAINS, size))
            sampler = self._sampler(DRAWS * 2**attempt)
            sampler.run(jax.random.PRNGKey(attempt), *arrays, init_params={"theta": jnp.asarray(start)})
            theta = np.asarray(sampler.get_samples(group_by_chain=True)["theta"])
            r_hat = float(np.max(split_gelman_rubin(theta)))
            if r_hat < _LARGEST_R_HAT:
                return _summary(theta.reshape(-1, size), r_hat)
        raise RuntimeError(f"NUTS has not converged: R-hat {r_hat:.3f}")  # pyright: ignore[reportPossiblyUnbound]

    def _sampler(self, draws: int) -> MCMC:
        if draws not in self._samplers:
            self._samplers[draws] = MCMC(NUTS(_model, target_accept_prob=0.9), num_warmup=WARM_UP, num_samples=draws,
                                         num_chains=CHAINS, chain_method="vectorized", progress_bar=False,
                                         jit_model_args=True)
        return self._samplers[draws]


def check_density(model: Model, dataset: Dataset) -> None:
    """Raise unless the JAX log joint is the model's, up to one constant, at random points of one dataset."""
    x, y, observed = _arrays(dataset)
    padded = Dataset(dataset.x.double(), None if dataset.y is None else dataset.y.double(), dataset.observed,
                     dataset.features)
    rng = np.random.default_rng(0)
    points = 0.5 * rng.standard_normal((16, x.shape[-1] + 1))
    ours = model.log_joint(torch.from_numpy(points)[None], padded)[0].numpy()
    theirs = np.array([log_joint(jnp.asarray(p), x, y, observed) for p in points])
    if not np.allclose(ours, theirs, rtol=1e-6, atol=1e-3):
        raise RuntimeError(f"the log joints differ by up to {np.abs(ours - theirs).max():.3g}")


@torch.no_grad()
def compare(estimator: Estimator, cases: Sequence[Case], draws: int) -> Figures:
    """Percent of datasets on which all means and sds agree with NUTS, and how far the worst parameter is off.

    Headline figures are of the named (constrained) parameters; ``..._unconstrained`` of theta.
    """
    reference = Reference()
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


def _summary(theta: np.ndarray, r_hat: float) -> Moments:
    named = np.concatenate([theta[:, :-1], np.exp(theta[:, -1:])], -1)
    rounded: dict[str, Any] = {f"{space}_{which}": np.round(getattr(values, function)(0), 6).tolist()
                               for space, values in (("theta", theta), ("named", named))
                               for which, function in (("mean", "mean"), ("sd", "std"))}
    return rounded | {"r_hat": [round(r_hat, 4)]}


def _arrays(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    padded = dataset.padded(max(_ROWS, dataset.x.shape[1]), dataset.x.shape[2])
    assert padded.y is not None
    return padded.x[0].double().numpy(), padded.y[0].double().numpy(), padded.observed[0].numpy()
