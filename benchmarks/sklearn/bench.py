"""Time of fit and predict on 500 rows and 20 columns beside scikit-learn's own: results.json and README.md.

    python benchmarks/sklearn/bench.py [--threads 2]

The sides take turns in one process, and the median counts. Beside the wall clock stand seconds of processor time, which
others on the machine disturb little. The first call of each, which loads the estimator, is not counted but reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from posteria.sklearn import AmortizedClassifier, AmortizedRegressor

HERE = Path(__file__).parent
ROWS, COLUMNS, REPEATS, SEED = 500, 20, 30, 0
Timed = dict[str, Any]

_README = """# scikit-learn estimators: fit and predict

{rows} training rows, the same rows predicted, {columns} standard normal columns; 1,000 posterior draws; medians of
{repeats} turns, seed {seed}. Machine: {processor}, {threads} thread(s), torch {torch}, scikit-learn {sklearn}.

    python benchmarks/sklearn/bench.py

| | fit, ms | predict, ms | together, ms | processor time together, ms | first call, s |
|---|---|---|---|---|---|
{table}

Regressors predict means and standard deviations, classifiers probabilities. The first call of an estimator loads it,
and warms torch up. Where other work shares the cores, processor time is the better guide to what an idle machine takes.

scikit-learn's two solve, in closed form or a few Newton steps, the one model that they know, and are ten times faster
and more. What posteria's milliseconds buy is the joint posterior of all parameters, and the same door for every model
that an estimator can be trained on. The goal was 100 ms on two cores. At this size threads wait for each other longer
than they work, so that small tables are fitted and predicted on one, whatever torch is set to. Half of a fit is the
check of the posterior (`trust="off"` leaves it out), most of the rest the search of the iterative encoder, and most of
a classifier's prediction the normalisation of 500,000 pairs of probabilities.
"""


def tasks() -> dict[str, Callable[[], Any]]:
    """Name -> an unfitted estimator."""
    return {
        "AmortizedRegressor": AmortizedRegressor,
        "AmortizedRegressor, not checked": lambda: AmortizedRegressor(trust="off"),
        "BayesianRidge": lambda: make_pipeline(StandardScaler(), BayesianRidge()),
        "AmortizedClassifier": AmortizedClassifier,
        "AmortizedClassifier, not checked": lambda: AmortizedClassifier(trust="off"),
        "LogisticRegression": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    }


def draw(regression: bool) -> tuple[np.ndarray, np.ndarray]:
    """X (N, D) and y (N,), of a linear model with noise."""
    rng = np.random.default_rng(SEED)
    X = rng.normal(size=(ROWS, COLUMNS))
    line = X @ rng.normal(size=COLUMNS) / COLUMNS**0.5 + rng.normal(size=ROWS)
    return X, line if regression else np.where(line > 0, "yes", "no")


def turn(name: str, make: Callable[[], Any]) -> list[tuple[float, float]]:
    """(wall, processor) seconds of fit and of predict."""
    regression = "Regressor" in name or name == "BayesianRidge"
    X, y = draw(regression)
    estimator = make()
    steps = (lambda: estimator.fit(X, y),
             (lambda: estimator.predict(X, return_std=True)) if regression else lambda: estimator.predict_proba(X))
    seconds = []
    for step in steps:
        wall, processor = time.perf_counter(), time.process_time()
        step()
        seconds.append((time.perf_counter() - wall, time.process_time() - processor))
    return seconds


def measure() -> dict[str, Timed]:
    """Medians in milliseconds per estimator, the sides taking turns."""
    first = {name: sum(wall for wall, _ in turn(name, make)) for name, make in tasks().items()}
    turns: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in tasks()}
    for _ in range(REPEATS):
        for name, make in tasks().items():
            turns[name].append(turn(name, make))
    return {name: {
        "fit_ms": 1000 * statistics.median(fit[0] for fit, _ in own),
        "predict_ms": 1000 * statistics.median(predict[0] for _, predict in own),
        "together_ms": 1000 * statistics.median(fit[0] + predict[0] for fit, predict in own),
        "processor_ms": 1000 * statistics.median(fit[1] + predict[1] for fit, predict in own),
        "first_call_s": first[name]} for name, own in turns.items()}


def write_report(results: dict[str, Any]) -> None:
    """README.md from the results."""
    rows = [f"| {name} | {t['fit_ms']:.1f} | {t['predict_ms']:.1f} | {t['together_ms']:.1f} | "
            f"{t['processor_ms']:.1f} | {t['first_call_s']:.2f} |" for name, t in results["estimators"].items()]
    settings = {"rows": ROWS, "columns": COLUMNS, "repeats": REPEATS, "seed": SEED, **results["machine"]}
    (HERE / "README.md").write_text(_README.format(table="\n".join(rows), **settings))


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    machine = {"processor": platform.processor() or platform.machine(), "threads": threads,
               "torch": torch.__version__, "sklearn": sklearn.__version__}
    results = {"machine": machine, "estimators": measure()}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_report(results)


if __name__ == "__main__":
    main()
