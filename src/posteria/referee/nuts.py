"""NUTS (Hoffman & Gelman 2014, as NumPyro has it): the reference that other posteriors are measured against."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy
import torch
from jax import Array
from numpyro.infer.hmc import hmc
from torch import Tensor

from posteria.errors import InputError
from posteria.metrics.convergence import Convergence
from posteria.models import Model
from posteria.randomness import generator_for
from posteria.referee.data import Data, data_of, double_precision
from posteria.referee.densities import density_of
from posteria.types import Dataset

# Starts are chosen among this many prior draws per chain: a far one can have no finite density.
_CANDIDATES = 8


@dataclass(frozen=True)
class NutsDraws:
    """Draws of NUTS, and how the chains went.

    Attributes:
        theta: (B, C, S, P) float64 draws, unconstrained; inactive parameters are drawn from the prior.
        convergence: R-hat, effective sample sizes and divergences after warm-up.
        attempts: (B,) long: runs that it took.
        seconds: (B,) wall time of each dataset, all its attempts, without compilation.
        compile_seconds: compilation in this run; zero where an earlier run had the same shapes.
    """

    theta: Tensor
    convergence: Convergence
    attempts: Tensor
    seconds: Tensor
    compile_seconds: float

    @property
    def divergences(self) -> Tensor:
        """(B,) long: transitions after warm-up that diverged."""
        return self.convergence.divergences


class NutsSampler:
    """NUTS for one model: compiled once per shape of dataset, then run on one dataset after the other.

    A dataset's result depends on its own rows, the seed and the settings, not on the datasets beside it.

    Args:
        model: any model with a likelihood; those with no density in JAX are slow, see
            :func:`posteria.referee.densities.density_of`.
        num_chains: C, run side by side.
        num_warmup: transitions that adapt step size and mass matrix; dropped.
        num_samples: S, draws kept per chain.
        target_accept: mean acceptance probability that the step size is adapted to.
        dense_mass: adapt a full mass matrix in place of a diagonal one.
        max_tree_depth: at most 2 to this power leapfrog steps per transition.
        attempts: a dataset whose R-hat is not below ``max_r_hat`` is run again, each time with warm-up and draws
            twice as long (the draws thinned to S), this many times in all. The last run is what is returned:
            look at its ``convergence``.
        max_r_hat: see ``attempts``.

    Raises:
        InputError: a number below its least.
        UnsupportedError: the model is a simulator.
    """

    def __init__(self, model: Model, *, num_chains: int = 4, num_warmup: int = 1000, num_samples: int = 1000,
                 target_accept: float = 0.9, dense_mass: bool = False, max_tree_depth: int = 10, attempts: int = 3,
                 max_r_hat: float = 1.01):
        leasts = {"num_chains": (num_chains, 2), "num_warmup": (num_warmup, 0), "num_samples": (num_samples, 4),
                  "max_tree_depth": (max_tree_depth, 1), "attempts": (attempts, 1)}
        for name, (value, least) in leasts.items():
            if not isinstance(value, int) or value < least:
                raise InputError.of(name, repr(value), f"a whole number, at least {least}")
        if not 0.0 < target_accept < 1.0:
            raise InputError.of("target_accept", repr(target_accept), "a probability between 0 and 1")
        self.model, self.density = model, density_of(model)
        self.num_chains, self.num_warmup, self.num_samples = num_chains, num_warmup, num_samples
        self.attempts, self.max_r_hat = attempts, max_r_hat
        self._kernel_settings = {"target_accept_prob": target_accept, "dense_mass": dense_mass,
                                 "max_tree_depth": max_tree_depth}
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._compile_seconds = 0.0

    def run(self, dataset: Dataset, seed: int = 0, init: Tensor | None = None) -> NutsDraws:
        """Draws for every dataset.

        Args:
            dataset: B datasets.
            seed: of all randomness.
            init: (B, C, P) theta to start from; by default prior draws.

        Raises:
            DataError: the dataset cannot come from this model.
            InputError: ``init`` has another shape, or a log joint that is not finite.
        """
        self.model.check(dataset)
        wide = dataset.double()
        self._check_init(wide, init)
        self._compile_seconds = 0.0
        parts = [self._run_one(wide[i:i + 1], seed, None if init is None else init[i:i + 1])
                 for i in range(len(wide))]
        theta, divergences, attempts, seconds = (torch.stack(part) for part in zip(*parts, strict=True))
        convergence = Convergence.of(theta, self.model.active(dataset), divergences)
        return NutsDraws(theta, convergence, attempts, seconds, self._compile_seconds)

    def _run_one(self, dataset: Dataset, seed: int, init: Tensor | None) -> tuple[Tensor, ...]:
        """theta (C, S, P), divergences, attempts and seconds of a batch of one."""
        own_seed, active = _own_seed(dataset, seed), self.model.active(dataset)
        start = self._prior_start(dataset, own_seed) if init is None else init.double()
        compiling, began = self._compile_seconds, time.perf_counter()
        attempt, (theta, diverged) = 1, self._sample(dataset, active[0], start[0], own_seed, 1)
        while attempt < self.attempts and not self._mixed(theta, active):
            attempt += 1
            theta, diverged = self._sample(dataset, active[0], start[0], own_seed + attempt, 2**(attempt - 1))
        seconds = time.perf_counter() - began - (self._compile_seconds - compiling)
        theta = torch.where(active[0], theta, self._prior_draws(dataset, own_seed, theta.shape))
        return theta, diverged.sum(), torch.tensor(attempt), torch.tensor(seconds, dtype=torch.float64)

    def _mixed(self, theta: Tensor, active: Tensor) -> bool:
        return bool(Convergence.of(theta[None], active).converged(self.max_r_hat, min_ess=0.0))

    def _sample(self, dataset: Dataset, active: Tensor, start: Tensor, seed: int, longer: int) -> (
            tuple[Tensor, Tensor]):
        """theta (C, S, P) and divergences (C, S), with warm-up and draws ``longer`` times as long."""
        with double_precision():
            keys = jax.random.split(jax.random.key(seed % 2**63), self.num_chains)
            arguments = (keys, start.numpy(), data_of(dataset, 0), active.numpy())
            theta, diverging = self._compiled_for(arguments, longer)(*arguments)
            return torch.from_numpy(numpy.array(theta)), torch.from_numpy(numpy.array(diverging))

    def _compiled_for(self, arguments: tuple[Any, ...], longer: int) -> Callable[..., Any]:
        key = (longer, *(leaf.shape for leaf in jax.tree.leaves(arguments)))
        if key not in self._compiled:
            began = time.perf_counter()
            chain = partial(self._chain, self.num_warmup * longer, longer)
            self._compiled[key] = jax.jit(jax.vmap(chain, in_axes=(0, 0, None, None))).lower(*arguments).compile()
            self._compile_seconds += time.perf_counter() - began
        return self._compiled[key]

    def _chain(self, num_warmup: int, thinning: int, key: Array, start: Array, data: Data, active: Array) -> (
            tuple[Array, Array]):
        """One chain: theta (S, P), and how many transitions diverged since the last draw (S,)."""
        initial, following = hmc(potential_fn_gen=self._potential, algo="NUTS")
        first = initial(start, num_warmup, rng_key=key, model_args=(data, active), **self._kernel_settings)

        def step(_: Any, carry: tuple[Any, Array]) -> tuple[Any, Array]:
            state = following(carry[0], (data, active), {})
            return state, carry[1] + (state.diverging & (state.i > num_warmup))

        def draw(state: Any, steps: Array) -> tuple[Any, tuple[Array, Array]]:
            state, diverged = jax.lax.fori_loop(0, steps, step, (state, jnp.zeros((), int)))
            return state, (state.z, diverged)

        # Warm-up happens before the first draw, in the same loop: the transition is compiled once.
        steps = jnp.full(self.num_samples, thinning).at[0].add(num_warmup)
        return jax.lax.scan(draw, first, steps)[1]

    def _potential(self, data: Data, active: Array) -> Callable[[Array], Array]:
        """Minus the log joint; inactive parameters, which it ignores, get a standard normal to move in."""
        def potential(theta: Array) -> Array:
            idle = jnp.where(active, 0.0, theta)
            return 0.5 * (idle**2).sum() - self.density(theta, data)

        return potential

    def _prior_start(self, dataset: Dataset, seed: int) -> Tensor:
        """(1, C, P) prior draws whose log joint is finite, where there are enough of them."""
        theta = self.model.sample_prior(dataset, _CANDIDATES * self.num_chains, generator_for(seed, 1)).double()
        with torch.no_grad():
            finite = torch.isfinite(self.model.log_joint(theta, dataset))
        order = finite.long().argsort(dim=-1, descending=True, stable=True)[:, :self.num_chains]
        return theta.gather(1, order[..., None].expand(-1, -1, theta.shape[-1]))

    def _prior_draws(self, dataset: Dataset, seed: int, shape: torch.Size) -> Tensor:
        """(C, S, P) for the inactive parameters."""
        draws = self.model.sample_prior(dataset, shape[0] * shape[1], generator_for(seed, 2))
        return draws[0].double().reshape(shape)

    def _check_init(self, dataset: Dataset, init: Tensor | None) -> None:
        if init is None:
            return
        expected = (len(dataset), self.num_chains, self.model.layout_of(dataset).size)
        if tuple(init.shape) != expected:
            raise InputError.of("init", f"shape {tuple(init.shape)}", f"shape {expected}: datasets, chains, parameters")
        with torch.no_grad():
            log_joint = self.model.log_joint(init.double(), dataset)
        if not torch.isfinite(log_joint).all():
            raise InputError.of("init", "a theta whose log joint is not finite", "points inside the model's support")


def run_nuts(model: Model, dataset: Dataset, *, num_chains: int = 4, num_warmup: int = 1000, num_samples: int = 1000,
             seed: int = 0, init: Tensor | None = None, **settings: Any) -> NutsDraws:
    """NUTS draws for every dataset, one dataset after the other with one compilation.

    Args:
        model: any model with a likelihood.
        dataset: B datasets.
        num_chains: C.
        num_warmup: transitions that adapt the sampler.
        num_samples: S.
        seed: of all randomness.
        init: (B, C, P) theta to start from; by default prior draws.
        settings: the other arguments of :class:`NutsSampler`.

    Raises:
        InputError: a setting that cannot be, or a dataset that does not fit the model.

    Examples:
        >>> from posteria.models import GaussianMean
        >>> draws = run_nuts(GaussianMean(), Dataset.of([[0.5], [1.5]]), num_warmup=200, num_samples=250)
        >>> draws.theta.shape
        torch.Size([1, 4, 250, 1])
    """
    sampler = NutsSampler(model, num_chains=num_chains, num_warmup=num_warmup, num_samples=num_samples, **settings)
    return sampler.run(dataset, seed, init)


def _own_seed(dataset: Dataset, seed: int) -> int:
    """A seed out of the real entries of one dataset, so that order, batching and padding of rows change nothing."""
    x = dataset.x[0][dataset.observed[0]][:, dataset.features[0]].contiguous()
    y = torch.zeros(0) if dataset.y is None else dataset.y[0][dataset.observed[0]]
    digest = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).digest()
    return (int.from_bytes(digest[:6], "big") + 1_000_003 * seed) % 2**62
