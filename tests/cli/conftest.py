"""Small estimators on disk, and a way to run commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from posteria.cli import app
from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import Model, build_model


class Outcome:
    """Exit code and what was printed, with line breaks of the terminal undone."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.raw = code, out
        self.out, self.err = (" ".join(text.split()) for text in (out, err))


Command = Callable[..., Outcome]


@pytest.fixture
def posteria(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process; an unexpected exception fails the test."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: object) -> Outcome:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "Traceback" not in result.stderr
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


def save_estimator(folder: Path, model: Model, columns: tuple[int, int], encoder: str = "iterative") -> Path:
    """An untrained estimator: commands do not care how good it is."""
    torch.manual_seed(0)
    Estimator(model, encoder, "gaussian", EstimatorInfo(columns, (8, 200))).save(folder)
    return folder


@pytest.fixture(scope="session")
def regression_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_estimator(tmp_path_factory.mktemp("runs") / "lr",
                          build_model("linear_regression", noise="inferred"), (1, 5))


@pytest.fixture(scope="session")
def classification_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model("linear_classification", classes=3, temperature=1.0, reference=True)
    return save_estimator(tmp_path_factory.mktemp("runs") / "lc", model, (1, 5), "deepsets")


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = 40
    table = pd.DataFrame({"size": rng.normal(120, 30, rows), "age": rng.uniform(0, 50, rows),
                          "town": np.array(["A", "B"])[np.arange(rows) % 2],
                          "kind": np.array(["flat", "house", "hut"])[rng.integers(0, 3, rows)]})
    return table.assign(price=2000 * table["size"] - 500 * table["age"] + rng.normal(0, 5000, rows))


@pytest.fixture
def csv(tmp_path: Path, table: pd.DataFrame) -> Path:
    table.drop(columns="kind").to_csv(tmp_path / "houses.csv", index=False)
    return tmp_path / "houses.csv"
