"""How far training is, and the learning rate there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["cosine", "constant"]
# Cosine decay ends here and not at zero: the last steps still move.
_LOWEST = 0.01


@dataclass(frozen=True)
class Schedule:
    """A budget in steps or in minutes (exactly one), and the learning rate along it.

    Args:
        steps: budget in steps, or None.
        minutes: budget in minutes of wall clock, or None.
        learning_rate: the peak.
        warmup: linear rise to the peak; below 1 a fraction of the budget, from 1 on a number of steps.
        decay: "cosine": down to 1% of the peak over the budget; "constant": none.

    Examples:
        >>> schedule = Schedule(steps=100, minutes=None, learning_rate=1.0, warmup=10, decay="cosine")
        >>> schedule.progress(step=50, elapsed=3.0)
        0.5
        >>> round(schedule.rate(step=4, progress=0.0), 3)
        0.5
    """

    steps: int | None
    minutes: float | None
    learning_rate: float
    warmup: float
    decay: Decay

    def progress(self, step: int, elapsed: float) -> float:
        """Part of the budget used up, in [0, 1], before this step and after so many seconds."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None  # the config holds exactly one of the two
        return min(1.0, elapsed / (60.0 * self.minutes))

    def rate(self, step: int, progress: float) -> float:
        """Learning rate of this step."""
        return self.learning_rate * self._rise(step, progress) * _DECAYS[self.decay](progress)

    def _rise(self, step: int, progress: float) -> float:
        if self.warmup >= 1:
            return min(1.0, (step + 1) / self.warmup)
        return min(1.0, max(_LOWEST, progress / self.warmup)) if self.warmup else 1.0


def _cosine(progress: float) -> float:
    return _LOWEST + (1 - _LOWEST) * 0.5 * (1 + math.cos(math.pi * progress))


def _constant(progress: float) -> float:
    return 1.0


_DECAYS = {"cosine": _cosine, "constant": _constant}
