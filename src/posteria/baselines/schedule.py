"""Step sizes that fall from iteration to iteration, whatever the chains do."""

from __future__ import annotations

from dataclasses import dataclass

from posteria.errors import InputError


@dataclass(frozen=True)
class Falling:
    """Geometric from ``first`` to ``last`` over ``iterations``, constant afterwards.

    Raises:
        InputError: step sizes that are not positive, or fewer than 2 iterations.
    """

    first: float
    last: float
    iterations: int

    def __post_init__(self) -> None:
        if not (self.first > 0 and self.last > 0):
            raise InputError.of("step sizes", f"{self.first} and {self.last}", "positive numbers")
        if self.iterations < 2:
            raise InputError.of("iterations", self.iterations, "2 or more")

    def __call__(self, iteration: int) -> float:
        """The step size of an iteration 0, 1, ..."""
        share = min(iteration / (self.iterations - 1), 1.0)
        return self.first * (self.last / self.first) ** share
