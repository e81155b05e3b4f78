"""What to train and how: checked configurations, and building their parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from posteria.errors import InputError, UnsupportedError
from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import Model, build_model
from posteria.objectives import OBJECTIVES, Objective
from posteria.objectives.forward_kl import WHY_THETA
from posteria.parts import Part
from posteria.randomness import generator_for
from posteria.shipped import load
from posteria.tasks import TASKS, Task
from posteria.training.presets import apply_preset
from posteria.training.schedule import Decay, Schedule

_Config = TypeVar("_Config", bound="Recipe")


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartConfig(_Checked):
    """A registered part by name, and the options of its constructor."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class ModelConfig(PartConfig):
    """A registered model by name, its options, and priors in place of its own."""

    priors: dict[str, Any] = Field(default_factory=dict)


class Recipe(_Checked):
    """How to optimise. Exactly one of ``steps`` and ``minutes`` is the budget.

    Attributes:
        steps, minutes: the budget.
        batch_size: datasets per step.
        learning_rate: the peak.
        warmup: linear rise to the peak; below 1 a fraction of the budget, from 1 on a number of steps.
        decay: "cosine" (to 1% of the peak) or "constant".
        clip: largest norm of the gradient, or None.
        weight_decay: of AdamW; 0 is Adam.
        betas: of AdamW.
        ema: decay of the weights' moving average, or None.
        seed: of the initial weights and of every draw.
        device: "auto" or a name such as "cpu" or "cuda".
        precision: "32", "bf16" (the encoder's matrix products only), or "auto": bf16 on devices made for it, for
            encoders that do not evaluate the likelihood.
        patience: so many steps with a non-finite loss or gradient in a row end the run.
        validate_every: steps between validations (and log rows); None: 20 times over the budget.
        checkpoint_every_seconds: time between checkpoints.
        tensorboard: also log for TensorBoard.
    """

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0, allow_inf_nan=False)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(2e-3, gt=0, allow_inf_nan=False)
    warmup: float = Field(0.02, ge=0, allow_inf_nan=False)
    decay: Decay = "cosine"
    clip: float | None = Field(1.0, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    ema: float | None = Field(0.998, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    device: str = "auto"
    precision: Literal["auto", "32", "bf16"] = "auto"
    patience: int = Field(50, ge=1)
    validate_every: int | None = Field(None, ge=1)
    checkpoint_every_seconds: float = Field(60.0, ge=0)
    tensorboard: bool = False

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("two numbers in [0, 1)")
        return betas

    @model_validator(mode="after")
    def _check_budget(self) -> Recipe:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("exactly one of steps and minutes, the budget")
        return self

    @classmethod
    def of(cls, **values: Any) -> Recipe:
        """Like the constructor, with errors that name the field.

        Raises:
            InputError: an unknown field or a value that it does not take.

        Examples:
            >>> Recipe.of(steps=100, learning_rate=1e-3).decay
            'cosine'
        """
        return _validated(cls, values)

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.minutes, self.learning_rate, self.warmup, self.decay)


class TrainConfig(Recipe):
    """A whole training run: the parts, by name and options, and the recipe.

    Unset fields come from the preset. Parts may be given as a bare name.

    Attributes:
        model: the model, or None where a model object is passed to :func:`posteria.training.train`.
        encoder, density, objective, task: the other parts.
        preset: "default" or "paper".
        start: a trained estimator to go on from, a folder or a shipped name: its weights in place of random ones, its
            encoder and density where they are not given. It must be of the same model, or serve every model.

    Examples:
        >>> config = TrainConfig.of(model="linear_regression", minutes=2, preset="paper")
        >>> config.encoder.name, config.learning_rate
        ('transformer', 0.0001)
    """

    preset: str = "default"
    start: str | None = None
    model: ModelConfig | None = None
    encoder: PartConfig
    density: PartConfig
    objective: PartConfig
    task: PartConfig

    @model_validator(mode="before")
    @classmethod
    def _lay_preset_under(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        start = values.get("start")
        return apply_preset({**_parts_of(start), **values} if start is not None else values)

    @model_serializer(mode="wrap")
    def _without_start(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs from random weights read as they did before there was a ``start``, so that they can be resumed."""
        return {name: value for name, value in dump(self).items() if name != "start" or value is not None}

    @classmethod
    def of(cls, **values: Any) -> TrainConfig:
        """The configuration that these fields and their preset give.

        Raises:
            InputError: an unknown field, part or preset, or a value that the field does not take.
        """
        return _validated(cls, values)


def build(config: TrainConfig, model: Model | None = None) -> tuple[Estimator, Task, Objective]:
    """Build an untrained estimator, its task and its objective.

    The initial weights depend on ``config.seed`` alone.

    Args:
        config: what to build.
        model: a model object (a user's own, say) in place of ``config.model``.

    Raises:
        InputError: unknown names or options, or parts that do not fit each other.
        UnsupportedError: an objective that needs the generating parameters, with a task that has none.
    """
    model = _model(config, model)
    task = _part("task", TASKS, config.task.name, model, **config.task.options)
    info = EstimatorInfo(task.columns, task.rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(config.seed, step=-1).initial_seed())
        estimator = Estimator(model, _estimator_part(config.encoder), _estimator_part(config.density), info)
    if config.start is not None:
        _take_weights(estimator, config.start)
    if estimator.fixed_size and task.columns[0] < task.columns[1]:
        _refuse_unmasked(config)
        task = task.masked()
    objective = _part("objective", OBJECTIVES, config.objective.name, **config.objective.options)
    _refuse_without_theta(config, task, objective)
    return estimator, task, objective


def _parts_of(start: str) -> dict[str, Any]:
    described = load(start).describe()
    return {part: described[part] for part in ("encoder", "density")}


def _take_weights(estimator: Estimator, start: str) -> None:
    """Copy a trained estimator's weights, whose parts must be the same.

    Raises:
        InputError: its encoder or density is another, or its weights do not fit this model.
    """
    trained = load(start)
    for part in ("encoder", "density"):
        given, known = (e.describe()[part] for e in (estimator, trained))
        if given != known:
            raise InputError.of(part, str(given), f"that of {start}, {known}")
    try:
        estimator.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise InputError.of("start", f"{start}, trained for {trained.model.name!r}",
                            "an estimator of the same model and sizes, or one that serves every model") from error


def _refuse_without_theta(config: TrainConfig, task: Task, objective: Objective) -> None:
    if objective.needs_theta and not task.gives_theta:
        raise UnsupportedError(f"objective: got {config.objective.name!r} with the task {config.task.name!r}; takes "
                               f"one that does not need the generating parameters. {WHY_THETA}")


def _refuse_unmasked(config: TrainConfig) -> None:
    if config.task.options.get("vary_features") == "batch":
        raise InputError.of("task.options.vary_features", "'batch'",
                            f"'dataset' for the encoder {config.encoder.name} with the density {config.density.name}")


def _model(config: TrainConfig, model: Model | None) -> Model:
    if model is not None and config.model is not None:
        raise InputError.of("model", f"an object and the name {config.model.name!r}", "one of the two")
    if model is not None:
        return model
    if config.model is None:
        raise InputError.of("model", "None", "a name in the configuration, or a model object")
    return build_model(config.model.name, priors=config.model.priors, **config.model.options)


def _estimator_part(part: PartConfig) -> Part:
    return Part(part.name, part.options)


def _part(kind: str, registry: Mapping[str, Any], name: str, *args: Any, **options: Any) -> Any:
    if name not in registry:
        raise InputError.of(kind, repr(name), f"one of {sorted(registry)}")
    try:
        return registry[name](*args, **options)
    except TypeError as error:
        raise InputError.of(f"options of {kind} {name}", str(options), str(error)) from error


def _validated(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problems = [_explain(kind, problem) for problem in error.errors()]
        raise InputError("; ".join(problems)) from error


def _explain(kind: type[BaseModel], problem: Any) -> str:
    where = ".".join(str(place) for place in problem["loc"]) or "steps, minutes"
    if problem["type"] == "extra_forbidden":
        known = sorted(kind.model_fields) if len(problem["loc"]) == 1 else ["name", "options"]
        return str(InputError.of(where, "an unknown field", f"one of {known}"))
    if not problem["loc"]:
        got = {name: problem["input"].get(name) for name in ("steps", "minutes")}
        return str(InputError.of(where, str(got), problem["msg"].removeprefix("Value error, ")))
    takes = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return str(InputError.of(where, repr(problem["input"]), takes))
