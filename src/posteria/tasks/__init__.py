"""Tasks: distributions over datasets to train and test on."""

from __future__ import annotations

from posteria.tasks.base import Task
from posteria.tasks.simulated import SimulatedTask
from posteria.tasks.standardised import StandardisedTask

TASKS: dict[str, type[SimulatedTask]] = {"simulated": SimulatedTask, "standardised": StandardisedTask}

__all__ = ["TASKS", "SimulatedTask", "StandardisedTask", "Task"]
