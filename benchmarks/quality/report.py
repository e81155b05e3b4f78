"""README.md from the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rows import ROWS, Goal, Row

_INTRODUCTION = """# Quality at a budget of minutes

Every row is one training run of the recipe in `rows.py` (the default preset where it says nothing), then figures on
test datasets that no training run sees: 64 to 128 rows each, 25 posterior draws, 100 held-out rows, unless a row says
otherwise; ± is the standard error over the test datasets. *Untrained* is the network before its first step: what the
iterative encoder's search finds on its own. *Laplace* is its climb to a mode and the curvature there, in the
family of the density. Training adds what lies between *untrained* and *posteria*. *Paper* is arXiv 2502.06601, on
its own test datasets. *Exact* is the exact posterior on the same datasets, where it has a closed form (for the mixture,
the true means). Minutes are the wall clock of training, everything included.

    python benchmarks/quality/bench.py

"""

_LABELS = {
    "symmetric_kl": "symmetric KL per parameter",
    "posterior_mean_error": "squared error of the posterior mean",
    "accuracy_per_draw": "accuracy per draw, %",
    "map_gap": "MAP's accuracy minus the ensemble's, points",
    "l2_per_draw": "squared error per draw",
    "both_labellings": "datasets with both labellings, %",
    "predictive_loss": "loss of predictive density, nats per row",
    "agreeing": "datasets that agree with NUTS, %",
    "milliseconds": "median milliseconds",
}


def write_report(results: Path, path: Path) -> None:
    """One table of the results that ``results`` holds, in the order of the rows."""
    found = {name: json.loads((results / f"{name}.json").read_text()) for name in ROWS
             if (results / f"{name}.json").exists()}
    lines = ["| | figure | goal | paper | exact | Laplace | untrained | posteria | minutes | met |", "|---" * 10 + "|"]
    lines += [_line(ROWS[name], result, goal) for name, result in found.items() for goal in ROWS[name].goals]
    parts = [_INTRODUCTION, "\n".join(lines), "\n", _more(found), _notes(found), _machines(found)]
    path.write_text("\n".join(part for part in parts if part))


def _line(row: Row, result: Mapping[str, Any], goal: Goal) -> str:
    name = goal.figure
    minutes = result["training_seconds"] / 60
    met = _met(result, goal) + ("" if _current(row, result) else " (an earlier recipe)")
    cells = [row.title, _LABELS.get(name, name), goal.text, _number(row.paper.get(name)), _exact(row, result, name),
             _figure(result, "laplace", name), _figure(result, "untrained", name),
             f"**{_figure(result, 'figures', name) or '?'}**", f"{minutes:.1f}" if goal.minutes else "", met]
    return "| " + " | ".join(cells) + " |"


def _met(result: Mapping[str, Any], goal: Goal) -> str:
    """By the goals as they are now: a changed goal needs no new run."""
    value = result["figures"].get(goal.figure, {}).get("mean")
    if value is None:
        return "not measured"
    return "yes" if goal.met(value, result["training_seconds"]) else "**no**"


def _current(row: Row, result: Mapping[str, Any]) -> bool:
    """The result is of the row's recipe as it is now, its budget apart."""
    now, then = row.train_config().model_dump(mode="json"), result["config"]
    return all(now[name] == then.get(name) for name in now if name not in ("minutes", "steps"))


def _exact(row: Row, result: Mapping[str, Any], name: str) -> str:
    exact = row.exact.get(name)
    return _figure(result, "figures", exact) if isinstance(exact, str) else _number(exact)


def _figure(result: Mapping[str, Any], stage: str, name: str) -> str:
    figure = result.get(stage, {}).get(name)
    if figure is None:
        return ""
    error = figure["standard_error"]
    return _number(figure["mean"]) + (f" ± {_rounded(error)}" if error else "")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _rounded(error: float) -> str:
    return f"{error:.1g}" if error < 9.5 else f"{error:.0f}"


def _more(found: Mapping[str, Any]) -> str:
    """Figures without a goal."""
    lines = ["## Other figures\n", "| | figure | paper | exact | Laplace | untrained | posteria |",
             "|---" * 7 + "|"]
    for name, result in found.items():
        row = ROWS[name]
        shown = {goal.figure for goal in row.goals} | set(row.exact.values())
        for figure in result["figures"]:
            if figure not in shown:
                stages = (_figure(result, stage, figure) for stage in ("laplace", "untrained", "figures"))
                label = _LABELS.get(figure, figure.replace("_", " "))
                cells = [row.title, label, _number(row.paper.get(figure)), _exact(row, result, figure), *stages]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _notes(found: Mapping[str, Any]) -> str:
    lines = [f"- {ROWS[name].title}: {ROWS[name].note}." for name in found if ROWS[name].note]
    return "## Notes\n\n" + "\n".join(lines) + "\n" if lines else ""


def _machines(found: Mapping[str, Any]) -> str:
    machines = {f"{r['processor']}, {r['cores']} cores, {r['threads']} thread(s), torch {r['torch']}, "
                f"Python {r['python']}" for r in found.values()}
    return "Machine: " + "; ".join(sorted(machines)) + ".\n" if machines else ""
