"""posteria train: runs, options, resuming, a user's own model, refusals, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posteria.cli.sources import parse_options
from posteria.errors import InputError
from posteria.estimator import Estimator
from tests.cli.conftest import Command

SMALL = ["--encoder", "deepsets", "--density", "gaussian", "--option", "encoder.width=8", "--option",
         "encoder.layers=1", "--option", "training.batch_size=4", "--rows", "8:12"]
OWN_MODEL = '''
import torch
from torch.distributions import HalfNormal, Normal, constraints
from posteria import CustomModel, Parameter

def build(width=1.0):
    def predict(params, x):
        return Normal(x @ params["slope"], width * params["spread"])
    return CustomModel([Parameter("slope", ("features",)),
                        Parameter("spread", (), constraints.positive, HalfNormal(1.0))], predict=predict)

def wrong():
    return 3
'''


def test_trains_and_says_what_comes_next(posteria: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = posteria("train", "--model", "linear_regression", "--option", "noise=inferred", "--features", 2,
                       "--steps", 3, "--objective", "forward_kl", "--seed", 5, *SMALL, "--out", run)
    assert outcome.code == 0, outcome.err
    assert f"posteria evaluate {run}" in outcome.out
    estimator = Estimator.load(run)
    assert estimator.info.columns == (2, 2)
    assert estimator.info.rows == (8, 12)
    assert [p.name for p in estimator.model.parameters] == ["weights", "intercept", "noise_scale"]
    assert estimator.info.training["seed"] == 5
    assert estimator.info.training["objective"]["name"] == "forward_kl"
    assert estimator.encoder_part.name == "deepsets"
    assert estimator.encoder_part.options["width"] == 8


def test_max_features_count_beside_extra_columns(posteria: Command, tmp_path: Path) -> None:
    outcome = posteria("train", "--model", "poisson_regression", "--max-features", 3, "--steps", 1, *SMALL,
                       "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert Estimator.load(tmp_path / "run").info.columns == (2, 4)


def test_resume_goes_on_and_a_folder_in_use_is_refused(posteria: Command, tmp_path: Path) -> None:
    arguments = ["train", "--model", "linear_regression", "--features", 1, "--steps", 2, *SMALL, "--out", tmp_path]
    assert posteria(*arguments).code == 0
    outcome = posteria(*arguments)
    assert outcome.code == 2
    assert "--out: got" in outcome.err
    assert "or --resume to go on with it" in outcome.err
    assert posteria(*arguments, "--resume").code == 0
    outcome = posteria(*arguments, "--resume", "--seed", 3)
    assert outcome.code == 2
    assert "seed" in outcome.err


def test_a_model_of_one_s_own(posteria: Command, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_MODEL)
    place, run = f"{tmp_path / 'own.py'}:build", tmp_path / "run"
    outcome = posteria("train", "--model-file", place, "--option", "width=2.0", "--features", 1, "--steps", 1, *SMALL,
                       "--out", run)
    assert outcome.code == 0, outcome.err
    outcome = posteria("evaluate", run, "--model-file", place, "--num-datasets", 2, "--num-samples", 20,
                       "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "coverage_50" in json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    outcome = posteria("evaluate", run, "--num-datasets", 2, "--out", tmp_path)
    assert outcome.code == 2


@pytest.mark.parametrize(("place", "message"), [
    ("own.py", "--model-file: got 'own.py'; takes path.py:function"),
    ("none.py:build", "does not exist"),
    ("{own}:nothing", "without a function 'nothing'"),
    ("{own}:wrong", "wrong, which returns int"),
    ("{broken}:build", "cannot be run: ZeroDivisionError"),
])
def test_model_files_that_are_wrong(posteria: Command, tmp_path: Path, place: str, message: str) -> None:
    own, broken = tmp_path / "own.py", tmp_path / "broken.py"
    own.write_text(OWN_MODEL)
    broken.write_text("1 / 0")
    outcome = posteria("train", "--model-file", place.format(own=own, broken=broken), "--features", 1,
                       "--out", tmp_path / "run")
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--features", 1], "--model, --model-file: got neither; takes one of the two"),
    (["--model", "nonsense", "--features", 1], "model: got 'nonsense'; takes one of ['gaussian_mean'"),
    (["--model", "linear_regression"], "--features, --max-features: got neither"),
    (["--model", "linear_regression", "--features", 1, "--max-features", 2], "--features, --max-features: got both"),
    (["--model", "linear_regression", "--features", 1, "--encoder", "lstm"], "encoder: got 'lstm'; takes one of"),
    (["--model", "linear_regression", "--features", 1, "--density", "x"], "density: got 'x'; takes one of"),
    (["--model", "linear_regression", "--features", 1, "--objective", "x"], "objective: got 'x'; takes one of"),
    (["--model", "linear_regression", "--features", 1, "--preset", "x"], "preset: got 'x'; takes one of"),
    (["--model", "linear_regression", "--features", 1, "--rows", "many"], "--rows: got 'many'; takes least:most"),
    (["--model", "linear_regression", "--features", 1, "--option", "noise"], "--option: got 'noise'; takes key=value"),
    (["--model", "linear_regression", "--features", 1, "--option", "classes=3"], "options of linear_regression"),
    (["--model", "linear_regression", "--features", 1, "--option", "training.rate=3"], "rate: got an unknown field"),
    (["--model", "linear_regression", "--features", 1, "--minutes", 1, "--steps", 1], "steps, minutes: got"),
    (["--model", "linear_regression", "--features", 0], "--features"),
    (["--model", "linear_regression", "--features", "two"], "--features"),
    (["--model", "linear_regression", "--features", 1, "--colour", "red"], "No such option"),
])
def test_wrong_arguments_are_named(posteria: Command, tmp_path: Path, arguments: list, message: str) -> None:
    outcome = posteria("train", *arguments, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


def test_options_are_read_as_json_or_text() -> None:
    options = parse_options(["noise=inferred", "hidden=16", "priors={\"a\": 1}", "encoder.layers=4", "x=a=b"])
    assert options["model"] == {"noise": "inferred", "hidden": 16, "priors": {"a": 1}, "x": "a=b"}
    assert options["encoder"] == {"layers": 4}
    for wrong in ("noise", "=3", "colour.red=1"):
        with pytest.raises(InputError, match="--option"):
            parse_options([wrong])


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_stops_with_130_and_says_how_to_go_on(posteria: Command, tmp_path: Path) -> None:
    arguments = ["train", "--model", "linear_regression", "--features", "1", *SMALL, "--minutes", "5",
                 "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-m", "posteria.cli", *arguments], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.csv"
    began = time.monotonic()
    while not (log.exists() and log.read_text().count("\n") > 1) and time.monotonic() - began < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command with --resume goes on" in err
    assert "Traceback" not in err
    outcome = posteria("evaluate", tmp_path / "run", "--out", tmp_path)
    assert outcome.code == 2
    assert "its training can go on with posteria train ... --resume" in outcome.err
