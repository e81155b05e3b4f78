"""The app as a whole: help, list, evaluate, exit codes, speed of --help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from posteria.cli import console
from posteria.densities import DENSITIES
from posteria.encoders import ENCODERS
from posteria.errors import InputError, TrainingError, TrainingInterrupted
from posteria.models import MODELS
from posteria.objectives import OBJECTIVES
from posteria.shipped import shipped_names
from tests.cli.conftest import Command


def test_help_teaches_with_examples(posteria: Command) -> None:
    outcome = posteria("--help")
    assert outcome.code == 0
    assert "posteria infer linear_regression houses.csv --target price --out out" in outcome.out
    assert "Exit codes: 0 done" in outcome.out
    for command, example in (("train", "--model linear_regression --features 2"), ("infer", "--target price"),
                             ("evaluate", "--num-datasets 100"), ("list", "--option")):
        outcome = posteria(command, "--help")
        assert outcome.code == 0
        assert example in outcome.out


def test_examples_keep_their_lines(posteria: Command) -> None:
    """A command in the help can be copied: it stands on a line of its own."""
    lines = [line.strip() for line in posteria("infer", "--help").raw.splitlines()]
    assert "posteria infer linear_regression houses.csv --target price --out out" in lines


def test_list_names_everything(posteria: Command) -> None:
    outcome = posteria("list")
    assert outcome.code == 0
    for name in (*MODELS, *ENCODERS, *DENSITIES, *OBJECTIVES, *shipped_names()):
        assert name in outcome.out
    assert "temperature=0.1" in outcome.out


def test_evaluate_writes_metrics(posteria: Command, regression_run: Path, tmp_path: Path) -> None:
    outcome = posteria("evaluate", regression_run, "--num-datasets", 4, "--num-samples", 20, "--out", tmp_path / "e")
    assert outcome.code == 0, outcome.err
    values = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert values["model"] == "linear_regression"
    assert values["num_datasets"] == 4
    assert {"l2_per_draw", "l2_ensembled", "log_predictive", "coverage_95"} <= set(values["metrics"])
    outcome = posteria("evaluate", regression_run, "--num-datasets", 1, "--out", tmp_path)
    assert outcome.code == 2
    assert "num_datasets: got 1; takes 2 or more" in outcome.err


def test_version(posteria: Command) -> None:
    import posteria as package

    assert posteria("--version").out == package.__version__


def test_no_command_shows_help_and_unknown_ones_are_bad_input(posteria: Command) -> None:
    assert "Usage" in posteria().out + posteria().err
    outcome = posteria("fly")
    assert outcome.code == 2
    assert "fly" in outcome.err


@pytest.mark.parametrize(("error", "code", "message"), [
    (InputError.of("--x", 1, "2"), 2, "error: --x: got 1; takes 2"),
    (TrainingError("losses are NaN"), 1, "error: losses are NaN"),
    (TrainingInterrupted("stopped"), 130, "error: stopped"),
    (KeyboardInterrupt(), 130, "error: interrupted"),
    (OSError(28, "No space left on device", "out/x"), 1, "error: No space left on device: out/x"),
    (ZeroDivisionError("division by zero"), 1, "error: unexpected ZeroDivisionError: division by zero"),
])
def test_errors_become_lines_and_exit_codes(error: BaseException, code: int, message: str,
                                            capsys: pytest.CaptureFixture[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTERIA_DEBUG", raising=False)
    with pytest.raises(console.typer.Exit) as stopped, console.explained_errors():
        raise error
    assert stopped.value.exit_code == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") <= 2
    assert "Traceback" not in err


def test_debugging_shows_where(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTERIA_DEBUG", "1")
    with pytest.raises(console.typer.Exit), console.explained_errors():
        raise ZeroDivisionError("division by zero")
    assert "Traceback" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = ("import sys; from posteria.cli import app\n"
            "try:\n    app(['train', '--help'])\nexcept SystemExit:\n    pass\n"
            "print(sorted({'torch', 'pandas', 'matplotlib', 'sklearn', 'arviz'} & set(sys.modules)))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")
