"""Datasets simulated from another model than the one assumed: misspecification with a known source.

Parameters of the source generated the data; of the assumed model none did, even where both are of one name. So theta
is None, and forward KL cannot train on this task. (Data of the assumed model itself: ``simulated``.)
Linear data for a network and a network's data for a line are those of arXiv 2502.06601, Tables 4 and 23.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from posteria.errors import InputError, UnsupportedError
from posteria.models import build_model, model_to_json
from posteria.models.base import Model
from posteria.tasks.simulated import RowsScale, SimulatedTask, VaryFeatures
from posteria.types import Dataset

_SOURCE = "a registered model's name, or {'name': ..., 'options': {...}, 'priors': {...}}"


class OtherModelTask(SimulatedTask):
    """Draws theta from the source's prior and a dataset from the source at theta.

    Args:
        model: the assumed model, whose posterior is estimated.
        source: the model that simulates: an object, the name of a registered one, or name, options and priors.
        rows, columns, rows_scale, vary_features: as for :class:`SimulatedTask`.

    Raises:
        InputError: as for :class:`SimulatedTask`; an unknown source; a source whose observations the assumed model
            cannot have produced (another kind of y, more classes, other extra columns).

    Examples:
        >>> from posteria.models.linear import LinearRegression
        >>> from posteria.randomness import generator_for
        >>> source = {"name": "neural_regression", "options": {"activation": "tanh"}}
        >>> task = OtherModelTask(LinearRegression(), source, rows=(8, 8), columns=(1, 1))
        >>> dataset, theta = task.draw(4, generator_for(0))
        >>> dataset.y.shape, theta is None
        (torch.Size([4, 8]), True)
    """

    gives_theta = False

    def __init__(self, model: Model, source: Model | str | Mapping[str, Any], rows: Sequence[int] = (64, 128),
                 columns: Sequence[int] = (2, 2), rows_scale: RowsScale = "uniform",
                 vary_features: VaryFeatures = "batch"):
        super().__init__(model, rows, columns, rows_scale, vary_features)
        self.source = _model_of(source)
        _check_fit(model, self.source)
        self._simulated = SimulatedTask(self.source, rows, columns, rows_scale, vary_features)

    def draw(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu",
             rows: int | None = None) -> tuple[Dataset, None]:
        """B datasets of one size, simulated from the source, and None: no parameters of the assumed model made them.

        Args:
            num_datasets: B.
            generator, device, rows: as for :meth:`SimulatedTask.draw`.
        """
        return self._simulated.draw(num_datasets, generator, device, rows)[0], None

    def masked(self) -> OtherModelTask:
        """The same task at the most columns, with masks: for estimators of one size."""
        return OtherModelTask(self.model, self.source, self.rows, self.columns, self.rows_scale, "dataset")

    def options(self) -> dict[str, Any]:
        """Keyword arguments (JSON values) that build this task again, the model apart.

        Raises:
            UnsupportedError: the source is a user's own model, whose code is no JSON.
        """
        source = model_to_json(self.source)
        if source["name"] is None:
            raise UnsupportedError(f"source: got {self.source.name!r}, a user's own model, whose code cannot be "
                                   "written down; takes a registered model")
        return {**super().options(), "source": source}


def _model_of(source: Model | str | Mapping[str, Any]) -> Model:
    if isinstance(source, Model):
        return source
    parts: Mapping[str, Any] = {"name": source} if isinstance(source, str) else source
    if not isinstance(parts, Mapping) or "name" not in parts or not set(parts) <= {"name", "options", "priors"}:
        raise InputError.of("source", repr(source), _SOURCE)
    return build_model(parts["name"], priors=parts.get("priors"), **(parts.get("options") or {}))


def _check_fit(model: Model, source: Model) -> None:
    """The assumed model must be able to take for its own what the source simulates."""
    if source.target != model.target:
        raise InputError.of("source", f"{source.name!r} with y of kind {source.target!r}",
                            f"a model with y of kind {model.target!r}, as {model.name} has")
    if source.num_classes > model.num_classes:
        raise InputError.of("source", f"{source.name!r} with {source.num_classes} classes",
                            f"at most the {model.num_classes} classes of {model.name}")
    if source.extra_columns != model.extra_columns:
        raise InputError.of("source", f"{source.name!r} with extra columns {source.extra_columns}",
                            f"the extra columns of {model.name}, {model.extra_columns}")
