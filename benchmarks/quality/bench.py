"""Quality at a budget of minutes on a CPU: trains every row of rows.py, measures it, and writes README.md.

    python benchmarks/quality/bench.py                              # rows that have no result yet: hours
    python benchmarks/quality/bench.py --rows lr_25d lc_2d --again  # some of them, once more
    python benchmarks/quality/bench.py --minutes-scale 0.02 --datasets 10    # a trial, in trial/
    python benchmarks/quality/bench.py --list
    python benchmarks/quality/bench.py --report                     # README.md alone

A row's result is results/<row>.json, written when the row is done; a run that is stopped goes on with the next row.
Beside the trained estimator the same figures are taken of the untrained network (the encoder's search alone), and
of the search without its widenings (Laplace's approximation, in the family of the density).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measures import MEASURES, Figures
from report import write_report
from rows import ROWS, Row

from posteria.bench.cases import TEST_SEED, draw_cases
from posteria.bench.workspace import machine
from posteria.training import TrainConfig, build, train

HERE = Path(__file__).parent
RESULTS, TRIAL = HERE / "results", HERE / "trial"
# What a row is known by: a result whose values here differ is of another run.
_IDENTITY = ("config", "draws", "datasets")


def main() -> None:
    """Run the rows that have no result yet, then write the report."""
    arguments = _parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    whole = arguments.minutes_scale == 1.0 and arguments.datasets is None
    folder = RESULTS if whole else TRIAL
    rows = [ROWS[name] for name in arguments.rows]
    if arguments.list:
        for row in rows:
            _say(f"{row.name:28} {row.title}: " + "; ".join(f"{g.figure} {g.text}" for g in row.goals))
        return
    if not arguments.report:
        for row in rows:
            run_row(row, folder, arguments.minutes_scale, arguments.datasets, arguments.again)
    write_report(folder, (HERE if whole else TRIAL) / "README.md")


def run_row(row: Row, folder: Path, minutes_scale: float = 1.0, datasets: int | None = None,
            again: bool = False) -> dict[str, Any]:
    """Train and measure a row, and write its result, unless the folder has it.

    Args:
        row: what to run.
        folder: where results are.
        minutes_scale: factor on the budget.
        datasets: test datasets, in place of the row's (fewer, for trials).
        again: run it although the folder has its result.
    """
    config, path = row.train_config(minutes_scale), folder / f"{row.name}.json"
    count = row.datasets if datasets is None else min(datasets, row.datasets)
    identity = {"config": config.model_dump(mode="json"), "draws": row.draws, "datasets": count}
    if not again and path.exists():
        known = json.loads(path.read_text())
        if all(known.get(name) == identity[name] for name in _IDENTITY):
            _say(f"{row.name}: done already")
            return known
    _say(f"{row.name}: training")
    result = {"row": row.name, **identity, "test_seed": TEST_SEED, **_measured(row, config, count), **machine(),
              "finished": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}
    folder.mkdir(exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(result, indent=1))
    os.replace(temporary, path)
    _say(f"{row.name}: " + "; ".join(f"{name} {value['value']:.4g} ({'met' if value['met'] else 'missed'})"
                                     for name, value in result["goals"].items()))
    return result


def _measured(row: Row, config: TrainConfig, count: int) -> dict[str, Any]:
    before = {name: _measure(row, build(other)[0], other, count) for name, other in _untrained(row, config).items()}
    began = time.perf_counter()
    trained = train(config)
    seconds = time.perf_counter() - began
    figures = _measure(row, trained.estimator, config, count)
    goals = {goal.figure: {"goal": goal.text, "value": figures[goal.figure][0],
                           "met": goal.met(figures[goal.figure][0], seconds)} for goal in row.goals}
    last = trained.history[-1]
    return {"seed": config.seed, "steps": int(last["step"]), "skipped_steps": int(last["skipped"]),
            "training_seconds": round(seconds, 1), "goals": goals, "figures": _to_json(figures),
            **{name: _to_json(values) for name, values in before.items()}}


def _measure(row: Row, estimator: Any, config: TrainConfig, count: int) -> Figures:
    cases = list(draw_cases(build(config)[1], count))
    return MEASURES[row.measure](estimator.eval(), cases, row)


def _untrained(row: Row, config: TrainConfig) -> dict[str, TrainConfig]:
    """The configurations whose untrained networks say what the search alone gives."""
    if config.encoder.name != "iterative" or row.measure == "latency":
        return {}
    climb_only = {"name": "iterative", "options": {**config.encoder.options, "widenings": 0}}
    return {"untrained": config, "laplace": TrainConfig.of(**{**config.model_dump(), "encoder": climb_only})}


def _to_json(figures: Figures) -> dict[str, dict[str, float | None]]:
    return {name: {"mean": _finite(mean), "standard_error": _finite(error)} for name, (mean, error) in figures.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW",
                        help="some rows (see --list); default all")
    parser.add_argument("--list", action="store_true", help="list the rows and their goals")
    parser.add_argument("--report", action="store_true", help="write README.md from the results there are")
    parser.add_argument("--again", action="store_true", help="run rows that have their result")
    parser.add_argument("--minutes-scale", type=float, default=1.0, help="factor on every budget, for trials")
    parser.add_argument("--datasets", type=int, help="test datasets per row at most, for trials")
    parser.add_argument("--threads", type=int, help="threads of torch; default its own choice")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
