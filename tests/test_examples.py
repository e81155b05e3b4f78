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
