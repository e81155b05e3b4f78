"""The main job on two real tables: a shipped estimator's posterior, its summary, plots, report and held-out score.

Run: python examples/demo.py [folder]. `make demo` sets everything up and runs it. Results go to demo_output/, one
folder per table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, r2_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import posteria
from posteria import plots
from posteria.inference import TableInference
from posteria.prediction import Prediction

TARGET = "target"
NUM_SAMPLES = 1000
Scores = dict[str, tuple[float, float]]  # posteria's, scikit-learn's


def score_classes(result: TableInference, rival: Any, table: pd.DataFrame) -> Scores:
    truth, features = table[TARGET], table.drop(columns=TARGET)
    ours = predict(result, features).mean[0].double().numpy()
    ours = pd.DataFrame(ours / ours.sum(1, keepdims=True), columns=list(result.codec.label_names))
    theirs = pd.DataFrame(rival.predict_proba(features), columns=rival.classes_)
    labels = sorted(ours.columns)
    return {
        "accuracy": (accuracy_score(truth, ours.idxmax(axis=1)), accuracy_score(truth, theirs.idxmax(axis=1))),
        "log loss": (log_loss(truth, ours[labels], labels=labels), log_loss(truth, theirs[labels], labels=labels)),
    }


def score_numbers(result: TableInference, rival: Any, table: pd.DataFrame) -> Scores:
    truth, features = table[TARGET].to_numpy(dtype=float), table.drop(columns=TARGET)
    prediction, own_units = predict(result, features), result.codec.target_in_units
    mean = own_units(prediction.mean[0]).numpy()
    low, high = (own_units(end[0]).numpy() for end in prediction.interval(0.9))
    their_mean, their_sd = rival.predict(features, return_std=True)
    their_inside = np.abs(truth - their_mean) <= 1.645 * their_sd
    return {
        "root mean squared error": (root_mean_squared_error(truth, mean), root_mean_squared_error(truth, their_mean)),
        "R2": (r2_score(truth, mean), r2_score(truth, their_mean)),
        "rows inside 90% interval": (float(np.mean((low <= truth) & (truth <= high))), float(np.mean(their_inside))),
    }


def predict(result: TableInference, features: pd.DataFrame) -> Prediction:
    return result.posterior.predict(result.codec.encode(features), NUM_SAMPLES, seed=0)


@dataclass(frozen=True)
class Example:
    """A table, the shipped estimator for it, and scikit-learn's method to compare with."""

    name: str
    estimator: str
    table: pd.DataFrame
    rival: Any
    scores: Callable[[TableInference, Any, pd.DataFrame], Scores]


def examples() -> list[Example]:
    cancer: Any = load_breast_cancer(as_frame=True)
    named = cancer.target.map(dict(enumerate(map(str, cancer.target_names))))
    diabetes: Any = load_diabetes(as_frame=True, scaled=False)
    return [
        Example("breast_cancer", "linear_classification", cancer.data.assign(target=named), LogisticRegression(),
                score_classes),
        Example("diabetes", "linear_regression", diabetes.data.assign(target=diabetes.target), BayesianRidge(),
                score_numbers),
    ]


def run(example: Example, out: Path) -> None:
    """Infer from 80% of the rows, score on the rest, and write what a person wants to look at."""
    train, held_out = split(example.table)
    estimator = posteria.load(example.estimator)
    posteria.infer_table(estimator, train, TARGET, num_samples=1)  # torch's first call is slow, and would be timed
    start = time.perf_counter()
    result = posteria.infer_table(estimator, train, TARGET, num_samples=NUM_SAMPLES)
    milliseconds = 1000 * (time.perf_counter() - start)
    print(f"\n{example.name}: {len(train)} rows, {len(result.codec.features)} features, {len(result.summary)} "
          f"parameters; {NUM_SAMPLES} posterior draws in {milliseconds:.0f} ms")
    print(result.summary.head(8).round(3).to_string())
    for note in result.notes:
        print(f"note: {note}")

    rival = make_pipeline(StandardScaler(), example.rival).fit(train.drop(columns=TARGET), train[TARGET])
    scores = pd.DataFrame(example.scores(result, rival, held_out), index=["posteria", type(example.rival).__name__])
    print(f"\nOn the {len(held_out)} rows held out:\n{scores.round(3).to_string()}")
    write(out, example, result, scores)


def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows: Any = train_test_split(table.index, test_size=0.2, random_state=0)
    return table.loc[rows[0]], table.loc[rows[1]]


def write(out: Path, example: Example, result: TableInference, scores: pd.DataFrame) -> None:
    out.mkdir(parents=True, exist_ok=True)
    result.save(out, f"{example.name}: {example.estimator}")  # summary.csv, draws.parquet, report.html
    plots.pairs(result.posterior).savefig(out / "pairs.png")
    plots.predictive(result.posterior, codec=result.codec).savefig(out / "predictive.png")
    scores.to_csv(out / "held_out.csv")


def main(out: Path) -> None:
    for example in examples():
        run(example, out / example.name)
    print(f"\nSummaries, draws, plots and reports: {out}/*/report.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo_output"))
