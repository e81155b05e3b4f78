from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from posteria.bench.store import ResultStore
from posteria.cli import app

runner = CliRunner()
CHEAP = ["--setup", "lr_1d", "--method", "random", "--method", "exact", "--workers", "1"]


def test_a_table_is_run_once_and_reported(tmp_path: Path) -> None:
    command = ["bench", "table", "5", *CHEAP, "--out", str(tmp_path)]
    first = runner.invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "2 cells run, 0 known, 0 failed" in first.output
    assert (tmp_path / "reports" / "table_05_smoke.md").exists()
    second = runner.invoke(app, command)
    assert "0 cells run, 2 known, 0 failed" in second.output
    results = {r.method: r for r in ResultStore(tmp_path / "results.sqlite").results()}
    assert abs(results["exact"].figures["symmetric_kl"]["mean"] or 0.0) < 1e-6
    assert (results["random"].figures["symmetric_kl"]["mean"] or 0.0) > 10
    assert results["exact"].machine["torch"]


def test_a_trained_cell_goes_through(tmp_path: Path) -> None:
    done = runner.invoke(app, ["bench", "table", "6", "--setup", "gm_2d", "--method", "reverse_kl/gaussian/deepsets",
                               "--workers", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (result,) = ResultStore(tmp_path / "results.sqlite").results()
    assert result.record["steps"] == 10
    assert {"w2", "symmetric_kl", "l2_per_draw", "log_predictive"} <= set(result.figures)


def test_conclusions_say_what_is_not_decided(tmp_path: Path) -> None:
    done = runner.invoke(app, ["bench", "conclusions", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "not yet decided" in (tmp_path / "reports" / "conclusions_laptop.md").read_text()


@pytest.mark.parametrize(("arguments", "said"), [
    (["table", "25"], "table"),
    (["table", "3", "--setup", "nothing"], "setups"),
    (["table", "5", "--scale", "huge"], "scale"),
    (["table", "5", "--setup", "nothing"], "setups"),
    (["table", "5", "--workers", "0"], "workers"),
    (["table", "24", "--setup", "nothing"], "setups"),
    (["figure", "15"], "figure"),
    (["ablation", "nothing"], "ablation"),
    (["samplers", "--case", "nothing"], "cases"),
])
def test_bad_input_is_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = runner.invoke(app, ["bench", *arguments, "--out", str(tmp_path)])
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert "Traceback" not in done.output
