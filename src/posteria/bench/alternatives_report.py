"""The report of `posteria bench alternatives`: a table per case, and what it says of Laplace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posteria.bench.alternatives_bench import BENCH, ENOUGH, MANY
from posteria.bench.alternatives_cases import CASES, SIZES
from posteria.bench.alternatives_methods import METHODS, OURS
from posteria.bench.plain_report import markdown_table
from posteria.bench.scales import Scale
from posteria.bench.store import Result, ResultStore

if TYPE_CHECKING:
    import pandas as pd

_CHECKED_LAPLACE = ("laplace_psis", "batched_laplace_psis")
_INTRODUCTION = """\
How long does it take to have posterior means within 0.1 sd and sds within 10%, of every parameter, unconstrained? Every
case: {datasets} datasets from the model's own prior, 64 to 128 rows, against {chains} draws or more of long chains;
datasets whose chains do not agree are left out.

- *accurate*: share of the datasets within these limits plus three standard errors of the reference and of 4,000
  independent draws, the same for every method; *strictly*: nothing allowed for chance. A method reaches accuracy with
  {enough:.0%}; one with a budget was given the next larger one until it did.
- *cold 1*: one dataset in a fresh process, with imports, loading and compilation; the import of torch counts for
  methods on torch only. *warm 1*: a later call, one dataset of the same shape (median). *{many} datasets*: methods on
  torch take them together, the others one after the other; **measured**, or in proportion to fewer (≈).
- *ratio*: time for {many} datasets over that of `posteria`; in brackets where the method is not accurate enough.

Methods on JAX compile once: all datasets have one shape, padded to 128 rows. Times hold for cells that ran on an
otherwise idle machine: use `--workers 1`."""


def write_alternatives_report(scale: Scale, store: ResultStore, folder: Path) -> list[Path]:
    """Write ``alternatives_<scale>.md`` and ``.csv``; returns their paths."""
    import pandas as pd

    newest = _newest(scale, store)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"alternatives_{scale.name}.{ending}" for ending in ("md", "csv")]
    text = ["# What a user would do otherwise", "", f"    posteria bench alternatives --scale {scale.name} --workers 1",
            "", _introduction(scale), "", *_methods(newest, SIZES[scale.name].budgets)]
    measured = [case for case in CASES if any(case == place[0] for place in newest)]
    for case in measured or SIZES[scale.name].cases:
        mine = [newest[case, method] for method in METHODS if (case, method) in newest]
        text += ["", f"## {case}", "", *_section(mine)]
    paths[0].write_text("\n".join(text) + "\n", encoding="utf-8")
    pd.DataFrame([_plain_row(r) for r in newest.values()]).to_csv(paths[1], index=False, float_format="%.6g")
    return paths


def _newest(scale: Scale, store: ResultStore) -> dict[tuple[str, str], Result]:
    found = {(r.setup, r.method): r for r in store.results() if r.bench == BENCH and r.scale == scale.name}
    order = [(case, method) for case in CASES for method in METHODS]
    return {place: found[place] for place in order if place in found}


def _introduction(scale: Scale) -> str:
    sizes = SIZES[scale.name]
    chains = f"{sizes.chains['num_chains'] * sizes.chains['num_samples']:,}"
    return _INTRODUCTION.format(datasets=sizes.accuracy, chains=chains, enough=ENOUGH, many=f"{MANY:,}")


def _methods(newest: Mapping[tuple[str, str], Result], budgets: int | None) -> list[str]:
    """A line per method: what it is, its budgets and versions, or why it was not run."""
    by_method = {method: result for (_, method), result in newest.items()}
    lines = []
    for name, method in METHODS.items():
        result = by_method.get(name)
        versions = result.record["versions"] if result else {}
        used = ", ".join(f"{library} {number}" for library, number in versions.items())
        why = f"not run here (needs {', '.join(method.missing)})" if method.missing else "not run yet"
        tried = " or ".join(_budget(budget) for budget in method.budgets[:budgets])
        lines.append("; ".join(part for part in (f"- `{name}`: {method.says}", tried, used or why) if part) + ".")
    return lines


def _section(results: Sequence[Result]) -> list[str]:
    if not results:
        return ["Not measured."]
    by_method = {r.method: r for r in results}
    first = results[0].record
    head = f"{first['parameters']} parameters, {first['datasets']} datasets with a reference"
    left_out = f" ({first['no_reference']} left out)" if first["no_reference"] else ""
    verdicts = _verdicts(by_method) if first["datasets"] else ["No dataset has a reference: nobody knows who is right."]
    return [f"{head}{left_out}.", "", *markdown_table(_frame(results, by_method.get(OURS))), "", *verdicts]


def _frame(results: Sequence[Result], ours: Result | None) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([_row(r, ours) for r in results])


def _row(result: Result, ours: Result | None) -> dict[str, object]:
    reached = _reached(result)
    many, ratio = _value(result, "many_seconds"), _ratio(result, ours)
    measured = _value(result, "many_measured") == 1.0
    return {"method": f"`{result.method}`", "budget": _budget(result.record["budget"]),
            "accurate": _percent(result, "share") + ("" if reached else " (not reached)"),
            "strictly": _percent(result, "share_strict"), "cold 1, s": _value(result, "cold_seconds"),
            "warm 1, s": _value(result, "warm_seconds"),
            f"{MANY:,} datasets, s": f"**{many:.3g}**" if measured else f"≈ {many:.3g}",
            "ratio": "" if math.isnan(ratio) else f"{ratio:.3g}" if reached else f"({ratio:.3g})"}


def _plain_row(result: Result) -> dict[str, Any]:
    figures = {name: _value(result, name) for name in result.figures}
    return {"case": result.setup, "method": result.method, "budget": _budget(result.record["budget"]), **figures,
            **{name: result.record[name] for name in ("datasets", "no_reference", "parameters")},
            "threads": result.machine["threads"], "processor": result.machine["processor"]}


# -- sentences ------------------------------------------------------------------------------------
def _verdicts(by_method: Mapping[str, Result]) -> list[str]:
    return [*_laplace(by_method), *_standing(by_method)]


def _laplace(by_method: Mapping[str, Result]) -> list[str]:
    """Is Laplace enough here, alone or with importance weights?"""
    checked = [by_method[name] for name in _CHECKED_LAPLACE if name in by_method]
    if not checked:
        return []
    weighted = ", ".join(f"`{r.method}` {_percent(r, 'share')}" for r in checked)
    alone = by_method.get("batched_laplace")
    plain = f"; without weights {_percent(alone, 'share')}" if alone else ""
    if any(_reached(r) for r in [*checked, *([alone] if alone else [])]):
        how = "Laplace alone" if alone and _reached(alone) else "Laplace with importance weights"
        return [f"{how} is enough here ({weighted} accurate{plain})."]
    return [f"Laplace is not enough here ({weighted} accurate{plain})."]


def _standing(by_method: Mapping[str, Result]) -> list[str]:
    """Who is ahead for a thousand datasets, among those that are accurate."""
    ours = by_method.get(OURS)
    if ours is None:
        return []
    if not _reached(ours):
        return [f"`posteria` does not reach accuracy here ({_percent(ours, 'share')})."]
    others = {name: _ratio(r, ours) for name, r in by_method.items() if name != OURS and _reached(r)}
    ahead = [f"`{name}` ({ratio:.2g} times)" for name, ratio in others.items() if ratio > 1.0]
    behind = [f"`{name}` ({1.0 / ratio:.2g} times)" for name, ratio in others.items() if ratio <= 1.0]
    short = [f"`{name}`" for name, r in by_method.items() if not _reached(r)]
    parts = [f"for {MANY:,} datasets `posteria` is faster than {', '.join(ahead)}" if ahead else "",
             f"slower than {', '.join(behind)}" if behind else "",
             f"not accurate enough are {', '.join(short)}" if short else ""]
    sentence = "; ".join(part for part in parts if part)
    return [f"{sentence[:1].upper()}{sentence[1:]}."] if sentence else []


def _reached(result: Result) -> bool:
    return _value(result, "reached") == 1.0


def _ratio(result: Result, ours: Result | None) -> float:
    return math.nan if ours is None else _value(result, "many_seconds") / _value(ours, "many_seconds")


def _budget(budget: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in budget.items())


def _percent(result: Result, name: str) -> str:
    value = _value(result, name)
    return "unknown" if math.isnan(value) else f"{value:.0%}"


def _value(result: Result, name: str) -> float:
    found = result.figures.get(name, {}).get("mean")
    return math.nan if found is None else found
