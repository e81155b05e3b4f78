"""The examples run: what the documentation shows is what works."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_model_trains_with_both_objectives(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "own_model.py"))
    example["main"]({"steps": 2, "batch_size": 4})
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("reverse_kl", "forward_kl", "weights[price]", "concentration"))
