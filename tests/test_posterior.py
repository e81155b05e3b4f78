"""Posterior: names, constraints, Jacobians, predictions, tables, ArviZ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import LogNormal, Normal

from posteria.errors import DataError, InputError
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.posterior import Posterior
from posteria.types import Dataset
from tests.doubles import DiagonalGaussian, ScaledCounts, gaussian_for


def regression(batch: int = 1, rows: int = 20, columns: int = 2, features: list[list[bool]] | None = None) -> Posterior:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, rows, columns, generator=generator)
    y = x.sum(-1) + 0.1 * torch.randn(batch, rows, generator=generator)
    model = LinearRegression("inferred")
    dataset = Dataset.of(x, y, features=None if features is None else torch.tensor(features))
    return Posterior(model, dataset, gaussian_for(model, dataset))


def counts(features: list[list[bool]]) -> Posterior:
    model, generator = ScaledCounts(), torch.Generator().manual_seed(2)
    batch, columns = len(features), len(features[0])
    dataset = Dataset.of(torch.rand(batch, 5, columns, generator=generator), torch.ones(batch, 5),
                         features=torch.tensor(features))
    return Posterior(model, dataset, gaussian_for(model, dataset))


def test_draws_are_named_and_constrained() -> None:
    draws = regression(batch=3).sample(50, seed=0)
    assert {name: tuple(v.shape) for name, v in draws.items()} == {
        "weights": (3, 50, 2), "intercept": (3, 50), "noise_scale": (3, 50)}
    assert (draws["noise_scale"] > 0).all()


def test_seeds_repeat_and_none_does_not() -> None:
    posterior = regression()
    once, again = posterior.sample_theta(10, seed=5), posterior.sample_theta(10, seed=5)
    assert torch.equal(once, again)
    assert not torch.equal(posterior.sample_theta(10), posterior.sample_theta(10))
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(posterior.sample_theta(4, generator), posterior.sample_theta(4, generator))


def test_a_seed_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    posterior = regression()
    posterior.predict(seed=1, num_samples=5).draws.sum()
    posterior.sample(5)
    assert torch.equal(state, torch.get_rng_state())


def test_features_no_dataset_has_are_dropped() -> None:
    posterior = regression(columns=4, features=[[True, False, True, False]])
    draws = posterior.sample(10, seed=0)
    theta = posterior.sample_theta(10, seed=0)
    assert torch.equal(draws["weights"], theta[..., [0, 2]])
    assert list(posterior.summary().index) == ["weights[0]", "weights[2]", "intercept", "noise_scale"]


def test_log_prob_of_named_values_has_the_jacobian() -> None:
    """One log-normal and one real parameter: the density is known in closed form."""
    model = LinearRegression("inferred")
    dataset = Dataset.of(torch.zeros(3, 1), torch.zeros(3))
    location, scale = torch.tensor([[0.3, -0.2, 0.5]]), torch.tensor([[0.5, 0.7, 0.4]])
    posterior = Posterior(model, dataset, DiagonalGaussian(location, scale, model.active(dataset)))
    draws = posterior.sample(100, seed=0)
    expected = (Normal(0.3, 0.5).log_prob(draws["weights"][..., 0]) + Normal(-0.2, 0.7).log_prob(draws["intercept"])
                + LogNormal(0.5, 0.4).log_prob(draws["noise_scale"]))
    torch.testing.assert_close(posterior.log_prob(draws), expected, rtol=1e-4, atol=1e-4)


def test_log_prob_of_named_values_ignores_inactive_features() -> None:
    full, some = counts([[True, True, True]]), counts([[True, True, True, False]])
    assert some.sample(1, seed=0)["weights"].shape[-1] == 2
    theta = some.sample_theta(7, seed=0)
    named = some.constrain(theta)
    by_hand = some.log_prob(theta) - named["weights"].log().sum(-1)
    u = theta[..., -1]
    by_hand = by_hand - (math.log(5.0) + torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u))
    torch.testing.assert_close(some.log_prob(named), by_hand, rtol=1e-4, atol=1e-4)
    assert full.log_prob(full.sample(3, seed=0)).shape == (1, 3)


def test_log_prob_outside_the_support_is_minus_infinity() -> None:
    posterior = regression()
    draws = posterior.sample(4, seed=0)
    draws["noise_scale"][0, 1] = -1.0
    assert torch.isneginf(posterior.log_prob(draws)[0]).tolist() == [False, True, False, False]


def test_mean_and_sd_agree_with_the_closed_form() -> None:
    posterior = regression(batch=2)
    gaussian = posterior.distribution
    assert isinstance(gaussian, DiagonalGaussian)
    error = (posterior.mean["weights"] - gaussian.location[:, :2]) / (gaussian.scale[:, :2] / math.sqrt(4000))
    assert error.abs().max() < 4
    torch.testing.assert_close(posterior.sd["weights"], gaussian.scale[:, :2], rtol=0.06, atol=0)
    lognormal = LogNormal(gaussian.location[:, 3], gaussian.scale[:, 3])
    assert ((posterior.mean["noise_scale"] - lognormal.mean) / (lognormal.stddev / math.sqrt(4000))).abs().max() < 4


def test_one_of_many_is_the_same_posterior() -> None:
    posterior = regression(batch=3, columns=3, features=[[True, True, True], [True, False, True], [True, False, False]])
    assert len(posterior) == 3
    assert [len(p) for p in posterior] == [1, 1, 1]
    one = posterior[1]
    assert torch.equal(one.sample_theta(8, seed=0), posterior.sample_theta(8, seed=0)[1:2])
    assert one.sample(8, seed=0)["weights"].shape == (1, 8, 2)
    theta = posterior.sample_theta(8, seed=0)
    torch.testing.assert_close(one.log_prob(theta[1:2]), posterior.log_prob(theta)[1:2])
    assert len(posterior[1:]) == 2
    assert torch.equal(posterior[-1].active, posterior.active[2:])
    with pytest.raises(IndexError, match="takes -3 to 2"):
        posterior[3]


def test_picked_implements_the_distribution_protocol() -> None:
    posterior = regression(batch=3)
    one = posterior[2].distribution
    draws, log_prob = one.rsample_and_log_prob(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(one.detach().log_prob(draws), log_prob)
    size = draws.shape[-1]
    divergence, whole = (d.kl_to_normal(torch.zeros(size), torch.ones(size)) for d in (one, posterior.distribution))
    assert divergence is not None
    assert whole is not None
    torch.testing.assert_close(divergence, whole[2:])


def test_prediction_moments_and_density() -> None:
    posterior = regression(batch=2)
    x = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    prediction = posterior.predict(x, num_samples=4000, seed=0)
    assert prediction.draws.shape == (2, 4000, 6)
    assert prediction.mean.shape == (2, 6)
    error = (prediction.draws.mean(1) - prediction.mean) / (prediction.sd / math.sqrt(4000))
    assert error.abs().max() < 4
    torch.testing.assert_close(prediction.draws.std(1), prediction.sd, rtol=0.08, atol=0)
    y = torch.zeros(2, 6)
    by_hand = prediction.distribution.log_prob(y[:, None]).exp().mean(1).log()
    torch.testing.assert_close(prediction.log_prob(y), by_hand, rtol=1e-4, atol=1e-4)
    low, high = prediction.interval(0.9)
    inside = ((prediction.draws >= low[:, None]) & (prediction.draws <= high[:, None])).double().mean()
    assert abs(float(inside) - 0.9) < 0.001


def test_predictive_density_integrates_to_one() -> None:
    prediction = regression().predict(torch.zeros(1, 2), num_samples=200, seed=0)
    grid = torch.linspace(-30, 30, 6001)
    density = torch.stack([prediction.log_prob(value[None]) for value in grid]).exp()[:, 0, 0]
    assert abs(float(torch.trapezoid(density, grid)) - 1) < 1e-3


def test_predictions_repeat_with_a_seed() -> None:
    posterior = regression()
    first, second = (posterior.predict(num_samples=5, seed=9) for _ in range(2))
    first.mean.sum()
    assert torch.equal(first.draws, second.draws)


def test_predict_takes_the_columns_the_dataset_has() -> None:
    posterior = regression(columns=4, features=[[True, False, True, False]])
    narrow = posterior.predict([[1.0, 2.0]], seed=0).mean
    wide = posterior.predict([[1.0, 9.0, 2.0, 9.0]], seed=0).mean
    torch.testing.assert_close(narrow, wide)
    with pytest.raises(DataError, match="x: got 3 columns; takes 2 columns"):
        posterior.predict([[1.0, 2.0, 3.0]])


def test_class_probabilities() -> None:
    model = LinearClassification(classes=3, temperature=1.0)
    dataset = Dataset.of(torch.randn(10, 2, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3)
    prediction = Posterior(model, dataset, gaussian_for(model, dataset)).predict(num_samples=100, seed=0)
    assert prediction.is_class
    assert prediction.mean.shape == (1, 10, 3)
    torch.testing.assert_close(prediction.mean.sum(-1), torch.ones(1, 10))
    assert dataset.y is not None
    chosen = prediction.mean.gather(-1, dataset.y.long()[..., None])[..., 0]
    torch.testing.assert_close(prediction.log_prob(dataset.y), chosen.log(), rtol=1e-4, atol=1e-4)
    assert set(prediction.draws.unique().tolist()) <= {0, 1, 2}
    with pytest.raises(InputError, match="sd"):
        _ = prediction.sd


def test_summary_of_one_dataset() -> None:
    posterior = regression()
    summary = posterior.summary(quantiles=(0.1, 0.5))
    assert list(summary.columns) == ["mean", "sd", "10%", "50%"]
    assert summary.index.name == "parameter"
    gaussian = posterior.distribution
    assert isinstance(gaussian, DiagonalGaussian)
    assert abs(summary.loc["intercept", "50%"] - float(gaussian.location[0, 2])) < 0.03
    with pytest.raises(InputError, match="quantiles"):
        posterior.summary(quantiles=(2.0,))


def test_summary_of_several_datasets_drops_what_each_lacks() -> None:
    summary = regression(batch=2, features=[[True, True], [False, True]]).summary()
    assert summary.index.names == ["dataset", "parameter"]
    assert list(summary.loc[0].index) == ["weights[0]", "weights[1]", "intercept", "noise_scale"]
    assert list(summary.loc[1].index) == ["weights[1]", "intercept", "noise_scale"]


def test_names_of_features_and_classes() -> None:
    posterior = regression().with_coords(features=["age", "height"])
    assert list(posterior.to_frame(5, seed=0).columns) == ["weights[age]", "weights[height]", "intercept",
                                                           "noise_scale"]
    assert list(posterior[0].summary().index)[:2] == ["weights[age]", "weights[height]"]
    with pytest.raises(InputError, match="features: got 1 labels; takes 2 labels"):
        regression().with_coords(features=["age"])
    with pytest.raises(InputError, match="'colour'"):
        regression().with_coords(colour=["red"])


def test_frames_of_several_datasets() -> None:
    frame = regression(batch=2, features=[[True, True], [False, True]]).to_frame(3, seed=0)
    assert frame.shape == (6, 4)
    assert frame.index.names == ["dataset", "draw"]
    assert frame.loc[1, "weights[0]"].isna().all()
    assert not frame.loc[0].isna().any().any()


def test_arviz_groups_dims_and_values() -> None:
    posterior = regression().with_coords(features=["age", "height"])
    data = posterior.to_arviz(num_samples=40, seed=0, predictive=True)
    assert data.posterior["weights"].dims == ("chain", "draw", "features")
    assert list(data.posterior["weights"].coords["features"].values) == ["age", "height"]
    np.testing.assert_array_equal(data.posterior["weights"].values[0], posterior.sample(40, seed=0)["weights"][0])
    assert data.observed_data["y"].shape == (20,)
    assert data.constant_data["x"].shape == (20, 2)
    assert data.posterior_predictive["y"].shape == (1, 40, 20)


def test_arviz_of_several_datasets() -> None:
    data = regression(batch=2, features=[[True, True], [False, True]]).to_arviz(10, predictive=True)
    weights = data.posterior["weights"]
    assert weights.dims == ("chain", "draw", "dataset", "features")
    assert weights.shape == (1, 10, 2, 2)
    assert np.isnan(weights.values[0, :, 1, 0]).all()
    assert not np.isnan(weights.values[0, :, 0]).any()
    assert data.posterior_predictive["y"].dims[:3] == ("chain", "draw", "dataset")


@dataclass(frozen=True)
class Info:
    rows: tuple[int, int]
    columns: tuple[int, int]


def test_notes_say_where_the_data_leave_the_training_range() -> None:
    posterior = regression(rows=20)
    inside = Posterior(posterior.model, posterior.dataset, posterior.distribution, Info((8, 100), (1, 10)))
    outside = Posterior(posterior.model, posterior.dataset, posterior.distribution, Info((64, 128), (3, 10)))
    assert regression().notes == ()
    assert inside.notes == ()
    assert outside.notes[0].startswith("n: 20 rows, outside the 64 to 128")
    assert outside.notes[1].startswith("features: 2 features, outside the 3 to 10")


def test_a_distribution_of_another_shape_is_refused() -> None:
    small, large = regression(), regression(columns=3)
    with pytest.raises(InputError, match="distribution: got"):
        Posterior(small.model, small.dataset, large.distribution)
    with pytest.raises(InputError, match="theta: got shape"):
        small.log_prob(torch.zeros(1, 2))
    with pytest.raises(InputError, match="num_samples: got 0"):
        small.sample(0)


def test_summary_of_other_draws() -> None:
    posterior = regression()
    twice = {"weights": 2 * posterior.sample(100, seed=0)["weights"]}
    summary = posterior.summary(draws=twice)
    assert list(summary.index) == ["weights[0]", "weights[1]"]
    pd.testing.assert_series_equal(summary["mean"], 2 * posterior.to_frame(100, seed=0).iloc[:, :2].mean(),
                                   check_names=False, check_dtype=False, rtol=1e-4)
