"""Tasks: distributions over datasets to train and test on."""

from __future__ import annotations

from posteria.tasks.base import Task
from posteria.tasks.gaussian_process import GaussianProcessTask
from posteria.tasks.many_models import ManyModelsTask
from posteria.tasks.mixture_of_tasks import COMPONENTS, MixtureOfTasks
from posteria.tasks.other_model import OtherModelTask
from posteria.tasks.real_tables import RealTablesTask
from posteria.tasks.simulated import SimulatedTask
from posteria.tasks.standardised import StandardisedTask

TASKS: dict[str, type[SimulatedTask] | type[MixtureOfTasks]] = {**COMPONENTS, "mixture_of_tasks": MixtureOfTasks,
                                                                    "many_models": ManyModelsTask}

__all__ = [
    "TASKS",
    "GaussianProcessTask",
    "ManyModelsTask",
    "MixtureOfTasks",
    "OtherModelTask",
    "RealTablesTask",
    "SimulatedTask",
    "StandardisedTask",
    "Task",
]
