"""Tutorial: one CSV, its posterior, and whether to believe it. Run: python examples/tutorial_table.py [folder]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes

import posteria
from posteria.sklearn import AmortizedRegressor
from posteria.tables import read_table


def write_csv(path: Path) -> None:
    """The diabetes table of scikit-learn in its own units, sex as a label."""
    data: Any = load_diabetes(as_frame=True, scaled=False)
    table = data.frame
    table.assign(sex=table.sex.map({1.0: "a", 2.0: "b"})).rename(columns={"target": "progression"}).to_csv(
        path, index=False)


def main(out: Path, num_datasets: int = 200) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "diabetes.csv")

    # --8<-- [start:infer]
    table = read_table(out / "diabetes.csv")
    estimator = posteria.load("linear_regression")
    result = posteria.infer_table(estimator, table, target="progression")
    print(result.notes)  # sentences on rows, columns and sizes; empty when there is nothing to say
    # --8<-- [end:infer]

    # --8<-- [start:summary]
    summary = result.units_summary
    assert summary is not None
    print(summary.round(2).to_string())

    draws = result.to_frame()
    print(f"P(a higher bmi goes with more progression) = {(draws['units.weights[bmi]'] > 0).mean():.3f}")
    # --8<-- [end:summary]

    # --8<-- [start:held_out]
    train, test = table.iloc[:350], table.iloc[350:]
    model = AmortizedRegressor().fit(train.drop(columns="progression"), train.progression)
    mean, sd = model.predict(test.drop(columns="progression"), return_std=True)
    inside = np.abs(test.progression - mean) <= 1.645 * sd
    print(f"{len(test)} rows held out: R2 {model.score(test.drop(columns='progression'), test.progression):.2f}, "
          f"{inside.mean():.0%} inside their 90% interval")
    # --8<-- [end:held_out]

    # --8<-- [start:sampler]
    sampler = posteria.run_baseline(estimator.model, result.codec.dataset(table), "hmc", seed=0)
    print(*sampler.notes, sep="\n")  # empty: it has converged
    theirs = result.codec.name(sampler.posterior).summary()
    print(pd.concat({"posteria": result.summary, "hmc": theirs}, axis=1).loc[["weights[bmi]", "noise_scale"]]
          .round(3).to_string())
    # --8<-- [end:sampler]

    # --8<-- [start:calibration]
    features = len(result.codec.features)
    task = posteria.SimulatedTask(estimator.model, rows=(len(table), len(table)), columns=(features, features))
    report = posteria.check_calibration(estimator.posterior, task, estimator.model, num_datasets)
    print(report.summary)
    # --8<-- [end:calibration]

    # --8<-- [start:report]
    result.save(out)  # summary.csv, draws.parquet, report.html
    # --8<-- [end:report]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("tutorial_output"))
