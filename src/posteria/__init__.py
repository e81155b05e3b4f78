"""Amortized Bayesian inference: train once on a probabilistic model, then get full posteriors in milliseconds.

Example:
    >>> import posteria
    >>> dataset = posteria.Dataset.of([[-1.0], [0.0], [1.0]], [-0.9, 0.1, 1.1])
    >>> posteria.load("linear_regression").posterior(dataset).summary()  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posteria.errors import (
        CheckpointError,
        DataError,
        InputError,
        PosteriaError,
        TrainingError,
        TrainingInterrupted,
        UnsupportedError,
    )
    from posteria.estimator import Estimator, EstimatorInfo
    from posteria.models import CustomModel, Model, Parameter, build_model
    from posteria.objectives import ForwardKL, ReverseKL
    from posteria.posterior import Posterior
    from posteria.shipped import load
    from posteria.tables import TableCodec
    from posteria.tasks import SimulatedTask
    from posteria.training import TrainConfig, train
    from posteria.types import Dataset

__version__ = "0.1.0"

# Loaded at first use: `import posteria` costs milliseconds, and so does `posteria --help`.
_HOMES = {
    "posteria.errors": ("CheckpointError", "DataError", "InputError", "PosteriaError", "TrainingError",
                        "TrainingInterrupted", "UnsupportedError"),
    "posteria.estimator": ("Estimator", "EstimatorInfo"),
    "posteria.models": ("CustomModel", "Model", "Parameter", "build_model"),
    "posteria.objectives": ("ForwardKL", "ReverseKL"),
    "posteria.posterior": ("Posterior",),
    "posteria.shipped": ("load",),
    "posteria.tables": ("TableCodec",),
    "posteria.tasks": ("SimulatedTask",),
    "posteria.training": ("TrainConfig", "train"),
    "posteria.types": ("Dataset",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CheckpointError",
    "CustomModel",
    "DataError",
    "Dataset",
    "Estimator",
    "EstimatorInfo",
    "ForwardKL",
    "InputError",
    "Model",
    "Parameter",
    "PosteriaError",
    "Posterior",
    "ReverseKL",
    "SimulatedTask",
    "TableCodec",
    "TrainConfig",
    "TrainingError",
    "TrainingInterrupted",
    "UnsupportedError",
    "build_model",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
