"""`posteria bench alternatives`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from posteria.cli import app

RUNNER = CliRunner()


def test_a_method_is_run_once_and_reported(tmp_path: Path) -> None:
    command = ["bench", "alternatives", "--method", "batched_laplace_psis", "--out", str(tmp_path)]
    first = RUNNER.invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "1 cells run, 0 known, 0 failed" in first.output
    assert "| `batched_laplace_psis` |" in (tmp_path / "reports" / "alternatives_smoke.md").read_text()
    assert "0 cells run, 1 known, 0 failed" in RUNNER.invoke(app, command).output


@pytest.mark.parametrize(("arguments", "said"), [
    (["--case", "nothing"], "case: got"), (["--method", "nothing"], "method: got"),
    (["--scale", "huge"], "scale: got")])
def test_bad_input_is_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = RUNNER.invoke(app, ["bench", "alternatives", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert said in done.output
