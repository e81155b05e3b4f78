"""Trained estimators that come with the package: one folder each, with its training record beside the weights."""

from __future__ import annotations

from pathlib import Path

from posteria.errors import InputError
from posteria.estimator import DESCRIPTION, Estimator
from posteria.models.base import Model

_FOLDER = Path(__file__).parent


def shipped_names() -> list[str]:
    """Names that :func:`load` knows."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{DESCRIPTION}"))


def load(name: str | Path, model: Model | None = None) -> Estimator:
    """A trained estimator: a shipped one by its name, or your own by its folder.

    Args:
        name: a folder that training or ``Estimator.save`` wrote, or else one of :func:`shipped_names`.
        model: the model object, for a folder whose model is your own.

    Raises:
        InputError: neither a shipped name nor a folder.
        CheckpointError: see :meth:`Estimator.load`.

    Examples:
        >>> load("linear_regression").model.name  # doctest: +SKIP
        'linear_regression'
    """
    if Path(name).is_dir():
        return Estimator.load(name, model)
    if str(name) not in shipped_names():
        takes = f"the folder of a trained estimator, or a shipped one of {shipped_names()}"
        raise InputError.of("name", repr(str(name)), takes)
    return Estimator.load(_FOLDER / name, model)
