"""Baselines on the library's models: exact posteriors, padding, and honest results."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from posteria.baselines import BASELINES
from posteria.errors import InputError, UnsupportedError
from posteria.metrics.convergence import ess_bulk
from posteria.models import (
    CustomModel,
    GaussianMixture,
    LinearClassification,
    LinearRegression,
    Model,
    NeuralRegression,
    Parameter,
)
from posteria.randomness import generator_for
from posteria.reference import BaselineRun, Empirical, run_baseline, xavier_scale
from posteria.types import Dataset


def simulated(model: Model, columns: int, rows: int = 60, batch: int = 4, seed: int = 0) -> Dataset:
    x = model.draw_inputs(batch, rows, columns, generator_for(seed, 1))
    inputs = Dataset(x, None, torch.ones(batch, rows, dtype=torch.bool), torch.ones(batch, columns, dtype=torch.bool))
    theta = model.sample_prior(inputs, 1, generator_for(seed, 2))[:, 0]
    return model.simulate(theta, inputs, generator_for(seed, 3))


def errors_in_se(done: BaselineRun, dataset: Dataset) -> Tensor:
    """Errors of posterior means and variances against the exact posterior, in Monte Carlo standard errors."""
    exact, active = done.model.exact_posterior(dataset), done.model.active(dataset)
    shares = (done.theta - exact.mean[:, None, None]).square() / exact.variance[:, None, None]
    mean = (done.theta.mean((1, 2)) - exact.mean) / (exact.variance / ess_bulk(done.theta)).sqrt()
    second = (shares.mean((1, 2)) - 1) / (2 / ess_bulk(shares)).sqrt()
    return torch.cat([mean[active], second[active]]).abs()


@pytest.mark.parametrize(("method", "settings"), [
    ("hmc", {}), ("chees", {"num_samples": 200}), ("mala", {"num_samples": 200}), ("laplace", {}),
])
def test_linear_regression_agrees_with_the_exact_posterior(method: str, settings: dict[str, Any]) -> None:
    model = LinearRegression()
    dataset = simulated(model, 2)
    done = run_baseline(model, dataset, method, **settings)
    assert done.converged.all()
    assert done.notes == ()
    assert done.theta.dtype == torch.float64
    assert errors_in_se(done, dataset).max() < 4.0


def test_hmc_in_25_dimensions() -> None:
    model = LinearRegression()
    dataset = simulated(model, 25, rows=80, batch=2)
    done = run_baseline(model, dataset, num_warmup=200, num_samples=200)
    assert done.converged.all()
    assert errors_in_se(done, dataset).max() < 4.0


@pytest.mark.slow
def test_hmc_in_100_dimensions() -> None:
    model = LinearRegression()
    dataset = simulated(model, 100, rows=100, batch=10)
    done = run_baseline(model, dataset)
    assert done.converged.all()
    assert errors_in_se(done, dataset).max() < 4.7  # of 2,020 figures


@pytest.mark.slow
def test_hmc_converges_on_a_hundred_classification_datasets() -> None:
    model = LinearClassification()
    done = run_baseline(model, simulated(model, 2, rows=96, batch=100))
    assert done.converged.all()
    assert done.convergence is not None
    assert float(done.convergence.worst["r_hat"].max()) < 1.01


def test_padding_changes_nothing_but_the_draws() -> None:
    model = LinearRegression()
    dataset = simulated(model, 2, batch=2).padded(70, 4)
    done = run_baseline(model, dataset, num_warmup=200)
    inactive = ~model.active(dataset)
    assert (done.theta.movedim(-1, 1)[inactive] == 0).all()
    assert errors_in_se(done, dataset).max() < 4.0
    assert list(done.summary().loc[0].index) == ["weights[0]", "weights[1]", "intercept"]


def test_seeds_repeat() -> None:
    model = LinearRegression()
    dataset = simulated(model, 1, batch=2)
    sizes: dict[str, Any] = {"num_chains": 2, "num_samples": 10, "num_warmup": 10, "rounds": 1}
    first, again, other = (run_baseline(model, dataset, seed=seed, **sizes).theta for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().amax() > 0


def test_inferred_noise_keeps_its_prior_and_support() -> None:
    model = LinearRegression(noise="inferred")
    done = run_baseline(model, simulated(model, 2, batch=2), num_warmup=50, num_samples=100, num_chains=4,
                        rounds=1)
    assert (done.posterior.sample(50, seed=0)["noise_scale"] > 0).all()
    assert done.theta.shape == (2, 4, 100, 4)


# -- optimization ------------------------------------------------------------------------------
def test_maximum_likelihood_is_least_squares_and_map_is_ridge() -> None:
    model = LinearRegression()
    dataset = simulated(model, 2, batch=2)
    assert dataset.y is not None
    design = torch.cat([dataset.x, torch.ones(2, 60, 1)], -1).double()
    settings: dict[str, Any] = {"num_chains": 2, "iterations": 1500, "rates": (0.01, 0.001), "start": "xavier"}
    for objective, ridge in (("mle", 0.0), ("map", 0.25)):
        gram = design.mT @ design + ridge * torch.eye(3)
        expected = torch.linalg.solve(gram, design.mT @ dataset.y.double()[..., None])[..., 0]
        done = run_baseline(model, dataset, "optimization", objective=objective, **settings)
        assert done.theta.shape == (2, 2, 1, 3)
        torch.testing.assert_close(done.theta[:, :, 0], expected[:, None].expand(2, 2, 3), rtol=0, atol=1e-4)


def test_starts() -> None:
    model, prior = NeuralRegression(hidden=50), {"num_chains": 400}
    dataset = simulated(model, 3, batch=2)
    began = {start: run_baseline(model, dataset, "prior", start=start, **prior).theta[:, :, 0]
             for start in ("prior", "zeros", "xavier")}
    assert (began["zeros"] == 0).all()
    assert float(began["prior"].std()) == pytest.approx(1.0, abs=0.02)
    block = model.layout(3)["hidden_weights"]
    assert float(began["xavier"][..., block.span].std()) == pytest.approx((2 / 53) ** 0.5, rel=0.02)
    assert (began["xavier"][..., model.layout(3)["hidden_bias"].span] == 0).all()


def test_xavier_counts_the_real_features() -> None:
    scale = xavier_scale(LinearRegression().layout(4), torch.tensor([4, 1]))
    torch.testing.assert_close(scale, torch.tensor([[(2 / 5) ** 0.5] * 4 + [0.0], [1.0] * 4 + [0.0]]))


# -- results -----------------------------------------------------------------------------------
def test_chains_in_different_modes_are_reported() -> None:
    model = GaussianMixture()
    dataset = simulated(model, 2, rows=100, batch=3, seed=4)
    done = run_baseline(model, dataset, num_warmup=100, num_samples=100, rounds=1)
    assert not done.converged.all()
    assert any("have not converged (R-hat up to" in note for note in done.notes)
    table = done.summary(num_samples=100)
    assert table["converged"].groupby(level="dataset").first().tolist() == done.converged.tolist()


def test_the_posterior_predicts_but_has_no_density() -> None:
    model = LinearRegression()
    done = run_baseline(model, simulated(model, 2, batch=2), "laplace", num_chains=4, num_samples=50)
    posterior = done.posterior
    assert posterior.predict(num_samples=20, seed=0).mean.shape == (2, 60)
    assert posterior.mean["weights"].dtype == torch.float32
    assert "converged" not in done.summary(num_samples=50)
    with pytest.raises(UnsupportedError, match="log_prob: this posterior consists of draws"):
        posterior.log_prob(posterior.sample_theta(3, seed=0))


def test_empirical_draws_are_different_until_there_are_no_more(generator: torch.Generator) -> None:
    theta = torch.arange(12.0).reshape(2, 6, 1)
    draws = Empirical(theta, torch.ones(2, 1, dtype=torch.bool))
    assert sorted(draws.rsample(6, generator)[0, :, 0].tolist()) == [0, 1, 2, 3, 4, 5]
    counts = draws.rsample(15, generator)[1, :, 0].unique(return_counts=True)[1]
    assert sorted(counts.tolist()) == [2, 2, 2, 3, 3, 3]


def test_settings_are_recorded() -> None:
    model = LinearRegression()
    done = run_baseline(model, simulated(model, 1, batch=1), num_chains=2, num_samples=5, num_warmup=5, rounds=1)
    assert done.settings == {"num_chains": 2, "num_samples": 5, "thin": 1, "rounds": 1, "max_r_hat": 1.01,
                             "min_ess": 400.0, "start": "prior", "objective": "map", "num_warmup": 5}


# -- errors ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "settings", "message"), [
    ("gibbs", {}, r"method: got 'gibbs'; takes one of \['chees', 'hmc'"),
    ("hmc", {"num_chains": 0}, "num_chains: got 0"), ("hmc", {"num_samples": -3}, "num_samples: got -3"),
    ("hmc", {"num_leaps": 3}, r"settings: got \['num_leaps'\]; takes for hmc"),
    ("hmc", {"start": "mode"}, "start: got 'mode'"), ("hmc", {"objective": "mle"}, "objective: got 'mle'"),
    ("optimization", {"objective": "mode"}, "objective: got 'mode'"),
    ("optimization", {"num_samples": 4}, "num_samples: got 4; takes 1 for optimization"),
    ("chees", {"num_chains": 1}, "num_chains: got 1"),
])
def test_wrong_settings_are_explained(method: str, settings: dict[str, Any], message: str) -> None:
    model = LinearRegression()
    with pytest.raises(InputError, match=message):
        run_baseline(model, simulated(model, 1, batch=1), method, **settings)


def test_simulators_have_no_reference() -> None:
    model = CustomModel([Parameter("mean")], simulate=lambda x, mean: x[..., 0] + mean[..., None])
    dataset = Dataset.of(torch.zeros(1, 5, 1), torch.zeros(1, 5))
    with pytest.raises(UnsupportedError, match="can only be simulated"):
        run_baseline(model, dataset)


def test_a_missing_numpyro_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith(("posteria.referee", "numpyro"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numpyro", None)
    monkeypatch.setitem(sys.modules, "numpyro.infer", None)
    monkeypatch.setitem(sys.modules, "numpyro.infer.hmc", None)
    model = LinearRegression()
    with pytest.raises(UnsupportedError, match="numpyro"):
        run_baseline(model, simulated(model, 1, batch=1), "nuts")


def test_every_baseline_runs_on_a_model() -> None:
    model = LinearRegression()
    dataset = simulated(model, 2, batch=2)
    short: dict[str, dict[str, Any]] = {"optimization": {"iterations": 3}, "prior": {}, "laplace": {}}
    for name in BASELINES:
        sizes = short.get(name, {"num_warmup": 3, "num_samples": 4, "rounds": 1})
        done = run_baseline(model, dataset, name, num_chains=2, **sizes)
        assert torch.isfinite(done.theta).all(), name
        assert (done.convergence is None) == (name in short)
