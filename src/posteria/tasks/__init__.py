"""Tasks: distributions over datasets to train and test on."""

from __future__ import annotations

from posteria.tasks.base import Task
from posteria.tasks.simulated import SimulatedTask

TASKS: dict[str, type[SimulatedTask]] = {"simulated": SimulatedTask}

__all__ = ["TASKS", "SimulatedTask", "Task"]
