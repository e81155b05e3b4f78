"""Methods of `posteria bench alternatives` that run NUTS on one dataset at a time: NumPyro's and nutpie's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch

from posteria.bench.alternatives_answers import Answer, Solver
from posteria.models import Model
from posteria.refinement.weights import load_arviz
from posteria.types import Dataset

_CHAINS = 4
_TARGET_ACCEPT = 0.8  # the default of both libraries


def build_numpyro(model: Model, warmup: int, draws: int) -> Solver:
    """NumPyro's NUTS, four chains side by side, compiled once.

    Args:
        model: the model.
        warmup: transitions per chain before the draws.
        draws: per chain.
    """
    from posteria.referee import NutsSampler

    sampler = NutsSampler(model, num_chains=_CHAINS, num_warmup=warmup, num_samples=draws,
                          target_accept=_TARGET_ACCEPT, attempts=1)
    return lambda dataset, seed: Answer.of(sampler.run(dataset, seed).theta.flatten(1, 2))


def build_nutpie(model: Model, warmup: int, draws: int) -> Solver:
    """nutpie's NUTS, four chains on as many threads as torch has, on a gradient that JAX has compiled.

    Args:
        model: the model.
        warmup: transitions per chain before the draws.
        draws: per chain.
    """
    load_arviz()  # nutpie imports it, and its announcement is no news here
    import nutpie

    from posteria.referee.data import data_of, double_precision

    log_prob, compiled = _gradient_of(model), {}

    def solve(dataset: Dataset, seed: int) -> Answer:
        size = model.layout_of(dataset).size
        if size not in compiled:
            compiled[size] = _nutpie_model(log_prob, size)
        with double_precision():
            posed = compiled[size].with_data(data=data_of(dataset, 0))
        trace = nutpie.sample(posed, draws=draws, tune=warmup, chains=_CHAINS, cores=torch.get_num_threads(), seed=seed,
                              progress_bar=False)
        theta = torch.from_numpy(numpy.array(trace.posterior["theta"]))  # type: ignore[union-attr]
        return Answer.of(theta.flatten(0, 1)[None])

    return solve


def _gradient_of(model: Model) -> Callable[..., tuple[float, numpy.ndarray]]:
    import jax

    from posteria.referee.data import double_precision
    from posteria.referee.densities import density_of

    gradient = jax.jit(jax.value_and_grad(density_of(model)))

    def log_prob(theta: numpy.ndarray, data: Any) -> tuple[float, numpy.ndarray]:
        with double_precision():  # of this thread, which is nutpie's
            value, score = gradient(theta, data)
            return float(value), numpy.asarray(score)

    return log_prob


def _nutpie_model(log_prob: Callable[..., tuple[float, numpy.ndarray]], size: int) -> Any:
    from nutpie.compiled_pyfunc import from_pyfunc

    def unchanged(theta: numpy.ndarray, data: Any) -> dict[str, numpy.ndarray]:
        return {"theta": theta}

    return from_pyfunc(size, lambda: log_prob, lambda *seeds: unchanged, [numpy.dtype("float64")], [(size,)], ["theta"],
                       shared_data={"data": None})
