"""Configurations: presets underneath, the user's word on top, errors that name the field."""

from __future__ import annotations

from typing import Any

import pytest

from posteria.densities import DENSITIES
from posteria.encoders import ENCODERS
from posteria.errors import InputError
from posteria.models.linear import LinearRegression
from posteria.objectives import OBJECTIVES
from posteria.training import PRESETS, Recipe, TrainConfig, build, train
from tests.training.problems import tiny


def test_default_preset() -> None:
    config = TrainConfig.of(model="linear_regression", minutes=2)
    assert (config.encoder.name, config.task.name, config.decay) == ("iterative", "simulated", "cosine")


def test_paper_preset_is_the_paper_s_recipe() -> None:
    config = TrainConfig.of(model="linear_regression", steps=50_000, preset="paper")
    assert (config.learning_rate, config.decay, config.warmup, config.batch_size) == (1e-4, "constant", 0, 128)
    assert (config.clip, config.ema, config.weight_decay) == (None, None, 0)
    assert config.encoder.options == {"layers": 4, "width": 256, "heads": 4, "feedforward": 1024, "pre_norm": False,
                                      "dropout": 0.1}
    assert config.objective.options["warm_up"] == 0.25


def test_options_of_the_preset_follow_the_chosen_part() -> None:
    config = TrainConfig.of(model="linear_regression", steps=1, preset="paper", encoder="deepsets",
                            objective="forward_kl")
    assert config.encoder.options["width"] == 627
    assert config.objective.options == {}


def test_the_user_s_option_wins() -> None:
    config = TrainConfig.of(model="linear_regression", steps=1, preset="paper", learning_rate=1.0,
                            encoder={"options": {"width": 64}})
    assert (config.encoder.name, config.encoder.options["width"], config.encoder.options["layers"]) == (
        "transformer", 64, 4)
    assert config.learning_rate == 1.0


def test_a_dumped_configuration_reads_back() -> None:
    config = TrainConfig.of(model="linear_regression", minutes=1, preset="paper", clip=2.0)
    assert TrainConfig.of(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_presets_build_with_every_encoder(preset: str, encoder: str) -> None:
    config = TrainConfig.of(model="linear_regression", steps=1, preset=preset, encoder=encoder)
    assert build(config)[0].encoder_part.name == encoder


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("density", sorted(DENSITIES))
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_presets_build_with_every_density_and_objective(preset: str, density: str, objective: str) -> None:
    config = TrainConfig.of(model="linear_regression", steps=1, preset=preset, density=density, objective=objective)
    assert build(config)[0].density_part.name == density


@pytest.mark.parametrize(("changes", "says"), [
    ({"steps": None}, "steps, minutes: got .* exactly one of steps and minutes"),
    ({"minutes": 1}, "exactly one of steps and minutes"),
    ({"steps": 0}, "steps: got 0; takes greater than or equal to 1"),
    ({"batchsize": 3}, "batchsize: got an unknown field; takes one of .*'batch_size'"),
    ({"decay": "linear"}, "decay: got 'linear'; takes 'cosine' or 'constant'"),
    ({"preset": "fast"}, "preset: got 'fast'; takes one of"),
    ({"encoder": {"name": "gru", "widht": 3}}, r"encoder.widht: got an unknown field"),
    ({"betas": (0.9, 1.0)}, r"betas: got \(0.9, 1.0\); takes two numbers in \[0, 1\)"),
    ({"learning_rate": "fast"}, "learning_rate: got 'fast'; takes a valid number"),
    ({"encoder": 3}, "encoder: got 3"),
])
def test_wrong_fields_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny(**changes)


@pytest.mark.parametrize(("changes", "says"), [
    ({"task": "weather"}, "task: got 'weather'; takes one of"),
    ({"objective": "elbow"}, "objective: got 'elbow'"),
    ({"encoder": "lstm"}, "encoder: got 'lstm'"),
    ({"task": {"name": "simulated", "options": {"rws": [1, 2]}}}, "options of task simulated.*rws"),
    ({"model": None}, "model: got None"),
    ({"model": "linear_regresion"}, "linear_regresion"),
    ({"task": {"name": "simulated", "options": {"columns": [1, 3], "vary_features": "batch"}}},
     "vary_features: got 'batch'; takes 'dataset' for the encoder transformer"),
])
def test_parts_that_do_not_exist_or_fit_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(tiny(**changes))


def test_a_model_object_takes_the_place_of_the_name() -> None:
    result = train(tiny(model=None, steps=2), model=LinearRegression(noise=0.5))
    assert result.estimator.model.options() == {"noise": 0.5}
    with pytest.raises(InputError, match="one of the two"):
        build(tiny(), LinearRegression())


def test_priors_come_from_the_configuration() -> None:
    priors = {"weights": {"family": "normal", "loc": 0.0, "scale": 3.0}}
    estimator, *_ = build(tiny(model={"name": "linear_regression", "priors": priors}))
    assert estimator.model.layout(2).prior_moments[1].tolist() == [3.0, 3.0, 1.0]


def test_recipe_alone() -> None:
    recipe = Recipe.of(minutes=1)
    assert recipe.schedule.progress(step=0, elapsed=30.0) == 0.5
    with pytest.raises(InputError, match="seed"):
        Recipe.of(minutes=1, seed=-1)
