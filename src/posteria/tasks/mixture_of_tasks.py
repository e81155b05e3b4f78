"""Several tasks in turn: every batch comes from one of them, drawn at random with fixed probabilities.

An objective averaged over steps is then the average over the mixture: an estimator practises on data of several
sources (simulated, smooth functions, like real tables), each batch of one of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.models.base import Model
from posteria.tasks.gaussian_process import GaussianProcessTask
from posteria.tasks.other_model import OtherModelTask
from posteria.tasks.real_tables import RealTablesTask
from posteria.tasks.simulated import SimulatedTask, VaryFeatures, choose, host_generator
from posteria.tasks.standardised import StandardisedTask
from posteria.types import Dataset

COMPONENTS: dict[str, type[SimulatedTask]] = {
    "simulated": SimulatedTask, "standardised": StandardisedTask, "gaussian_process": GaussianProcessTask,
    "other_model": OtherModelTask, "real_tables": RealTablesTask,
}
# Where the device has a generator of its own, sizes and choice must not come from the same numbers.
_SALT = 0x2545F491
_SHARED = ("columns", "vary_features")


class MixtureOfTasks:
    """Draws each batch from one of several tasks.

    Args:
        model: the assumed model of all of them.
        tasks: names, or {"name": ..., "options": {...}}; each has its own rows, columns are the mixture's.
        weights: how often each is drawn, in proportion; default equally often.
        columns, vary_features: of all components; as for :class:`SimulatedTask`.

    Attributes:
        rows: (least, most) observations over all components.
        gives_theta: every component gives the parameters; otherwise ``draw`` returns None for them always.

    Raises:
        InputError: no task, an unknown one or options that it does not take; weights that are not one positive
            number per task; columns set by a component.

    Examples:
        >>> from posteria.models.linear import LinearRegression
        >>> from posteria.randomness import generator_for
        >>> task = MixtureOfTasks(LinearRegression(), ["simulated", "gaussian_process"], weights=[3, 1])
        >>> dataset, theta = task.draw(4, generator_for(0))
        >>> theta is None
        True
    """

    def __init__(self, model: Model, tasks: Sequence[str | Mapping[str, Any]], weights: Sequence[float] | None = None,
                 columns: Sequence[int] = (1, 1), vary_features: VaryFeatures = "batch"):
        self.model = model
        parts = [_part(task) for task in _checked_tasks(tasks)]
        self.names = tuple(name for name, _ in parts)
        self.weights = _checked_weights(weights, len(parts))
        shared = {"columns": columns, "vary_features": vary_features}
        self.tasks = [_built(model, name, {**options, **shared}) for name, options in parts]
        self.columns, self.vary_features = self.tasks[0].columns, self.tasks[0].vary_features
        self.rows = min(task.rows[0] for task in self.tasks), max(task.rows[1] for task in self.tasks)
        self.gives_theta = all(task.gives_theta for task in self.tasks)

    def pick(self, generator: torch.Generator) -> MixtureOfTasks:
        """The task that the next batch comes from: itself, since there is one model."""
        return self

    def draw(self, num_datasets: int, generator: torch.Generator, device: torch.device | str = "cpu",
             rows: int | None = None) -> tuple[Dataset, Tensor | None]:
        """A batch of one of the tasks, and the theta (B, P) that generated it where all of them have one.

        Args:
            num_datasets: B.
            generator, device, rows: as for :meth:`SimulatedTask.draw`.
        """
        dataset, theta = self.tasks[self._choice(generator)].draw(num_datasets, generator, device, rows)
        return dataset, theta if self.gives_theta else None

    def _choice(self, generator: torch.Generator) -> int:
        host = host_generator(generator)
        if host is not generator:
            host = torch.Generator().manual_seed(host.initial_seed() ^ _SALT)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return int(torch.multinomial(weights, 1, generator=host))

    def masked(self) -> MixtureOfTasks:
        """The same tasks at the most columns, with masks: for estimators of one size."""
        return MixtureOfTasks(self.model, **{**self.options(), "vary_features": "dataset"})

    def options(self) -> dict[str, Any]:
        """Keyword arguments (JSON values) that build this mixture again, the model apart."""
        own = [{name: value for name, value in task.options().items() if name not in _SHARED} for task in self.tasks]
        return {"tasks": [{"name": name, "options": values} for name, values in zip(self.names, own, strict=True)],
                "weights": list(self.weights), "columns": list(self.columns), "vary_features": self.vary_features}


def _checked_tasks(tasks: Sequence[str | Mapping[str, Any]]) -> Sequence[str | Mapping[str, Any]]:
    if isinstance(tasks, str | Mapping) or not tasks:
        raise InputError.of("tasks", repr(tasks), "a list of tasks, one at least")
    return tasks


def _part(task: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    parts: Mapping[str, Any] = {"name": task} if isinstance(task, str) else task
    if not isinstance(parts, Mapping) or "name" not in parts or not set(parts) <= {"name", "options"}:
        raise InputError.of("tasks", repr(task), "names, or {'name': ..., 'options': {...}}")
    options = parts.get("options") or {}
    shared = sorted(set(options) & set(_SHARED))
    if shared:
        raise InputError.of("tasks", f"{parts['name']} with options {shared}", "these as options of the mixture")
    return parts["name"], options


def _built(model: Model, name: str, options: Mapping[str, Any]) -> SimulatedTask:
    kind = choose("tasks", name, COMPONENTS)
    try:
        return kind(model, **options)
    except TypeError as error:
        raise InputError.of(f"options of task {name}", str(dict(options)), str(error)) from error


def _checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    values = tuple(weights) if weights is not None else (1.0,) * count
    if len(values) != count or not all(0 < weight < math.inf for weight in values):
        raise InputError.of("weights", repr(weights), f"{count} positive numbers, one per task")
    return tuple(float(weight) for weight in values)
