"""Methods of `posteria bench alternatives` that approximate one dataset at a time, on log densities in JAX.

Each compiles once per shape of dataset and computes in double precision. The densities are those of the referee: what a
user of these libraries would have written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch

from posteria.bench.alternatives_answers import Answer, Solver
from posteria.models import Model
from posteria.randomness import generator_for
from posteria.types import Dataset

# Starts are uniform between minus and plus this: paths should differ (Stan's starts), BFGS begins near zero.
_PATH_RADIUS, _NEAR = 2.0, 0.1
_FIRST_STEP, _LAST_STEP = 0.05, 0.0005


def build_laplace(model: Model, draws: int) -> Solver:
    """SciPy's BFGS from near zero, the Hessian there, and importance weights.

    Args:
        model: the model.
        draws: of the normal distribution around the mode.
    """
    import jax
    from scipy.optimize import minimize

    from posteria.referee.data import data_of, double_precision
    from posteria.referee.densities import density_of

    density = density_of(model)
    loss = jax.jit(jax.value_and_grad(lambda theta, data: -density(theta, data)))
    hessian = jax.jit(jax.hessian(lambda theta, data: -density(theta, data)))
    densities = jax.jit(jax.vmap(density, in_axes=(0, None)))

    def solve(dataset: Dataset, seed: int) -> Answer:
        size = model.layout_of(dataset).size
        start = _uniform(1, size, _NEAR, seed)[0]
        noise = torch.randn(draws, size, dtype=torch.double, generator=generator_for(seed)).numpy()
        with double_precision():
            data = data_of(dataset, 0)
            found = minimize(_as_numpy(loss, data), start, jac=True, method="BFGS")
            try:
                factor = numpy.linalg.cholesky(numpy.asarray(hessian(found.x, data)))
            except numpy.linalg.LinAlgError:
                return Answer.none(size)
            theta = found.x + numpy.linalg.solve(factor.T, noise.T).T
            log_joint = numpy.array(densities(theta, data))
        return Answer.weighted(*_tensors(theta, log_joint, -0.5 * (noise**2).sum(-1)))

    return solve


def build_pathfinder(model: Model, paths: int, draws: int) -> Solver:
    """BlackJAX's multi-path Pathfinder and importance weights (Zhang, Carpenter, Gelman & Vehtari 2022).

    Args:
        model: the model.
        paths: of L-BFGS, from different starts.
        draws: from each path.
    """
    import jax
    from blackjax.vi.multipathfinder import multi_approximate

    from posteria.referee.data import Data, data_of, double_precision
    from posteria.referee.densities import density_of

    density = density_of(model)

    def approximate(key: Any, starts: Any, data: Data) -> tuple[Any, Any, Any]:
        state, _ = multi_approximate(key, lambda theta: density(theta, data), starts, draws)
        return state.samples, state.logp, state.logq

    compiled = jax.jit(approximate)

    def solve(dataset: Dataset, seed: int) -> Answer:
        size = model.layout_of(dataset).size
        with double_precision():
            starts = _uniform(paths, size, _PATH_RADIUS, seed)
            found = compiled(jax.random.key(seed), starts, data_of(dataset, 0))
            samples, log_joint, log_q = (numpy.array(part) for part in found)
        return Answer.weighted(*_tensors(samples.reshape(-1, size), log_joint.ravel(), log_q.ravel()))

    return solve


def build_advi(model: Model, steps: int) -> Solver:
    """NumPyro's mean-field normal guide (Kucukelbir et al. 2017), by Adam with falling steps.

    Args:
        model: the model.
        steps: of Adam, one draw each.
    """
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO, init_to_value
    from numpyro.infer.autoguide import AutoNormal

    from posteria.referee.data import Data, data_of, double_precision
    from posteria.referee.densities import density_of

    density = density_of(model)

    def program(size: int) -> Callable[[Data], None]:
        def joint(data: Data) -> None:
            flat = numpyro.distributions.Normal(0.0, 1.0).expand((size,)).to_event(1).mask(False)
            theta: Any = numpyro.sample("theta", flat)
            numpyro.factor("log_joint", density(theta, data))

        return joint

    def fit(key: Any, start: Any, data: Data) -> tuple[Any, Any]:
        joint = program(len(start))
        guide = AutoNormal(joint, init_loc_fn=init_to_value(values={"theta": start}))
        optimizer = numpyro.optim.Adam(lambda step: _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** (step / steps))
        result = SVI(joint, guide, optimizer, Trace_ELBO()).run(key, steps, data, progress_bar=False)
        return result.params["theta_auto_loc"], result.params["theta_auto_scale"]

    compiled = jax.jit(fit)

    def solve(dataset: Dataset, seed: int) -> Answer:
        with double_precision():
            start = numpy.zeros(model.layout_of(dataset).size)
            mean, sd = (numpy.array(part) for part in compiled(jax.random.key(seed), start, data_of(dataset, 0)))
        return Answer(*_tensors(mean, sd))

    return solve


def _uniform(rows: int, size: int, radius: float, seed: int) -> numpy.ndarray:
    places = torch.rand(rows, size, dtype=torch.double, generator=generator_for(seed))
    return (radius * (2.0 * places - 1.0)).numpy()


def _as_numpy(loss: Callable[..., Any], data: Any) -> Callable[[Any], tuple[float, numpy.ndarray]]:
    def evaluate(theta: Any) -> tuple[float, numpy.ndarray]:
        value, gradient = loss(theta, data)
        return float(value), numpy.asarray(gradient)

    return evaluate


def _tensors(*arrays: numpy.ndarray) -> tuple[torch.Tensor, ...]:
    """As batches of one dataset."""
    return tuple(torch.from_numpy(numpy.ascontiguousarray(array))[None] for array in arrays)
