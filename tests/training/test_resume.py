"""Stopping and going on: the result is that of the unbroken run, bit by bit, whatever stopped it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posteria.errors import CheckpointError, InputError, TrainingError, TrainingInterrupted
from posteria.estimator import Estimator
from posteria.training import Recipe, build, fit, train
from posteria.training.checkpoint import Checkpoint
from posteria.training.log import read_csv_log
from posteria.training.run import CHECKPOINT, LOG
from tests.training.problems import assert_same, tiny, without_time

_ROOT = Path(__file__).parents[2]
_CHILD = """
import sys, torch
torch.set_num_threads(1)
from posteria.errors import TrainingInterrupted
from posteria.training import train
from tests.training.problems import tiny
try:
    train(tiny(steps=250, checkpoint_every_seconds=0.05), out=sys.argv[1], resume=True, progress=False)
except TrainingInterrupted as error:
    print(error)
    sys.exit(3)
"""


def _long() -> Any:
    return tiny(steps=250, checkpoint_every_seconds=0.05)


def _kill_child(out: Path, number: int, after_step: int) -> subprocess.CompletedProcess[str]:
    """Train in a child process, and send it a signal once its log is past a step."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])}
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(out)], env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        rows = read_csv_log(out / LOG)
        if rows and rows[-1]["step"] >= after_step:
            child.send_signal(number)
            break
        time.sleep(0.005)
    output, errors = child.communicate(timeout=60)
    return subprocess.CompletedProcess([], child.returncode, output, errors)


def _stop_at(step: int, stop: Callable[[], None]) -> Callable[[dict[str, float]], None]:
    return lambda row: stop() if row["step"] == step else None


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_kill_9_and_resume(tmp_path: Path) -> None:
    killed = _kill_child(tmp_path, signal.SIGKILL, after_step=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Checkpoint.load(tmp_path / CHECKPOINT).step < 250
    resumed, whole = train(_long(), out=tmp_path, resume=True), train(_long())
    assert_same(resumed.estimator, whole.estimator)
    assert without_time(resumed.history) == without_time(whole.history)
    assert without_time(read_csv_log(tmp_path / LOG)) == without_time(whole.history)
    assert not list(tmp_path.glob(".*"))


def test_resuming_removes_what_a_killed_process_was_writing(tmp_path: Path) -> None:
    train(tiny(steps=3), out=tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, kept = (tmp_path / f".{CHECKPOINT}.{number}" for number in (gone.pid, os.getppid()))
    for path in (left, kept):
        path.write_bytes(b"half of a checkpoint")
    train(tiny(steps=3), out=tmp_path, resume=True)
    assert not left.exists()
    assert kept.exists()


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    stopped = _kill_child(tmp_path, signal.SIGTERM, after_step=50)
    assert stopped.returncode == 3, stopped.stderr
    assert "stopped by SIGTERM" in stopped.stdout
    assert "resume=True" in stopped.stdout
    assert_same(train(_long(), out=tmp_path, resume=True).estimator, train(_long()).estimator)


@pytest.mark.parametrize("changes", [
    {}, {"ema": None}, {"objective": "reverse_kl", "encoder": "iterative", "density": "full"}, {"validate_every": 7},
], ids=["ema", "plain", "iterative", "between_rows"])
def test_ctrl_c_and_resume(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny(**changes)
    at = 2 * (config.validate_every or 10)
    with pytest.raises(TrainingInterrupted, match=f"SIGINT after {at} steps"):
        train(config, out=tmp_path, callbacks=[_stop_at(at, _interrupt)])
    resumed, whole = train(config, out=tmp_path, resume=True), train(config)
    assert_same(resumed.estimator, whole.estimator)
    assert without_time(resumed.history) == without_time(whole.history)


def test_stopping_many_times_changes_nothing(tmp_path: Path) -> None:
    config = tiny(validate_every=5)
    for at in (5, 20, 25):
        with pytest.raises(TrainingInterrupted):
            train(config, out=tmp_path, resume=True, callbacks=[_stop_at(at, _interrupt)])
    assert_same(train(config, out=tmp_path, resume=True).estimator, train(config).estimator)


def test_interrupt_without_folder_says_that_nothing_was_saved() -> None:
    with pytest.raises(TrainingInterrupted, match="nothing was saved"):
        train(tiny(), callbacks=[_stop_at(10, _interrupt)])


def test_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tiny(steps=2))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_does_not_wait() -> None:
    def twice() -> None:
        _interrupt()
        _interrupt()

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), callbacks=[_stop_at(10, twice)])


def test_other_threads_train_too() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(train(tiny(steps=3))))
    thread.start()
    thread.join()
    assert results


def test_minutes_go_on_with_those_left(tmp_path: Path) -> None:
    config = tiny(steps=None, minutes=0.03, validate_every=10)
    with pytest.raises(TrainingInterrupted):
        train(config, out=tmp_path, callbacks=[_stop_at(20, _interrupt)])
    used = Checkpoint.load(tmp_path / CHECKPOINT).elapsed
    time.sleep(0.3)  # not training: this does not count
    history = train(config, out=tmp_path, resume=True).history
    seconds = [row["elapsed_seconds"] for row in history]
    assert [row["step"] for row in history][:2] == [10, 20]
    assert seconds == sorted(seconds)
    assert used < seconds[2]
    assert 1.8 <= seconds[-1] < 6.0


def test_rows_past_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        train(tiny(), out=tmp_path, callbacks=[_stop_at(20, _interrupt)])
    log = tmp_path / LOG
    last = log.read_text().splitlines()[-1]
    log.write_text(log.read_text() + last.replace("20", "30", 1) + "\n" + last[:9])  # the last one cut by a kill
    resumed = train(tiny(), out=tmp_path, resume=True)
    assert [row["step"] for row in resumed.history] == [10, 20, 30, 40]
    assert without_time(read_csv_log(log)) == without_time(train(tiny()).history)


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    first = train(tiny(), out=tmp_path)
    again = train(tiny(), out=tmp_path, resume=True)
    assert_same(first.estimator, again.estimator)
    assert without_time(first.history) == without_time(again.history)
    assert_same(Estimator.load(tmp_path), first.estimator)


def test_resume_without_checkpoint_starts(tmp_path: Path) -> None:
    assert_same(train(tiny(), out=tmp_path / "new", resume=True).estimator, train(tiny()).estimator)


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    train(tiny(steps=2), out=tmp_path)
    with pytest.raises(InputError, match=r"out: got .* which holds a run.*resume=True"):
        train(tiny(steps=2), out=tmp_path)


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    train(tiny(steps=2), out=tmp_path)
    with pytest.raises(InputError, match=r"batch_size was 8 and is now 9; encoder\.options\.width was 8 and is now 16"):
        train(tiny(steps=2, batch_size=9, encoder={"name": "transformer", "options": {
            "layers": 2, "width": 16, "heads": 2, "dropout": 0.1}}), out=tmp_path, resume=True)


def test_how_often_to_save_may_change(tmp_path: Path) -> None:
    train(tiny(steps=2), out=tmp_path)
    assert train(tiny(steps=2, checkpoint_every_seconds=5), out=tmp_path, resume=True)


def test_another_estimator_is_refused(tmp_path: Path) -> None:
    """Objects carry no configuration, but what they are is recorded."""
    recipe = Recipe.of(steps=2, batch_size=4, device="cpu")
    estimator, task, objective = build(tiny())
    fit(estimator, task, objective, recipe, out=tmp_path)
    other, *_ = build(tiny(encoder={"name": "deepsets", "options": {"layers": 2, "width": 8}}))
    with pytest.raises(InputError, match=r"encoder.name was 'transformer' and is now 'deepsets'"):
        fit(other, task, objective, recipe, out=tmp_path, resume=True)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    train(tiny(steps=2), out=tmp_path)
    checkpoint = Checkpoint.load(tmp_path / CHECKPOINT)
    checkpoint.tensors["weights"].popitem()
    checkpoint.save(tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match="does not fit this estimator"):
        train(tiny(steps=2), out=tmp_path, resume=True)


def _fill_disk(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"posteria.files.os.{function}", full)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    config = tiny(checkpoint_every_seconds=0)

    def fill(row: dict[str, float]) -> None:
        if row["step"] == 20:
            _fill_disk(monkeypatch, function)

    with pytest.raises(TrainingError, match=r"cannot write .*checkpoint\.safetensors: the disk is full.*intact"):
        train(config, out=tmp_path, callbacks=[fill])
    monkeypatch.undo()
    assert Checkpoint.load(tmp_path / CHECKPOINT).step == 19
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT, LOG]
    assert_same(train(config, out=tmp_path, resume=True).estimator, train(config).estimator)


def test_a_folder_that_cannot_be_written_fails_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"):
        train(tiny(), out=tmp_path / "file")
