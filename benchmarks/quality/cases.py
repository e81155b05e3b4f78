"""Test datasets: fixed, never trained on, each with held-out rows from the same parameters."""

from __future__ import annotations

from collections.abc import Iterator
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
    """A batch of datasets, fresh rows from the same parameters, and those parameters theta (B, P)."""

    dataset: Dataset
    held_out: Dataset
    theta: Tensor
    number: int

    def generator(self) -> torch.Generator:
        """For the posterior draws: the same for every estimator."""
        return generator_for(TEST_SEED + 1, self.number)


def draw_cases(task: Task, count: int) -> Iterator[Case]:
    """``count`` datasets in batches; the numbers of rows are uniform over the task's range."""
    for number, start in enumerate(range(0, count, BATCH)):
        generator = generator_for(TEST_SEED, number)
        least, most = task.rows
        rows = int(torch.randint(least, most + 1, (), generator=generator))
        dataset, theta = task.draw(BATCH, generator, rows=rows + HELD_OUT_ROWS)
        assert theta is not None
        kept = slice(0, count - start)
        yield Case(_rows(dataset, slice(None, rows))[kept], _rows(dataset, slice(rows, None))[kept], theta[kept],
                   number)


def _rows(dataset: Dataset, rows: slice) -> Dataset:
    y = None if dataset.y is None else dataset.y[:, rows]
    return Dataset(dataset.x[:, rows], y, dataset.observed[:, rows], dataset.features)
