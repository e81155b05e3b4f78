"""Point estimates by Adam: as many runs as starting points, with a learning rate picked per dataset.

The paper's recipe (arXiv 2502.06601, appendix on baselines): 25 runs of 1,000 iterations, the learning rate picked from
six. All rates run at once. What is climbed is the log joint that is given: the joint density gives MAP estimates, the
likelihood alone maximum likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.baselines.base import Info, Point, at_least, evaluate, moved, start
from posteria.errors import InputError
from posteria.types import LogJoint

RATES = (0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003)
# Adam's constants (Kingma & Ba 2015).
_FIRST, _SECOND, _FLOOR = 0.9, 0.999, 1e-8


def build(log_joint: LogJoint, iterations: int = 1000, rates: Sequence[float] = RATES) -> Adam:
    """An optimiser whose draws are the ends of its runs, one per starting point.

    Args:
        log_joint: what to climb.
        iterations: steps of Adam; the draw after the last of them counts.
        rates: learning rates, in prior standard deviations per step; per dataset the one is picked whose runs end
            highest on average.

    Raises:
        InputError: a setting out of its range.
    """
    if not rates or not all(rate > 0 for rate in rates):
        raise InputError.of("rates", repr(rates), "positive learning rates")
    return Adam(log_joint, at_least("iterations", iterations, 1), tuple(rates))


@dataclass(frozen=True)
class State:
    """All runs, (B, rates * C) of them, with Adam's averages of the gradient and of its square (B, rates * C, P)."""

    point: Point
    first: Tensor
    second: Tensor
    num_rates: int
    iteration: int = 0

    @property
    def best(self) -> Tensor:
        """(B,) index of the learning rate that is picked now."""
        return self.point.log_density.unflatten(1, (self.num_rates, -1)).mean(2).argmax(1)

    @property
    def z(self) -> Tensor:
        runs = self.point.z.unflatten(1, (self.num_rates, -1))
        return runs[torch.arange(len(runs), device=runs.device), self.best]


class Adam:
    """See :func:`build`."""

    def __init__(self, log_joint: LogJoint, iterations: int, rates: tuple[float, ...]):
        self.log_joint, self.rates = log_joint, rates
        self.num_warmup = iterations - 1

    def init(self, z: Tensor, generator: torch.Generator) -> State:
        """The state at z (B, C, P), which every learning rate starts from."""
        point = start(self.log_joint, z.repeat(1, len(self.rates), 1))
        return State(point, torch.zeros_like(point.z), torch.zeros_like(point.z), len(self.rates))

    @torch.no_grad()
    def update(self, state: State, generator: torch.Generator) -> tuple[State, Info]:
        """One step of every run."""
        point, count = state.point, state.iteration + 1
        first = _FIRST * state.first + (1 - _FIRST) * point.score
        second = _SECOND * state.second + (1 - _SECOND) * point.score.square()
        root = (second / (1 - _SECOND**count)).sqrt() + _FLOOR
        rates = torch.tensor(self.rates).to(point.z).repeat_interleave(point.z.shape[1] // len(self.rates))
        z = point.z + rates[:, None] / (1 - _FIRST**count) * first / root
        state = State(evaluate(self.log_joint, z), first, second, state.num_rates, count)
        picked = torch.tensor(self.rates).to(z)[state.best]
        return state, moved(state.point, picked)
