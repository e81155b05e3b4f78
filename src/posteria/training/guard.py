"""Running figures of the steps, kept on the device: mean loss, and the non-finite steps that end a run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from posteria.errors import TrainingError

# A run may start badly: the share of skipped steps counts only from so many skipped steps on.
_LEAST_SKIPPED = 100
_LARGEST_SHARE = 0.1


class NonFiniteGuard:
    """Counters that stay on the device, so that counting costs no wait; :meth:`check` reads them.

    Args:
        device: of the losses.
        patience: so many skipped steps in a row end the run.
    """

    def __init__(self, device: torch.device | str, patience: int = 50):
        self.patience = patience
        self._skipped = torch.zeros((), device=device, dtype=torch.long)
        self._row = torch.zeros((), device=device, dtype=torch.long)
        self._longest_row = torch.zeros((), device=device, dtype=torch.long)

    def count(self, finite: Tensor) -> None:
        """Take note of one step; finite is a boolean scalar."""
        bad = ~finite
        self._skipped += bad
        self._row = (self._row + 1) * bad
        self._longest_row = torch.maximum(self._longest_row, self._row)

    @property
    def skipped(self) -> int:
        """Steps skipped so far (waits for the device)."""
        return int(self._skipped)

    def check(self, steps: int) -> None:
        """Raise a TrainingError when too many of the steps so far were skipped."""
        skipped, row = self.skipped, int(self._longest_row)
        too_many = skipped >= _LEAST_SKIPPED and skipped > _LARGEST_SHARE * steps
        if row >= self.patience or too_many:
            raise TrainingError(
                f"the loss or its gradient was not finite in {skipped} of {steps} steps ({row} in a row). "
                "Likely causes: a learning rate that is too high (try a tenth, or a longer warm-up), a likelihood "
                "that overflows or is -inf at prior draws (try the model's log_likelihood on task.draw), prior or "
                "input scales far from one, or bf16 precision (try precision 32)"
            )

    def tensors(self) -> dict[str, Tensor]:
        """The counters by name."""
        return {"skipped": self._skipped, "row": self._row, "longest_row": self._longest_row}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`tensors`."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])


class Window:
    """Sums over the steps since the last row of the log; skipped steps do not count."""

    def __init__(self, device: torch.device | str):
        self._sums = torch.zeros(3, device=device, dtype=torch.float64)  # loss, norm, steps

    def add(self, loss: Tensor, norm: Tensor, finite: Tensor) -> None:
        """Take in one step; all three are scalars, finite a boolean."""
        figures = torch.stack([loss.double(), norm.double(), torch.ones_like(loss, dtype=torch.float64)])
        self._sums += torch.where(finite, figures, 0.0)

    def means(self) -> dict[str, float]:
        """Mean loss and norm of the gradient before clipping (waits for the device); NaN without a step."""
        loss, norm, steps = self._sums.tolist()
        return {"loss": loss / steps, "gradient_norm": norm / steps} if steps else {
            "loss": math.nan, "gradient_norm": math.nan}

    @property
    def mean_loss(self) -> float:
        return self.means()["loss"]

    def clear(self) -> None:
        """Begin a new window."""
        self._sums.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {"sums": self._sums}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`tensors`."""
        self._sums.copy_(tensors["sums"])
