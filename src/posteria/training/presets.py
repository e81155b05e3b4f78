"""Recipes by name: partial configurations that lie under what the user writes.

``paper`` is the recipe of arXiv 2502.06601 (appendices C to G); ``default`` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posteria.errors import InputError

# Parts of a configuration that have a name and options.
_PARTS = ("model", "encoder", "density", "objective", "task")


@dataclass(frozen=True)
class Preset:
    """Values for the fields of a configuration, and options for parts by their name.

    Attributes:
        values: fields of TrainConfig; parts as their names.
        for_model: model's name -> fields that differ for it.
        options: part -> name -> options, for whichever part ends up chosen.
    """

    values: Mapping[str, Any]
    for_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "default": Preset(
        values={
            "encoder": "iterative", "density": "full", "objective": "reverse_kl", "task": "simulated",
            "batch_size": 128, "learning_rate": 1e-3, "warmup": 0.02, "decay": "cosine", "clip": 1.0,
            "weight_decay": 0.01, "betas": (0.9, 0.98), "ema": 0.998,
        },
        for_model={
            # Thousands of weights: a full covariance would not fit.
            "neural_regression": {"density": "low_rank"}, "neural_classification": {"density": "low_rank"},
            # Every labelling of the components is as likely as any other.
            "gaussian_mixture": {"density": {"name": "full", "options": {"symmetrise": True}}},
        },
    ),
    "paper": Preset(
        values={
            "encoder": "transformer", "density": "gaussian", "objective": "reverse_kl", "task": "simulated",
            "batch_size": 128, "learning_rate": 1e-4, "warmup": 0, "decay": "constant", "clip": None,
            "weight_decay": 0.0, "betas": (0.9, 0.999), "ema": None,
        },
        options={
            "encoder": {
                "transformer": {"layers": 4, "width": 256, "heads": 4, "feedforward": 1024, "pre_norm": False,
                                "dropout": 0.1},
                "deepsets": {"layers": 4, "width": 627, "pooling": "mean"},
                "gru": {"layers": 4, "width": 256},
            },
            "density": {"flow": {"transforms": 6, "hidden": [128]}},
            "objective": {"reverse_kl": {"warm_up": 0.25, "path_gradient": False, "limit": None}},
            "task": {"simulated": {"rows": [64, 128]}},
        },
    ),
}


def apply_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the preset that ``values`` names under them.

    The user's field wins over the preset's, and within a part the user's option over the preset's; a part of
    another name takes the preset's options for that name.
    """
    name = values.get("preset", "default")
    if name not in PRESETS:
        raise InputError.of("preset", repr(name), f"one of {sorted(PRESETS)}")
    preset = PRESETS[name]
    model = values.get("model")
    model_name = model.get("name") if isinstance(model, Mapping) else model
    under = {**preset.values, **preset.for_model.get(str(model_name), {})}
    merged = {**under, **values}
    for part in _PARTS:
        if merged.get(part) is not None:
            merged[part] = _with_options(merged[part], _name(under.get(part)), preset.options.get(part, {}))
    return merged


def _name(part: Any) -> Any:
    return part.get("name") if isinstance(part, Mapping) else part


def _with_options(part: Any, default_name: str | None, options: Mapping[str, Mapping[str, Any]]) -> Any:
    if isinstance(part, str):
        part = {"name": part}
    if not isinstance(part, Mapping):
        return part  # the configuration's own check says what is wrong
    name = part.get("name", default_name)
    own = part.get("options") or {}
    if not isinstance(own, Mapping) or not isinstance(name, str):
        return part
    return {**part, "name": name, "options": {**options.get(name, {}), **own}}
