"""Time of the log likelihood of many draws: in blocks that a processor's cache holds, against all at once.

    python benchmarks/likelihoods/bench.py          # a minute; writes README.md

Seconds of processor time of one thread, the least of three turns that alternate in one process.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from posteria.bench.alternatives_cases import CASES

HERE = Path(__file__).parent
DATASETS, DRAWS, TURNS = 250, 1000, 3

TEXT = """# Time of the log likelihood of many draws

`log_likelihood` of {draws:,} draws for each of {datasets} datasets of 128 rows (the models of `posteria bench
alternatives`), in double precision without gradients, as importance weights ask for it: all at once, as one would write
it first (`row_log_prob`, masked and summed), and as it is, some datasets at a time (`posteria/models/blocks.py`). The
numbers are the same to {error:.0e} relative to the largest.

    python benchmarks/likelihoods/bench.py

Seconds of processor time, one thread, {processor}, torch {torch}.

| | at once, s | in blocks, s | ratio |
|---|---|---|---|
{rows}

New memory for every step costs more than the arithmetic: a tensor of all terms has 256 MB.
"""


def seconds_of(function: Callable[[], torch.Tensor]) -> float:
    """Processor time of a call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def main() -> None:
    """Time every case, and write the table."""
    torch.set_num_threads(1)
    rows, error = [], 0.0
    for name, case in CASES.items():
        model, dataset = case.model(), case.draw(DATASETS).double()
        theta = model.sample_prior(dataset, DRAWS, torch.Generator().manual_seed(0)).double()

        def at_once() -> torch.Tensor:
            return torch.where(dataset.observed[:, None], model.row_log_prob(theta, dataset), 0.0).sum(-1)  # noqa: B023

        def in_blocks() -> torch.Tensor:
            return model.log_likelihood(theta, dataset)  # noqa: B023

        with torch.no_grad():
            whole, parts = at_once(), in_blocks()
            error = max(error, float((whole - parts).abs().max() / whole.abs().max()))
            turns = [(seconds_of(at_once), seconds_of(in_blocks)) for _ in range(TURNS)]
        slow, fast = (min(column) for column in zip(*turns, strict=True))
        rows.append(f"| {name} | {slow:.2f} | {fast:.2f} | **{slow / fast:.1f}** |")
        sys.stdout.write(f"{rows[-1]}\n")
    text = TEXT.format(draws=DRAWS, datasets=DATASETS, error=max(error, 1e-16), torch=torch.__version__,
                       processor=processor(), rows="\n".join(rows))
    (HERE / "README.md").write_text(text, encoding="utf-8")


def processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if (
        info.exists()) else []
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
