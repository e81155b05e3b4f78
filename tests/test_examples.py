"""The examples run: what the documentation shows is what works."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

import posteria
from posteria import Estimator, EstimatorInfo

EXAMPLES = Path(__file__).parents[1] / "examples"
OPTIONS: dict[str, dict[str, Any]] = {"linear_regression": {"noise": "inferred"}, "linear_classification": {}}


def untrained(name: str) -> Estimator:
    return Estimator(posteria.build_model(name, **OPTIONS[name]), info=EstimatorInfo((1, 100), (8, 2000)))


def test_demo_writes_reports_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(posteria, "load", untrained)
    runpy.run_path(str(EXAMPLES / "demo.py"))["main"](tmp_path)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("mean radius]", "LogisticRegression", "BayesianRidge", "accuracy"))
    for table in ("breast_cancer", "diabetes"):
        written = {path.name for path in (tmp_path / table).iterdir()}
        assert written == {"summary.csv", "draws.parquet", "pairs.png", "predictive.png", "report.html", "held_out.csv"}


def test_own_model_trains_with_both_objectives(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "own_model.py"))["main"]({"steps": 2, "batch_size": 4})
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("reverse_kl", "forward_kl", "weights[price]", "concentration"))


def test_any_model_gets_a_posterior_without_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Effects (0.6, -0.3) and shape 2 of the simulation lie within four sds of the posterior means."""
    example = runpy.run_path(str(EXAMPLES / "any_model.py"))
    posterior = posteria.universal().posterior(example["lifetimes"], example["simulated"]()).refine(seed=0).posterior
    summary = posterior.summary(seed=0)
    known = {"effects[0]": 0.6, "effects[1]": -0.3, "intercept": 1.0, "shape": 2.0}
    for name, value in known.items():
        assert abs(summary.loc[name, "mean"] - value) < 4 * summary.loc[name, "sd"]
    assert (summary["status"] != "failed").all()
    example["main"]()
    assert "shape" in capsys.readouterr().out
