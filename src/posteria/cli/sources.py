"""Where commands take models, estimators and options from."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posteria.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from posteria.estimator import Estimator
    from posteria.models import Model

PARTS = ("model", "encoder", "density", "objective", "task", "training")


def parse_options(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``key=value`` and ``part.key=value`` pairs, by part; a bare key belongs to the model.

    Values are read as JSON, and as text where they are not JSON.

    Examples:
        >>> parse_options(["noise=inferred", "encoder.layers=4"])["encoder"]
        {'layers': 4}
    """
    options: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        part, dot, key = name.strip().rpartition(".")
        part = part if dot else "model"
        if not equals or not key or part not in options:
            raise InputError.of("--option", repr(pair), f"key=value, or part.key=value with part one of {PARTS}")
        options[part][key] = _value(text.strip())
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def model_from_file(place: str, options: Mapping[str, Any]) -> Model:
    """The model that a function in a Python file returns.

    Args:
        place: ``path.py:function``.
        options: keyword arguments of the function.
    """
    from posteria.models import Model

    path, _, name = place.rpartition(":")
    if not path or not name.isidentifier():
        raise InputError.of("--model-file", repr(place), "path.py:function, a function that returns a model")
    if not Path(path).is_file():
        raise InputError.of("--model-file", f"{path}, which does not exist", "path.py:function")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise InputError.of("--model-file", repr(path), "a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"--model-file: {path} cannot be run: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError.of("--model-file", f"{path} without a function {name!r}", "path.py:function")
    try:
        model = function(**options)
    except TypeError as error:
        raise InputError(f"--model-file: {name}({dict(options)}) failed: {error}") from error
    if not isinstance(model, Model):
        raise InputError.of("--model-file", f"{name}, which returns {type(model).__name__}",
                            "a function that returns a posteria Model")
    return model


def load_estimator(place: str, model_file: str | None, options: Sequence[str] = (), model: str | None = None,
                   prior_scale: float | None = None) -> Estimator:
    """The estimator in a folder, or a shipped one by name; for the model named, where it serves every model.

    One that special training made of such a network serves its own model where none is named.
    """
    from posteria.every_model import serves_every_model, trained_on_many_models

    loaded = _load(place, model_file, options)
    own = model is None and model_file is None and not trained_on_many_models(loaded)
    if serves_every_model(loaded) and not own:
        return _for_model(loaded, model, model_file, options, prior_scale)
    for name, value in (("--model", model), ("--prior-scale", prior_scale)):
        if value is not None:
            raise InputError.of(name, str(value), f"the estimator universal; {place} has a model and priors of its own")
    return loaded


def _for_model(loaded: Estimator, model: str | None, model_file: str | None, options: Sequence[str],
               prior_scale: float | None) -> Estimator:
    from posteria.every_model import Universal
    from posteria.models import build_model

    if (model is None) == (model_file is None):
        raise InputError.of("--model, --model-file", "neither" if model is None else "both",
                            "one of the two, for the estimator universal")
    own = parse_options(options)["model"]
    built = build_model(model, **own) if model is not None else model_from_file(model_file or "", own)
    return Universal(loaded).estimator(built, prior_scale=prior_scale)


def _load(place: str, model_file: str | None, options: Sequence[str]) -> Estimator:
    from posteria.checkpoint import DESCRIPTION, read_description
    from posteria.shipped import load, shipped_names

    if place in shipped_names():
        return load(place)
    folder = Path(place)
    if not folder.is_dir():
        raise InputError.of("RUN_OR_NAME", repr(place),
                            f"a folder that posteria train wrote, or a shipped estimator {shipped_names()}")
    if not (folder / DESCRIPTION).is_file():
        unfinished = next(folder.glob("checkpoint*"), None)
        raise CheckpointError(f"RUN_OR_NAME: {folder} holds no finished estimator"
                              + ("; its training can go on with posteria train ... --resume" if unfinished else ""))
    own = None
    if model_file is not None and read_description(folder)["model"].get("name") is None:  # its code is not stored
        own = model_from_file(model_file, parse_options(options)["model"])
    return load(folder, own)


def output_folder(path: Path) -> Path:
    """The folder of ``--out``, made if missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError.of("--out", f"{path} ({error.strerror})", "a folder that can be written") from error
    return path
