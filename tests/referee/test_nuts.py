"""NUTS against exact posteriors; seeds, padding, options and errors."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from dataclasses import replace
from typing import Any

import arviz
import pytest
import torch
from torch import Tensor
from torch import distributions as d
from torch.distributions import constraints

import posteria.referee
from posteria.errors import InputError, UnsupportedError
from posteria.models import CustomModel, GaussianMean, LinearRegression, Model, Parameter
from posteria.randomness import generator_for
from posteria.referee import NutsDraws, NutsSampler, run_nuts
from posteria.tasks import SimulatedTask
from posteria.types import Dataset


def _draw(model: Model, num: int, rows: int, columns: int, seed: int = 0) -> Dataset:
    return SimulatedTask(model, rows=(rows, rows), columns=(columns, columns)).draw(num, generator_for(seed))[0]


def _effective_size(draws: Tensor) -> Tensor:
    """(B, P) for the mean of draws (B, C, S, P), as they are and not by ranks."""
    batch, chains, length, size = draws.shape
    series = draws.permute(1, 2, 0, 3).reshape(chains, length, -1).numpy()
    sizes = arviz.ess(arviz.convert_to_dataset({"draws": series}), method="mean")["draws"]
    return torch.from_numpy(sizes.to_numpy()).reshape(batch, size)


def _z_scores(draws: NutsDraws, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of posterior means and sds (B, P) in Monte Carlo standard errors, for normal posteriors.

    Squares forget more slowly than draws, which NUTS makes antithetic: they have an effective size of their own.
    """
    theta = draws.theta
    flat = theta.flatten(1, 2)
    of_mean = (flat.mean(1) - mean) / (sd / _effective_size(theta).sqrt())
    size = _effective_size((theta - mean[:, None, None]) ** 2)
    return of_mean, (flat.std(1) / sd - 1.0) * (2.0 * size).sqrt()


def test_posteriors_are_exact_and_inactive_parameters_are_prior_draws() -> None:
    model = LinearRegression(priors={"weights": d.Normal(3.0, 0.5)})
    dataset = _draw(model, 4, rows=24, columns=2)
    draws = run_nuts(model, dataset.padded(26, 3), num_warmup=500, num_samples=500)
    assert draws.theta.shape == (4, 4, 500, 4)
    assert draws.theta.dtype == torch.float64
    assert draws.convergence.active[0].tolist() == [True, True, False, True]
    assert draws.convergence.converged(max_r_hat=1.02).all()
    idle = draws.theta[..., 2].flatten()  # 8,000 independent draws
    assert float((idle.mean() - 3.0).abs()) < 4 * 0.5 / 8000**0.5
    assert float((idle.std() / 0.5 - 1.0).abs()) < 4 / 16000**0.5
    exact = model.exact_posterior(dataset)
    of_mean, of_sd = _z_scores(replace(draws, theta=draws.theta[..., [0, 1, 3]]), exact.mean, exact.stddev)
    assert of_mean.abs().max() < 4.0
    assert of_sd.abs().max() < 4.0


@pytest.mark.slow
@pytest.mark.parametrize("dense_mass", [False, True])
def test_means_and_sds_of_25_weights_are_exact(dense_mass: bool) -> None:
    model = LinearRegression()
    dataset = _draw(model, 4, rows=64, columns=25)
    draws = run_nuts(model, dataset, dense_mass=dense_mass)
    exact = model.exact_posterior(dataset)
    of_mean, of_sd = _z_scores(draws, exact.mean, exact.stddev)
    assert draws.convergence.converged().all()
    # 104 of each: one beyond 4.5 would happen once in 1,400 runs.
    assert of_mean.abs().max() < 4.5
    assert of_sd.abs().max() < 4.5


SMALL: dict[str, Any] = {"num_chains": 2, "num_warmup": 150, "num_samples": 100, "attempts": 1}


@pytest.fixture(scope="module")
def sampler() -> NutsSampler:
    return NutsSampler(GaussianMean(), **SMALL)


def test_datasets_give_alone_what_they_give_together(sampler: NutsSampler) -> None:
    dataset = _draw(sampler.model, 3, rows=8, columns=2)
    together = sampler.run(dataset)
    alone = sampler.run(dataset[1:2])
    assert together.compile_seconds >= 0.0
    assert alone.compile_seconds == 0.0
    assert torch.equal(together.theta[1:2], alone.theta)
    backwards = sampler.run(dataset[torch.tensor([2, 1, 0])])
    assert torch.equal(together.theta, backwards.theta.flip(0))


def test_seeds_repeat_and_differ(sampler: NutsSampler) -> None:
    dataset = _draw(sampler.model, 1, rows=8, columns=2)
    first, again, other = (sampler.run(dataset, seed) for seed in (0, 0, 1))
    assert torch.equal(first.theta, again.theta)
    assert not torch.equal(first.theta, other.theta)
    assert not torch.equal(first.theta[:, 0], first.theta[:, 1])


def test_own_models_are_refereed_through_torch() -> None:
    """A gamma prior and exponential waiting times: the posterior is Gamma(2 + n, 1 + sum y)."""
    rate = Parameter("rate", support=constraints.positive, prior=d.Gamma(2.0, 1.0))
    model = CustomModel([rate], predict=lambda params, x: d.Exponential(params["rate"].expand(x.shape[0])))
    dataset = Dataset.of(torch.zeros(6, 1), torch.tensor([0.5, 1.0, 0.2, 0.1, 2.0, 0.7]))
    draws = run_nuts(model, dataset, num_chains=2, num_warmup=150, num_samples=250, attempts=1)
    values = draws.theta.exp()
    exact = d.Gamma(8.0, 1.0 + 4.5)
    error = exact.stddev / draws.convergence.ess_bulk.sqrt()
    assert float(((values.mean() - exact.mean) / error).abs()) < 4.0


def test_chains_that_do_not_mix_are_run_again(sampler: NutsSampler) -> None:
    stricter = copy.copy(sampler)
    stricter.attempts, stricter.max_r_hat = 2, 0.0
    dataset = _draw(sampler.model, 1, rows=8, columns=2)
    once, twice = sampler.run(dataset), stricter.run(dataset)
    assert (once.attempts.tolist(), twice.attempts.tolist()) == ([1], [2])
    assert twice.theta.shape == once.theta.shape
    assert not torch.equal(twice.theta, once.theta)


def test_starts_are_taken_and_checked(sampler: NutsSampler) -> None:
    dataset = _draw(sampler.model, 1, rows=8, columns=2)
    start = torch.zeros(1, 2, 2)
    assert torch.equal(sampler.run(dataset, init=start).theta, sampler.run(dataset, init=start).theta)
    with pytest.raises(InputError, match=r"init: got shape \(1, 3, 2\); takes shape \(1, 2, 2\)"):
        sampler.run(dataset, init=torch.zeros(1, 3, 2))
    with pytest.raises(InputError, match="init: got a theta whose log joint is not finite"):
        sampler.run(dataset, init=start.fill_(torch.nan))


@pytest.mark.parametrize(("setting", "value"), [("num_chains", 1), ("num_samples", 0), ("num_warmup", -1),
                                                ("attempts", 0), ("max_tree_depth", 0), ("target_accept", 1.0)])
def test_settings_that_cannot_be(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{setting}: got {value}; takes"):
        NutsSampler(GaussianMean(), **{setting: value})


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("posteria.referee.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numpyro.infer.hmc", None)
    with pytest.raises(UnsupportedError, match=r"pip install posteria\[numpyro\]"):
        importlib.reload(posteria.referee)
    monkeypatch.undo()
    importlib.reload(posteria.referee)


def test_importing_posteria_does_not_import_jax() -> None:
    code = "import sys, posteria; sys.exit('jax' in sys.modules or 'posteria.referee' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
