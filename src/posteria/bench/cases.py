"""Test datasets: fixed, never trained on, each with held-out rows from the same parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.randomness import generator_for
from posteria.tasks import Task
from posteria.types import Dataset

# Generators are spaced by a million per seed and eight thousand per step: no training run reaches this one.
TEST_SEED = 2_502_066_011
HELD_OUT_ROWS = 100
# Datasets of a batch have one number of rows.
BATCH = 10


@dataclass(frozen=True)
class Case:
    """A batch of datasets and fresh rows of the same origin.

    Attributes:
        dataset: what is put in the context.
        held_out: 100 more rows of each.
        theta: (B, P) the generating parameters, or None where the data do not come from the model.
        number: of the batch.
    """

    dataset: Dataset
    held_out: Dataset
    theta: Tensor | None
    number: int

    def generator(self, salt: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
        """For the posterior draws: the same for every method."""
        return generator_for(TEST_SEED + 1 + salt, self.number, device)


def draw_cases(task: Task, count: int, rows: tuple[int, int] | None = None) -> Iterator[Case]:
    """``count`` datasets in batches; the numbers of rows are uniform over ``rows``, by default the task's."""
    least, most = rows or task.rows
    for number, start in enumerate(range(0, count, BATCH)):
        generator = generator_for(TEST_SEED, number)
        size = int(torch.randint(least, most + 1, (), generator=generator))
        dataset, theta = task.draw(BATCH, generator, rows=size + HELD_OUT_ROWS)
        kept = slice(0, count - start)
        yield Case(_rows(dataset, slice(None, size))[kept], _rows(dataset, slice(size, None))[kept],
                   None if theta is None else theta[kept], number)


def joined(cases: Sequence[Case]) -> Dataset:
    """The datasets of all batches as one, padded to the most rows."""
    rows = max(case.dataset.x.shape[1] for case in cases)
    padded = [case.dataset.padded(rows, case.dataset.x.shape[2]) for case in cases]
    targets = [dataset.y for dataset in padded if dataset.y is not None]
    return Dataset(torch.cat([d.x for d in padded]), torch.cat(targets) if targets else None,
                   torch.cat([d.observed for d in padded]), torch.cat([d.features for d in padded]))


def _rows(dataset: Dataset, rows: slice) -> Dataset:
    y = None if dataset.y is None else dataset.y[:, rows]
    return Dataset(dataset.x[:, rows], y, dataset.observed[:, rows], dataset.features)
