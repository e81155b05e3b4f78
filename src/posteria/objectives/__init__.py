"""Objectives: scalar training losses."""

from posteria.objectives.base import Objective, Step
from posteria.objectives.forward_kl import ForwardKL
from posteria.objectives.reverse_kl import ReverseKL

OBJECTIVES: dict[str, type[Objective]] = {"forward_kl": ForwardKL, "reverse_kl": ReverseKL}

__all__ = ["OBJECTIVES", "ForwardKL", "Objective", "ReverseKL", "Step"]
