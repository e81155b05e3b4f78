"""README.md from results.json: `python benchmarks/shipped/report.py` writes it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
POINTS, SHARE = 0.02, 0.10
Table = dict[str, Any]

_INTRODUCTION = """# The shipped estimators on 22 real tables

Nine regression and thirteen binary classification tables of the OpenML-CTR23 and OpenML-CC18 suites, {folds}-fold
cross-validation (stratified for classes, seed {seed}), encoded by `TableCodec` on the training part only: numbers
standardised, labels one-hot; a level that the training part lacks becomes its most common one.

    POSTERIA_DATA=path/to/tabular python benchmarks/shipped/bench.py

- *posteria*: the shipped estimator's posterior predictive over {num_samples} draws (mean, or class probabilities).
- *untrained*: the same network before training, that is, the search of the iterative encoder alone.
- *sklearn*: BayesianRidge or LogisticRegression, default settings (iterations until it converges), same encoding.
- *constant*: mean and sd, or class frequencies, of the training part. *prior*: the prior predictive.
- *log p*: mean log predictive density per test row, in nats (of standardised y for regression). Higher is better.

Machine: {processor}, {threads} thread(s), torch {torch}.
"""


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write the report."""
    settings = {k: results[k] for k in ("folds", "seed", "num_samples")} | results["machine"]
    tables = results["tables"]
    notes = path.parent / "notes.md"
    parts = [_INTRODUCTION.format(**settings), _verdict(tables), _regression(tables), _classification(tables)]
    path.write_text("\n".join(parts + ([notes.read_text()] if notes.exists() else [])))


def close(table: Table) -> bool:
    """Within 2 points of accuracy, or 10% of squared error, of scikit-learn; better counts."""
    ours, theirs = table["scores"]["posteria"], table["scores"]["sklearn"]
    if table["kind"] == "regression":
        return ours["squared_error"] <= (1 + SHARE) * theirs["squared_error"]
    return ours["accuracy"] >= theirs["accuracy"] - POINTS


def beats(table: Table, other: str, score: str | None = None) -> bool:
    """Strictly better than another prediction; by default in accuracy or squared error."""
    ours, theirs = table["scores"]["posteria"], table["scores"][other]
    score = score or ("squared_error" if table["kind"] == "regression" else "accuracy")
    return ours[score] < theirs[score] if score == "squared_error" else ours[score] > theirs[score]


def _verdict(tables: list[Table]) -> str:
    worse = {other: [t["name"] for t in tables if not beats(t, other)] for other in ("prior", "constant")}
    by_density = {other: [t["name"] for t in tables if not beats(t, other, "log_predictive")] for other in worse}
    far = [t["name"] for t in tables if not close(t)]
    behind = sum(not beats(t, "sklearn", "log_predictive") for t in tables)
    return f"""## Result

- Within 2 points of accuracy or 10% of squared error of scikit-learn: **{len(tables) - len(far)} of {len(tables)}**{
    _named(far)}.
- Better than the prior: {_count(tables, worse["prior"])} by accuracy or squared error; {
    _count(tables, by_density["prior"])} by log p.
- Better than the majority class or the mean: {_count(tables, worse["constant"])} by accuracy or squared error; {
    _count(tables, by_density["constant"])} by log p.
- Log p above scikit-learn's on {len(tables) - behind} of {len(tables)}.
"""


def _count(tables: list[Table], failed: list[str]) -> str:
    return f"{len(tables) - len(failed)} of {len(tables)}{_named(failed)}"


def _named(failed: list[str]) -> str:
    return f" (not {', '.join(failed)})" if failed else ""


def _regression(tables: list[Table]) -> str:
    lines = ["## Regression: squared error (share of the variance of y) and log p\n",
             "| table | n | d | posteria | untrained | sklearn | ratio | prior | mean | log p posteria | untrained | "
             "sklearn | prior | mean | close |", "|---" * 15 + "|"]
    for t in tables:
        if t["kind"] == "regression":
            s = t["scores"]
            ratio = s["posteria"]["squared_error"] / s["sklearn"]["squared_error"]
            errors = [f"{s[m]['squared_error']:.4f}" for m in ("posteria", "untrained", "sklearn", "prior", "constant")]
            lines.append(_row(t, [*errors[:3], f"{ratio:.3f}", *errors[3:]]))
    return "\n".join(lines) + "\n"


def _classification(tables: list[Table]) -> str:
    lines = ["## Classification: accuracy, % and log p\n",
             "| table | n | d | posteria | untrained | sklearn | difference | prior | majority | log p posteria | "
             "untrained | sklearn | prior | frequencies | close |", "|---" * 15 + "|"]
    for t in tables:
        if t["kind"] == "classification":
            s = t["scores"]
            difference = 100 * (s["posteria"]["accuracy"] - s["sklearn"]["accuracy"])
            right = [f"{100 * s[m]['accuracy']:.1f}" for m in ("posteria", "untrained", "sklearn", "prior", "constant")]
            lines.append(_row(t, [*right[:3], f"{difference:+.1f}", *right[3:]]))
    return "\n".join(lines) + "\n"


def _row(table: Table, figures: list[str]) -> str:
    s = table["scores"]
    logs = [f"{s[m]['log_predictive']:.3f}" for m in ("posteria", "untrained", "sklearn", "prior", "constant")]
    cells = [table["name"], str(table["n"]), str(table["features"]), *figures, *logs, "yes" if close(table) else "no"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    write_report(json.loads((HERE / "results.json").read_text()), HERE / "README.md")
