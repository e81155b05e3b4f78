"""The report of `posteria bench universal`: a row per family and condition, and what is asked of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from posteria.bench.plain_report import markdown_table
from posteria.bench.scales import Scale
from posteria.bench.store import Result, ResultStore
from posteria.bench.universal_bench import BENCH, SIZES, signature_of
from posteria.bench.universal_cases import BEYOND, CASES, HELD_OUT, NARROW, NUTS_TOO, TRAINED, WIDE
from posteria.bench.universal_sizes import BY_SIZE, EVERY_FAMILY, rows_by_size
from posteria.every_model import universal

if TYPE_CHECKING:
    import pandas as pd

# Nats per observation that the network may lose to per-dataset optimization.
_MOST_LOST, _MOST_LOST_ELSEWHERE = 0.005, 0.02
_LEAST_PASSED, _LEAST_ESS = 0.8, 0.8
_INTRODUCTION = """\
Every cell: {datasets} fresh datasets in {batches} batches, each with a model, priors, sizes and features of its own;
where they are large {few}, or 1,000 in batches of five. Cells with *earlier* in the column *network* were made by the
weights shipped before.

- *passed*: share with Pareto k-hat below 0.7 for importance weights of the network's answer; *with refinement*: or of
  the cheap refined proposal. *ESS*: effective draws of 1,000.
- *gap*: nats per observation by which {steps} steps of Adam on the evidence lower bound, dataset by dataset and from
  the network's answer, better the bound (zero where they do not); over {optimised} of the batches ({few_optimised} of
  large ones; the column *optimised* counts datasets). A specialist
  of the same density cannot do better than that on average. Standard errors are over batches.
- *near NUTS*: of the few datasets that were compared, the share whose means are all within 0.1 sd of NumPyro's NUTS
  (8,000 draws, R-hat below 1.01), and in brackets up to three standard errors. The cheap rung is asked for means alone
  there (sds of heavy tails take more draws), within 0.05 sd where inputs are designed, 0.1 in `many_groups`. Answers
  that fail, and NUTS where it does not converge, are left out.
- Seconds are per dataset, in one process, without the cheap rung."""
_BY_SIZE = ("## By rows, features and priors", "", "All families of training together, as often as in training, every "
            "batch with a model of its own. *prior*: of the first parameter, and its sd.")


def write_universal_report(scale: Scale, store: ResultStore, folder: Path) -> list[Path]:
    """Write ``universal_<scale>.md`` and ``.csv``, and ``universal_sizes_<scale>.csv``; returns their paths."""
    results = [r for r in store.results() if r.bench == BENCH and r.scale == scale.name]
    frame, by_size = _frame(results), _by_size(results)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"universal_{scale.name}.{ending}" for ending in ("md", "csv")]
    sizes, large = SIZES[scale.name]
    introduction = _INTRODUCTION.format(
        datasets=f"{sizes.batches * sizes.batch_size:,}", batches=sizes.batches, few=large.batches * large.batch_size,
        steps=sizes.steps, optimised=sizes.optimised, few_optimised=large.optimised)
    text = ["# One network for every model", "", f"    posteria bench universal --scale {scale.name}", "", introduction,
            "", *_table(frame), "", *_BY_SIZE, "", *_table(by_size)]
    paths[0].write_text("\n".join(text) + "\n", encoding="utf-8")
    frame.to_csv(paths[1], index=False, float_format="%.6g")
    paths.append(folder / f"universal_sizes_{scale.name}.csv")
    by_size.to_csv(paths[2], index=False, float_format="%.6g")
    return paths


def _table(frame: pd.DataFrame) -> list[str]:
    return markdown_table(frame) if len(frame) else ["Not measured."]


def _by_size(results: list[Result]) -> pd.DataFrame:
    """A row per group of datasets of all families together."""
    import pandas as pd

    return pd.DataFrame([row for r in results if (r.setup, r.method) == (EVERY_FAMILY, BY_SIZE)
                         for row in rows_by_size(r)])


def _frame(results: list[Result]) -> pd.DataFrame:
    """A row for every result, in the order of the cases."""
    import pandas as pd

    order = {(case, condition): i for i, (case, condition) in enumerate(
        (case, condition) for case, found in CASES.items() for condition in found)}
    # What other priors cost is judged by the usual ones of the same version and network.
    usual = {(r.setup, *_made_by(r)): _mean(r, "ess") for r in results if r.method == TRAINED}
    known = sorted((r for r in results if (r.setup, r.method) in order), key=lambda r: order[r.setup, r.method])
    shipped = signature_of(universal().network)
    return pd.DataFrame([_row(r, usual.get((r.setup, *_made_by(r)), math.nan), shipped) for r in known])


def _made_by(result: Result) -> tuple[object, object]:
    return result.identity["version"], result.identity["weights"]


def _row(result: Result, usual: float, shipped: str) -> dict[str, object]:
    least, most = result.record["parameters"]
    return {"family": result.setup, "condition": result.method,
            "network": "shipped" if result.identity["weights"] == shipped else "earlier",
            "datasets": _mean(result, "datasets"), "optimised": _mean(result, "optimised"),
            "parameters": f"{least} to {most}",
            "passed": _mean(result, "passed"), "with refinement": _mean(result, "passed_cheaply"),
            "ESS": _mean(result, "ess"), "gap": _mean(result, "gap"), "± gap": _error(result, "gap"),
            "gap median": _mean(result, "gap_median"), "gap 95%": _mean(result, "gap_95"),
            "near NUTS": _near(result), "seconds": _mean(result, "seconds"), "goal": _goal(result, usual)}


def _near(result: Result) -> str:
    if "near" not in result.figures:
        return ""
    count = _mean(result, "compared")
    strictly, leniently = (round(count * _mean(result, name)) for name in ("near", "near_up_to_chance"))
    return f"{strictly} ({leniently}) of {count:.0f}"


def _goal(result: Result, usual: float) -> str:
    """What is asked of the cell, and whether it holds."""
    if result.method == NUTS_TOO:
        held = _mean(result, "passed_cheaply") >= _LEAST_PASSED and _mean(result, "near_up_to_chance") == 1.0
        return _verdict(held, f"{_LEAST_PASSED:.0%} pass with refinement, means within 0.1 sd of NUTS")
    if result.method == HELD_OUT:
        return _verdict(_mean(result, "passed_cheaply") >= _LEAST_PASSED, f"{_LEAST_PASSED:.0%} pass with refinement")
    if result.method in (WIDE, NARROW) and math.isnan(usual):
        return "its version has no cell to judge by"
    if result.method in (WIDE, NARROW):
        return _verdict(_mean(result, "ess") >= _LEAST_ESS * usual, f"ESS at least {_LEAST_ESS:.0%} of the trained")
    concave = CASES[result.setup][result.method].log_concave and result.method != BEYOND
    limit = _MOST_LOST if concave else _MOST_LOST_ELSEWHERE
    return _verdict(_mean(result, "gap") <= limit, f"gap at most {limit}")


def _verdict(held: bool, goal: str) -> str:
    return f"{'met' if held else '**missed**'}: {goal}"


def _mean(result: Result, name: str) -> float:
    found = result.figures.get(name, {}).get("mean")
    return math.nan if found is None else found


def _error(result: Result, name: str) -> float:
    found = result.figures.get(name, {}).get("standard_error")
    return math.nan if found is None else found
