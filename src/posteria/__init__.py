"""Amortized Bayesian inference: train once on a probabilistic model, then get full posteriors in milliseconds.

Examples:
    >>> import posteria
    >>> estimator = posteria.load("linear_regression")                        # doctest: +SKIP
    >>> posteria.infer_table(estimator, table, target="price").units_summary  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posteria.calibrate import check_calibration
    from posteria.errors import InputError, PosteriaError
    from posteria.estimator import Estimator, EstimatorInfo
    from posteria.every_model import Universal, universal
    from posteria.inference import infer_table
    from posteria.models import CustomModel, Model, Parameter, build_model
    from posteria.objectives import ForwardKL, ReverseKL
    from posteria.posterior import Posterior
    from posteria.reference import run_baseline
    from posteria.shipped import load
    from posteria.tasks import SimulatedTask
    from posteria.training import TrainConfig, train
    from posteria.types import Dataset

__version__ = "0.1.0"

# Loaded at first use: `import posteria` costs milliseconds, and so does `posteria --help`.
_HOMES = {
    "posteria.calibrate": ("check_calibration",),
    "posteria.errors": ("InputError", "PosteriaError"),
    "posteria.estimator": ("Estimator", "EstimatorInfo"),
    "posteria.inference": ("infer_table",),
    "posteria.models": ("CustomModel", "Model", "Parameter", "build_model"),
    "posteria.objectives": ("ForwardKL", "ReverseKL"),
    "posteria.posterior": ("Posterior",),
    "posteria.reference": ("run_baseline",),
    "posteria.shipped": ("load",),
    "posteria.tasks": ("SimulatedTask",),
    "posteria.training": ("TrainConfig", "train"),
    "posteria.types": ("Dataset",),
    "posteria.every_model": ("Universal", "universal"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CustomModel",
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
    "TrainConfig",
    "Universal",
    "build_model",
    "check_calibration",
    "infer_table",
    "load",
    "run_baseline",
    "train",
    "universal",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
