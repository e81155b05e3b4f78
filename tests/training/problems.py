"""Tiny problems that train in a second."""

from __future__ import annotations

from typing import Any

import torch

from posteria.training import TrainConfig


def tiny(**changes: Any) -> TrainConfig:
    """Linear regression in two dimensions with a small Transformer with dropout, a moving average and clipping."""
    values: dict[str, Any] = {
        "model": "linear_regression",
        "encoder": {"name": "transformer", "options": {"layers": 2, "width": 8, "heads": 2, "dropout": 0.1}},
        "density": "gaussian", "objective": "forward_kl",
        "task": {"name": "simulated", "options": {"rows": [6, 10], "columns": [2, 2]}},
        "batch_size": 8, "steps": 40, "validate_every": 10, "learning_rate": 3e-3, "device": "cpu",
    }
    return TrainConfig.of(**(values | changes))


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    """Bit by bit."""
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: float(f"{v:.10g}") for k, v in row.items() if k != "elapsed_seconds"} for row in history]
