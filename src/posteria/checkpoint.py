"""Estimators on disk: a directory with ``weights.safetensors`` and ``estimator.json``; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from posteria.errors import CheckpointError
from posteria.models import Model, build_model, model_to_json

FORMAT = "posteria-estimator"
FORMAT_VERSION = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "estimator.json"
_KEYS = ("format_version", "model", "encoder", "density", "info", "signature", "sha256")


def build_model_of(description: Mapping[str, Any], folder: Path) -> Model:
    """The registered model that a description names.

    Raises:
        CheckpointError: it names none.
    """
    named = description["model"]
    if named.get("name") is None:
        raise CheckpointError(f"{folder}: trained for a user's own model, whose code is not stored; "
                              "takes Estimator.load(path, model=...)")
    return build_model(named["name"], priors=named.get("priors"), **named.get("options", {}))


def signature_of(model: Model, columns: int) -> list[list[Any]]:
    """Names, shapes and supports of the parameters: what must agree for weights to make sense."""
    return [[b.name, list(b.shape), repr(b.parameter.support)] for b in model.layout(columns).blocks]


def compare_models(description: Mapping[str, Any], model: Model, folder: Path) -> None:
    """Parameters must agree; options and priors too, where both models are registered.

    Raises:
        CheckpointError: they do not.
    """
    stored = description["signature"]
    pairs = itertools.zip_longest(stored, signature_of(model, _columns_of(stored, model)))
    differing = [f"{then} now {now}" for then, now in pairs if then != now]
    trained, given = description["model"], json.loads(json.dumps(model_to_json(model)))
    for part in ("options", "priors") if trained.get("name") == given.get("name") is not None else ():
        differing += [f"{key} {then!r} now {given[part].get(key)!r}" for key, then in trained.get(part, {}).items()
                      if then != given[part].get(key)]
    if differing:
        raise CheckpointError(f"{folder}: the model differs from the one trained: {'; '.join(differing)}")


def _columns_of(stored: list[list[Any]], model: Model) -> int:
    for parameter, (_, shape, _support) in zip(model.parameters, stored, strict=False):
        if "features" in parameter.shape and len(shape) == len(parameter.shape):
            return shape[parameter.shape.index("features")] + len(model.extra_columns)
    return 1 + len(model.extra_columns)


def read_description(folder: Path) -> dict[str, Any]:
    """What ``estimator.json`` says.

    Raises:
        CheckpointError: it is missing, corrupt or foreign.
    """
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; takes a directory that Estimator.save wrote") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not an estimator of posteria")
    missing = [key for key in _KEYS if key not in description]
    if missing:
        raise CheckpointError(f"{path}: lacks {missing}")
    if description["format_version"] > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {description['format_version']}, newer than {FORMAT_VERSION}; "
                              "takes a newer posteria")
    return description


def read_weights(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of ``weights.safetensors``.

    Raises:
        CheckpointError: it is missing, corrupt, or not the one that was described.
    """
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: corrupt or not safetensors ({error})") from error
    if hashlib.sha256(data).hexdigest() != description["sha256"]:
        raise CheckpointError(f"{path}: does not belong to {DESCRIPTION} beside it (checksums differ)")
    return tensors
