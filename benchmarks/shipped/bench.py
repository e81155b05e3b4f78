"""The shipped estimators on 22 real tables, beside scikit-learn and simpler predictions: results.json and README.md.

    POSTERIA_DATA=path/to/tabular python benchmarks/shipped/bench.py [table ...]

The folder holds index.json and a gzipped CSV per table (default ../shared/data/tabular).
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from report import write_report
from scipy.stats import norm
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold

import posteria
from posteria import Estimator
from posteria.bench.workspace import machine
from posteria.prediction import Prediction
from posteria.randomness import generator_for
from posteria.tables import TableCodec

HERE = Path(__file__).parent
DATA = Path(os.environ.get("POSTERIA_DATA", HERE.parents[1].parent / "shared" / "data" / "tabular"))
FOLDS, NUM_SAMPLES, SEED, TARGET = 5, 1000, 0, "target"
ESTIMATORS = {"regression": "linear_regression", "classification": "linear_classification"}
Scores = dict[str, float]


@dataclass(frozen=True)
class Fold:
    """One training and one test part, encoded by what the training part shows."""

    train: pd.DataFrame
    test: pd.DataFrame
    trained: Estimator
    untrained: Estimator

    @cached_property
    def codec(self) -> TableCodec:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="columns: dropped")
            return TableCodec.for_model(self.trained.model, self.train, TARGET)

    @cached_property
    def x(self) -> tuple[np.ndarray, np.ndarray]:
        """Encoded features of both parts."""
        return tuple(self.codec.encode(part.drop(columns=TARGET)) for part in (self.train, self.test))  # type: ignore

    @cached_property
    def y(self) -> tuple[np.ndarray, np.ndarray]:
        """Class indices, or y standardised by the training part."""
        assert self.codec.target is not None
        return tuple(self.codec.target.encode(part[TARGET]) for part in (self.train, self.test))  # type: ignore

    def predict(self, estimator: Estimator) -> Prediction:
        return estimator.posterior(self.codec.dataset(self.train)).predict(self.x[1], NUM_SAMPLES, seed=SEED)

    @torch.no_grad()
    def predict_by_prior(self) -> Prediction:
        dataset = posteria.Dataset.of(self.x[1], self.y[1])
        theta = self.trained.model.sample_prior(dataset, NUM_SAMPLES, generator_for(SEED))
        return Prediction(self.trained.model.predict(theta, dataset), dataset.observed)


# -- scores: squared error in sd² of the training y, or accuracy; and mean log predictive density per test row
def _numbers(mean: np.ndarray, log_density: np.ndarray, y: np.ndarray) -> Scores:
    return {"squared_error": float(np.mean((y - mean) ** 2)), "log_predictive": float(np.mean(log_density))}


def _classes(probabilities: np.ndarray, y: np.ndarray) -> Scores:
    chosen = np.take_along_axis(probabilities, y.astype(int)[:, None], 1)[:, 0]
    return {"accuracy": float(np.mean(probabilities.argmax(1) == y)),
            "log_predictive": float(np.mean(np.log(chosen.clip(1e-15))))}


def _of_prediction(prediction: Prediction, y: np.ndarray) -> Scores:
    mean = prediction.mean[0].double().numpy()
    if prediction.is_class:
        return _classes(mean, y)
    return _numbers(mean, prediction.log_prob(y)[0].double().numpy(), y)


def _sklearn_numbers(fold: Fold) -> Scores:
    (x, x_test), (y, y_test) = fold.x, fold.y
    mean, sd = BayesianRidge().fit(x, y).predict(x_test, return_std=True)
    return _numbers(mean, norm.logpdf(y_test, mean, sd), y_test)


def _sklearn_classes(fold: Fold) -> Scores:
    (x, x_test), (y, y_test) = fold.x, fold.y
    # The default of 100 iterations does not converge on every table.
    return _classes(LogisticRegression(max_iter=10_000).fit(x, y).predict_proba(x_test), y_test)


def _mean(fold: Fold) -> Scores:
    y = fold.y[1]
    return _numbers(np.zeros_like(y), norm.logpdf(y), y)


def _majority(fold: Fold) -> Scores:
    y, y_test = fold.y
    share = y.mean()
    return _classes(np.tile([1 - share, share], (len(y_test), 1)), y_test)


METHODS: dict[str, dict[str, Callable[[Fold], Scores]]] = {
    kind: {
        "posteria": lambda fold: _of_prediction(fold.predict(fold.trained), fold.y[1]),
        "untrained": lambda fold: _of_prediction(fold.predict(fold.untrained), fold.y[1]),
        "sklearn": rival,
        "prior": lambda fold: _of_prediction(fold.predict_by_prior(), fold.y[1]),
        "constant": constant,
    }
    for kind, rival, constant in (("regression", _sklearn_numbers, _mean), ("classification", _sklearn_classes,
                                                                             _majority))
}


# -- tables -----------------------------------------------------------------------------------
def read(entry: dict[str, Any]) -> pd.DataFrame:
    """A table with its categorical columns as text."""
    table = pd.read_csv(DATA / entry["file"])
    names = [table.columns[place] for place in entry["categorical"]]
    return table.astype(dict.fromkeys(names, str))


def folds_of(entry: dict[str, Any], table: pd.DataFrame, trained: Estimator) -> list[Fold]:
    """The parts of a table's cross-validation."""
    splitter = (KFold if entry["kind"] == "regression" else StratifiedKFold)(FOLDS, shuffle=True, random_state=SEED)
    untrained = fresh(trained)
    parts = [(table.iloc[train], table.iloc[test]) for train, test in splitter.split(table, table[TARGET])]
    return [Fold(train, known_levels(train, test), trained, untrained) for train, test in parts]


def known_levels(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """The test rows; a level that the training rows lack becomes their most common one."""
    test = test.copy()
    for name in test.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in test.dtypes]]:
        test.loc[~test[name].isin(list(train[name])), name] = train[name].mode()[0]
    return test


def fresh(estimator: Estimator) -> Estimator:
    """The same estimator with weights as before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Estimator(estimator.model, estimator.encoder_part, estimator.density_part, estimator.info).eval()


def run(entry: dict[str, Any], trained: Estimator) -> dict[str, Any]:
    """Mean scores over the folds, and seconds per fold of the shipped estimator's posterior and prediction."""
    folds, scores, seconds = folds_of(entry, read(entry), trained), {}, {}
    for name, method in METHODS[entry["kind"]].items():
        start = time.perf_counter()
        per_fold = [method(fold) for fold in folds]
        seconds[name] = (time.perf_counter() - start) / len(folds)
        scores[name] = {key: float(np.mean([s[key] for s in per_fold])) for key in per_fold[0]}
    return {"name": entry["name"], "kind": entry["kind"], "n": entry["n"], "features": len(folds[0].codec.features),
            "largest_x": max(float(np.abs(fold.x[0]).max()) for fold in folds), "scores": scores, "seconds": seconds}


def main() -> None:
    """All tables, or those named."""
    index = json.loads((DATA / "index.json").read_text())
    chosen = [entry for entry in index if not sys.argv[1:] or entry["name"] in sys.argv[1:]]
    estimators = {kind: posteria.load(name) for kind, name in ESTIMATORS.items()}
    tables = []
    for entry in chosen:
        tables.append(run(entry, estimators[entry["kind"]]))
        shown = {name: {k: round(v, 4) for k, v in s.items()} for name, s in tables[-1]["scores"].items()}
        sys.stdout.write(f"{entry['name']} {shown}\n")
        sys.stdout.flush()
    results = {"folds": FOLDS, "num_samples": NUM_SAMPLES, "seed": SEED, "machine": machine(), "tables": tables}
    if len(chosen) == len(index):
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        write_report(results, HERE / "README.md")


if __name__ == "__main__":
    main()
