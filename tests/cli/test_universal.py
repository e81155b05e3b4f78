"""`posteria infer` without an estimator, and `posteria train --from`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from posteria.cli import app

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    table = pd.DataFrame({"x": x, "n": rng.poisson(np.exp(0.5 + 0.7 * x))})
    path = tmp_path_factory.mktemp("data") / "counts.csv"
    table.to_csv(path, index=False)
    return path


def infer(counts: Path, out: Path, *arguments: str) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["infer", *arguments[:1], str(counts), "--target", "n", "--out", str(out),
                                 *arguments[1:]])
    return result.exit_code, result.output


def test_any_registered_model_without_training(counts: Path, tmp_path: Path) -> None:
    code, output = infer(counts, tmp_path, "universal", "--model", "generalized_linear", "--option", "family=poisson")
    assert code == 0, output
    summary = pd.read_csv(tmp_path / "summary.csv", index_col=0)
    for row, known in (("weights[x]", 0.7 * 1.0), ("intercept", 0.5)):
        assert abs(summary.loc[row, "mean"] - known) < 5 * summary.loc[row, "sd"]
    assert set(summary["status"]) <= {"amortized", "reweighted", "refined", "mcmc"}


def test_priors_at_the_call(counts: Path, tmp_path: Path) -> None:
    model = ("--model", "generalized_linear", "--option", "family=poisson")
    widths = []
    for scale in ("0.01", "1.0"):
        code, output = infer(counts, tmp_path / scale, "universal", *model, "--prior-scale", scale)
        assert code == 0, output
        widths.append(pd.read_csv(tmp_path / scale / "summary.csv", index_col=0).loc["weights[x]", "mean"])
    assert abs(widths[0]) < 0.1 < widths[1]


@pytest.mark.parametrize("named", [(), ("--estimator", "universal")])
def test_the_network_for_every_model_is_the_default(counts: Path, tmp_path: Path, named: tuple[str, ...]) -> None:
    result = RUNNER.invoke(app, ["infer", str(counts), *named, "--target", "n", "--out", str(tmp_path),
                                 "--model", "generalized_linear", "--option", "family=poisson"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "summary.csv").is_file()


@pytest.mark.parametrize(("arguments", "message"), [
    (("universal", "--estimator", "linear_regression"), "RUN_OR_NAME: got 'universal', 'linear_regression'"),
    (("universal",), "--model, --model-file: got neither"),
    (("linear_regression", "--model", "gaussian_mean"), "--model: got gaussian_mean"),
    (("linear_regression", "--prior-scale", "2"), "--prior-scale: got 2.0"),
    (("universal", "--model", "nonsense"), "model: got 'nonsense'"),
    (("universal", "--model", "generalized_linear", "--option", "family=poisson", "--prior-scale", "-1"),
     "prior_scale: got -1.0")])
def test_bad_input_is_named(counts: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, output = infer(counts, tmp_path, *arguments)
    assert code == 2
    assert message in " ".join(output.split())


def test_special_training_starts_from_the_network(tmp_path: Path) -> None:
    small = ["--rows", "8:12", "--steps", "1", "--option", "training.batch_size=4"]
    result = RUNNER.invoke(app, ["train", "--from", "universal", "--model", "gaussian_mean", "--features", "2", *small,
                                 "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "skewed" in (tmp_path / "estimator.json").read_text()
    wrong = RUNNER.invoke(app, ["train", "--from", "universal", "--model", "gaussian_mean", "--features", "2",
                                "--density", "full", "--steps", "1", "--out", str(tmp_path / "wrong")])
    assert wrong.exit_code == 2
    assert "density: got" in wrong.output


def test_what_special_training_made_serves_its_own_model(counts: Path, tmp_path: Path) -> None:
    trained = RUNNER.invoke(app, [
        "train", "--from", "universal", "--model", "generalized_linear", "--option", "model.family=poisson",
        "--features", "1", "--rows", "40:60", "--steps", "1", "--option", "training.batch_size=4",
        "--out", str(tmp_path / "run")])
    assert trained.exit_code == 0, trained.output
    code, output = infer(counts, tmp_path / "own", str(tmp_path / "run"))
    assert code == 0, output
    summary = pd.read_csv(tmp_path / "own" / "summary.csv", index_col=0)
    assert abs(summary.loc["weights[x]", "mean"] - 0.7) < 5 * summary.loc["weights[x]", "sd"]
    code, output = infer(counts, tmp_path, str(tmp_path / "run"), "--prior-scale", "2")
    assert code == 2
    assert "has a model and priors of its own" in " ".join(output.split())
