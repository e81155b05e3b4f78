"""Time of a sweep over the hidden units of 64 chains: compiled, against tensor operations, and against gradients.

    OMP_NUM_THREADS=1 python benchmarks/units/bench.py          # half a minute; writes README.md

Milliseconds of processor time of one thread, the least of five turns that alternate in one process.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posteria.models import NeuralRegression
from posteria.models.unit_columns import DenseColumns, LineColumns
from posteria.models.unit_sweeps import Chains
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.trust.posing import problem_of

HERE = Path(__file__).parent
NUM_CHAINS, PLACES, TURNS = 64, 6, 5

TEXT = """# Time of sweeps over hidden units

A sweep gives each of 32 hidden units a choice among {places} places, unit after unit, in {chains} chains of a
regression network (`posteria/models/hidden_units.py`), and then draws output weights. Three ways of that, given what
units would put into the regression, all with the same choices and draws: tensor operations, as one would write them
first; compiled loops over columns that are written out; and, with one feature, compiled loops over sums
(`posteria/models/unit_columns.py`). Beside them a whole sweep, with random numbers and what units would put into the
regression, and the gradients of {chains} chains.

    OMP_NUM_THREADS=1 python benchmarks/units/bench.py

Milliseconds of processor time, one thread, {processor}, torch {torch}.

| features | rows | tensors | columns | lines | tensors / best | whole sweep | gradients |
|---|---|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Time every size, and write the table."""
    torch.set_num_threads(1)
    lines = [row_of(features, rows) for features in (1, 5) for rows in (100, 1000)]
    text = TEXT.format(places=PLACES, chains=NUM_CHAINS, processor=processor(), torch=torch.__version__,
                       rows="\n".join(lines))
    (HERE / "README.md").write_text(text, encoding="utf-8")


def row_of(features: int, rows: int) -> str:
    """A line of the table."""
    model, generator = NeuralRegression(), generator_for(0)
    dataset = SimulatedTask(model, (rows, rows), (features, features)).draw(1, generator)[0].double()
    problem = problem_of(model, dataset)
    size = problem.active.shape[1]
    z = torch.randn(1, NUM_CHAINS, size, dtype=torch.double, generator=generator)
    theta = problem.joint.theta(torch.randn(1, NUM_CHAINS * PLACES, size, dtype=torch.double, generator=generator))
    columns = written_out(model, dataset, theta)
    found = model.rectified(theta, dataset)
    sums = None if found is None else LineColumns.of(found, PLACES, torch.ones(32, dtype=torch.double))
    order = torch.randperm(32, generator=generator)
    start = chains_of()
    ways: dict[str, Callable[[], Any]] = {"tensors": lambda: by_tensors(columns, order, copied(start)),
                                          "columns": lambda: columns.sweep(order, copied(start))}
    if sums is not None:
        ways["lines"] = lambda: sums.sweep(order, copied(start))
    assert problem.moves is not None
    ways |= {"whole": lambda: problem.moves(z, generator), "gradients": lambda: problem.joint.score(z)}
    check(columns, sums, order)
    took = {name: min(one[name] for one in [turn(ways) for _ in range(TURNS)]) for name in ways}
    best = took.get("lines", took["columns"])
    cells = [f"{1e3 * took[name]:.1f}" if name in took else "" for name in ("tensors", "columns", "lines")]
    row = [str(features), f"{rows:,}", *cells, f"**{took['tensors'] / best:.1f}**", f"{1e3 * took['whole']:.1f}",
           f"{1e3 * took['gradients']:.1f}"]
    sys.stdout.write(f"{row}\n")
    return f"| {' | '.join(row)} |"


def written_out(model: NeuralRegression, dataset: Any, theta: Tensor) -> DenseColumns:
    """Columns (C, K, H, N), and targets."""
    design, target, strength = model.regression(theta, dataset)
    root = float(strength.flatten()[0].sqrt())
    values = (design[0].mT * root).unflatten(0, (NUM_CHAINS, PLACES)).contiguous()
    return DenseColumns(values, (target[0, 0, :, 0] * root).expand(NUM_CHAINS, -1).contiguous())


def chains_of() -> Chains:
    """As `posteria.models.hidden_units` makes them."""
    generator = generator_for(1)
    place = torch.randint(PLACES, (NUM_CHAINS, 32), generator=generator)
    luck = torch.randn(NUM_CHAINS, 32, PLACES, dtype=torch.double, generator=generator)
    white = torch.randn(NUM_CHAINS, 32, dtype=torch.double, generator=generator)
    state = (luck, place, torch.zeros_like(white), white, place.clone(), white.clone(), white[:, 0].clone())
    return Chains(*(values.numpy() for values in state))


def copied(state: Chains) -> Chains:
    """A sweep writes into what it is given."""
    return Chains(*(values.copy() for values in state))


def by_tensors(columns: DenseColumns, order: Tensor, state: Chains) -> tuple[Tensor, Tensor]:
    """The choices and output weights (C, H), all chains in every operation."""
    chains, eye = torch.arange(NUM_CHAINS), torch.eye(32, dtype=torch.double)
    luck, place, white = (torch.from_numpy(values) for values in (state.luck, state.place, state.white))
    values = columns.values.transpose(0, 2).transpose(1, 2)  # (H, C, K, N)
    current, picked = values[torch.arange(32)[:, None], chains, place.mT].transpose(0, 1).contiguous(), place.clone()
    pulls, sizes = (values @ columns.target[..., None])[..., 0], values.square().sum(-1)
    inverse, pulled = (current @ current.mT + eye).inverse(), (current @ columns.target[..., None])[..., 0]
    for j in order.tolist():
        column, own = inverse[:, :, j], inverse[:, j, j]
        across = values[j] @ current.mT
        solved = across @ inverse - (across @ column[..., None]) * (column / own[:, None])[:, None]
        solved[..., j] = 0.0
        left = 1.0 + sizes[j] - (solved * across).sum(-1)
        height = 0.5 * ((pulls[j] - (solved @ pulled[..., None])[..., 0]).square() / left - left.log())
        chosen = (height + luck[:, j]).argmax(-1)
        picked[:, j], current[:, j], pulled[:, j] = chosen, values[j, chains, chosen], pulls[j, chains, chosen]
        row = -solved[chains, chosen]
        row[:, j] = 1.0
        sides, signs = torch.stack([column, row], -1), torch.stack([-1.0 / own, 1.0 / left[chains, chosen]], -1)
        inverse = torch.baddbmm(inverse, sides * signs[:, None], sides.mT)
    factor = torch.linalg.cholesky(current @ current.mT + eye)
    mean = torch.cholesky_solve(pulled[..., None], factor)
    return picked, (mean + torch.linalg.solve_triangular(factor.mT, white[..., None], upper=True))[..., 0]


def check(columns: DenseColumns, sums: LineColumns | None, order: Tensor) -> None:
    """All ways choose and draw alike."""
    picked, weights = by_tensors(columns, order, chains_of())
    for way in (columns, sums):
        if way is not None:
            state = chains_of()
            way.sweep(order, state)
            assert (torch.from_numpy(state.picked) == picked).all()
            torch.testing.assert_close(torch.from_numpy(state.weights), weights, rtol=1e-6, atol=1e-6)


def turn(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each."""
    return {name: seconds_of(way) for name, way in ways.items()}


def seconds_of(function: Callable[[], Any]) -> float:
    """Processor time of a call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if (
        info.exists()) else []
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
