"""One network for every model: weights are shared, priors are arguments, and nothing names a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Cauchy, HalfNormal, Laplace, Normal

from posteria.bench.trust_shifts import SHIFTS, draw_shifted
from posteria.bench.variational import bound_of
from posteria.densities.mixed import MixedTheta
from posteria.errors import InputError, UnsupportedError
from posteria.estimator import Estimator, EstimatorInfo
from posteria.every_model import Universal, universal
from posteria.models import CustomModel, Parameter, build_model
from posteria.models.repriored import repriored
from posteria.parts import Part
from posteria.training import TrainConfig, build, train
from posteria.types import Dataset
from tests.problems import simulated

SHARED = {"name": "iterative", "options": {"shared": True, "lines": True}}


def network(moved: bool = True, **density: Any) -> Estimator:
    torch.manual_seed(0)
    made = Estimator(build_model("linear_regression"), Part(**SHARED), Part("skewed", density),
                     EstimatorInfo(columns=(1, 4096)))
    with torch.no_grad():  # as training would, move what starts at zero
        if not moved:
            return made.eval()
        for head in (made.density.shape, made.density.gaussian.heads.head, made.encoder.move):
            head.weight.normal_(std=0.02)
    return made.eval()


@pytest.mark.parametrize(("name", "options", "columns"), [
    ("poisson_regression", {}, 4), ("linear_classification", {"temperature": 1.0}, 3), ("gaussian_mean", {}, 2),
    ("neural_regression", {"hidden": 4}, 1), ("gaussian_mixture", {"components": 2}, 2)])
def test_one_network_serves_every_model(name: str, options: dict[str, object], columns: int) -> None:
    model = build_model(name, **options)
    dataset = draw_shifted(model, columns, SHIFTS["in_distribution"], 5)
    posterior = Universal(network()).posterior(model, dataset)
    theta = posterior.sample_theta(50)
    assert theta.shape == (5, 50, model.layout(columns).size)
    assert posterior.distribution.log_prob(theta).isfinite().all()
    assert posterior.model is model


def test_weights_are_shared_and_the_network_forgets_no_model() -> None:
    made = network()
    other = made.for_model(build_model("gaussian_mean"))
    assert other.encoder.layers is made.encoder.layers
    assert other.density is made.density
    assert made.for_model(made.model) is made
    assert other.for_model(made.model).model is made.model
    mixture = made.for_model(build_model("gaussian_mixture", components=2))
    assert mixture.encoder.exchangeable
    assert not made.encoder.exchangeable


def test_an_estimator_of_one_model_does_not_serve_others() -> None:
    plain = Estimator(build_model("linear_regression"), "iterative", "full", EstimatorInfo(columns=(1, 9)))
    with pytest.raises(UnsupportedError, match="shared=True"):
        plain.for_model(build_model("gaussian_mean"))
    with pytest.raises(InputError, match="estimator: got one of 'linear_regression' alone"):
        Universal(plain)
    fixed = Estimator(build_model("linear_regression"), Part(**SHARED), "full", EstimatorInfo(columns=(2, 2)))
    with pytest.raises(UnsupportedError, match="one number of parameters"):
        fixed.for_model(build_model("gaussian_mean"))


def test_priors_are_arguments_of_the_call() -> None:
    """Conjugate, so the answer is known: a narrow prior pulls the mean to its centre."""
    model = build_model("linear_regression")
    dataset = draw_shifted(model, 2, SHIFTS["n_8"], 3)
    universal = Universal(network(moved=False))
    for scale in (0.05, 3.0):
        exact = repriored(model, prior_scale=scale).exact_posterior(dataset)
        theta = universal.posterior(model, dataset, prior_scale=scale).sample_theta(2000)
        assert ((theta.mean(1) - exact.mean) / (exact.stddev / 2000**0.5)).abs().max() < 4.5  # standard errors


def test_repriored_leaves_the_model_as_it_is() -> None:
    model = build_model("linear_regression", noise="inferred")
    before = [str(p.prior) for p in model.parameters]
    other = repriored(model, {"weights": Laplace(0.0, 2.0), "noise_scale": {"family": "half_normal", "scale": 3.0}},
                      prior_scale=7.0)
    assert [str(p.prior) for p in model.parameters] == before
    weights, intercept, noise = (p.prior for p in other.parameters)
    assert isinstance(weights, Laplace)
    assert isinstance(intercept, Normal)
    assert float(intercept.scale) == 7.0
    assert isinstance(noise, HalfNormal)
    assert other.layout(2).prior_moments[1][2] == 7.0
    assert model.layout(2).prior_moments[1][2] == 1.0


@pytest.mark.parametrize(("arguments", "message"), [
    ({"priors": {"slope": Normal(0.0, 1.0)}}, "priors: got"), ({"prior_scale": 0.0}, "prior_scale: got 0.0"),
    ({"priors": {"weights": HalfNormal(1.0)}}, "prior of weights")])
def test_wrong_priors_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        repriored(build_model("linear_regression"), **arguments)  # type: ignore[arg-type]


def test_a_scale_for_no_normal_prior_is_refused() -> None:
    model = repriored(build_model("gaussian_mean"), {"mean": Laplace(0.0, 1.0)})
    with pytest.raises(InputError, match="a model with normal priors"):
        repriored(model, prior_scale=2.0)


def test_padding_changes_nothing() -> None:
    made = network().for_model(build_model("linear_classification", temperature=1.0))
    dataset = draw_shifted(made.model, 2, SHIFTS["in_distribution"], 3)
    theta = made.posterior(dataset).sample_theta(3)
    alone = made.posterior(dataset).distribution.log_prob(theta)
    padded = dataset.padded(dataset.x.shape[1] + 5, 4)
    layout = made.model.layout(4)
    wide = layout.unconstrain({name: torch.nn.functional.pad(value, (0, 2)) if value.shape[-1] == 2 and value.ndim == 4
                               else value for name, value in made.model.layout(2).constrain(theta).items()})
    torch.testing.assert_close(made.posterior(padded).distribution.log_prob(wide), alone, atol=2e-3, rtol=1e-3)


def test_training_on_many_models_and_special_training_from_it(tmp_path: Path) -> None:
    config = {"model": "linear_regression", "encoder": SHARED, "density": "skewed", "steps": 3, "batch_size": 4,
              "task": {"name": "many_models", "options": {"rows": [8, 20], "columns": [1, 3]}}}
    universal = train(config, tmp_path / "universal").estimator
    special = TrainConfig.of(model="poisson_regression", start=str(tmp_path / "universal"), steps=1, batch_size=4,
                             task={"name": "simulated", "options": {"rows": [8, 20], "columns": [3, 3]}})
    started = build(special)[0]
    assert started.model.name == "poisson_regression"
    for name, value in universal.state_dict().items():
        assert torch.equal(started.state_dict()[name], value), name
    tuned = train(special, tmp_path / "special").estimator
    assert tuned.encoder.widenings == Universal(universal).network.encoder.widenings > universal.encoder.widenings
    assert Estimator.load(tmp_path / "special").encoder.widenings == tuned.encoder.widenings
    assert train(special, tmp_path / "special", resume=True).estimator.encoder.widenings == tuned.encoder.widenings
    with pytest.raises(InputError, match="density: got"):
        build(TrainConfig.of(**{**special.model_dump(), "density": "full"}))
    plain = {**config, "encoder": "iterative", "task": "simulated", "density": "full"}
    train(plain, tmp_path / "plain")
    with pytest.raises(InputError, match="start: got"):
        build(TrainConfig.of(model={"name": "linear_regression", "options": {"noise": "inferred"}}, steps=1,
                             start=str(tmp_path / "plain"), task="simulated"))


@pytest.mark.parametrize("shift", ["in_distribution", "scale_x5", "outliers", "n_8"])
@pytest.mark.parametrize(("name", "options"), [
    ("linear_regression", {"noise": "inferred"}), ("linear_regression", {"noise": 1e-4}),
    ("generalized_linear", {"family": "gaussian"})])
def test_a_line_with_normal_priors_has_its_exact_posterior(name: str, options: dict[str, Any], shift: str) -> None:
    model = build_model(name, **options)
    dataset = draw_shifted(model, 3, SHIFTS[shift], 4)
    posterior = Universal(network()).posterior(model, dataset, prior_scale=2.0)
    assert (posterior.diagnose().ess > 990).all()
    assert set(posterior.refine().status) == {"amortized"}


def test_an_exact_estimator_stays_so_on_disk(tmp_path: Path) -> None:
    model = build_model("linear_regression", noise="inferred")
    Universal(network()).estimator(model).save(tmp_path)
    assert Estimator.load(tmp_path).exact


def test_other_priors_of_a_line_go_to_the_network() -> None:
    model = build_model("linear_regression", noise="inferred")
    made = Universal(network())
    assert made.estimator(model).exact
    assert not made.estimator(model, priors={"weights": Laplace(0.0, 1.0)}).exact


def test_several_searches_cover_several_modes() -> None:
    """y ~ N(theta², 0.5²): two modes in equal shares. From the prior's centre one search finds one of them at best."""
    model = CustomModel([Parameter("theta")], predict=lambda p, x: Normal(p["theta"] ** 2 + 0 * x[:, 0], 0.5))
    dataset = Dataset.of(torch.zeros(2, 6, 1), torch.tensor([[1.2] * 6, [2.0] * 6]))
    axis = torch.linspace(-5.0, 5.0, 4001, dtype=torch.double)
    height = model.log_joint(axis[None, :, None].expand(2, -1, -1), dataset.double())
    evidence = height.logsumexp(-1) + (axis[1] - axis[0]).log()
    posterior = Universal(network(False)).posterior(model, dataset, modes=6)
    theta = posterior.sample_theta(4000, seed=0)[..., 0]
    assert ((theta > 0).double().mean(1) - 0.5).abs().max() < 0.1  # both searches for a mode see the same noise
    found = posterior.diagnose()
    assert (found.ess > 900).all()  # of 1,000
    assert ((found.log_evidence - evidence).abs() < 5 * found.log_evidence_error + 1e-2).all()
    one = Universal(network(False)).posterior(model, dataset).diagnose()
    assert (one.log_evidence < evidence - 0.5).all()


def test_fewer_than_one_search_is_refused() -> None:
    with pytest.raises(InputError, match="modes: got 0"):
        Universal(network()).estimator(build_model("poisson_regression"), modes=0)


def test_number_of_searches_is_saved(tmp_path: Path) -> None:
    model = build_model("gaussian_mixture", components=2)
    made = Universal(network()).estimator(model, modes=3)
    made.save(tmp_path)
    dataset = draw_shifted(model, 2, SHIFTS["in_distribution"], 2)
    loaded = Estimator.load(tmp_path)
    assert loaded.modes == 3
    theta = made.posterior(dataset).sample_theta(20, seed=0)
    torch.testing.assert_close(loaded.posterior(dataset).log_prob(theta), made.posterior(dataset).log_prob(theta))


def _location(prior: Any) -> tuple[CustomModel, Dataset]:
    """Two observations far out under a prior of unit scale: their mean is believed less the heavier its tails."""
    model = CustomModel([Parameter("theta", prior=prior)], predict=lambda p, x: Normal(p["theta"] + 0 * x[:, 0], 2.0))
    return model, Dataset.of(torch.zeros(3, 2, 1), torch.tensor([[4.0, 4.5], [6.0, 7.0], [20.0, 21.0]]))


def test_heavy_tailed_priors_are_searched_in_both_units() -> None:
    """Against quadrature, under a conflict of prior and data: no worse than either search, and k-hat tells."""
    model, dataset = _location(Cauchy(0.0, 1.0))
    axis = torch.linspace(-200.0, 300.0, 200_001, dtype=torch.double)
    height = model.log_joint(axis[None, :, None].expand(3, -1, -1), dataset.double())
    evidence = height.logsumexp(-1) + (axis[1] - axis[0]).log()
    posterior = Universal(network(False, whiten=True)).posterior(model, dataset)
    assert isinstance(posterior.distribution, MixedTheta)

    def bound(distribution: Any) -> torch.Tensor:
        return bound_of(distribution, lambda theta: model.log_joint(theta, dataset), 4000)

    parts = torch.stack([bound(part) for part in posterior.distribution.parts])
    own = bound(posterior.distribution)
    assert (own < evidence + 0.02).all()
    assert (parts.amax(0) - own).max() < 0.1  # nats; shares are in proportion to bounds with errors
    found = posterior.diagnose()
    assert found.pareto_k[0] < 0.7
    error = (found.log_evidence - evidence).abs()
    assert (error < 5 * found.log_evidence_error + 1e-2)[0]
    assert ((found.pareto_k > 0.7) | (error < 0.1)).all()  # the prior's mode far out is missed, and k-hat objects


def test_other_priors_are_searched_once() -> None:
    made = Universal(network(whiten=True))
    assert not made.estimator(_location(Laplace(0.0, 1.0))[0]).both_units
    assert not Universal(network()).estimator(_location(Cauchy(0.0, 1.0))[0]).both_units


def test_searching_in_both_units_is_saved(tmp_path: Path) -> None:
    model, dataset = _location(Cauchy(0.0, 1.0))
    made = Universal(network(whiten=True)).estimator(model)
    made.save(tmp_path, dataset)
    loaded = Estimator.load(tmp_path, model)
    assert loaded.both_units
    theta = made.posterior(dataset).sample_theta(20, seed=0)
    torch.testing.assert_close(loaded.posterior(dataset).log_prob(theta), made.posterior(dataset).log_prob(theta))


@pytest.mark.parametrize(("modes", "expected"), [(None, 2), (1, 1), (3, 3)])
def test_models_with_relabellings_are_searched_twice(modes: int | None, expected: int) -> None:
    made = Universal(network())
    assert made.estimator(build_model("gaussian_mixture", components=2), modes=modes).modes == expected
    assert made.estimator(build_model("poisson_regression")).modes == 1


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize(("name", "options", "columns"), [
    ("linear_regression", {"noise": "inferred"}, 2), ("hierarchical", {"family": "gaussian"}, 3)])
def test_targets_that_are_fitted_without_noise_are_not_trusted(name: str, options: dict[str, Any], columns: int,
                                                               value: float) -> None:
    """The posterior of the noise is then improper: its density has no bound where the noise vanishes."""
    model = build_model(name, **options)
    drawn = simulated(model, columns, rows=12, batch=2)
    constant = Dataset.of(drawn.x, torch.full(drawn.x.shape[:2], value), features=drawn.features)
    refined = universal().posterior(model, constant).refine("laplace", seed=0)
    assert not refined.trusted.any()
