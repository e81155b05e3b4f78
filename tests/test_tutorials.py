"""The tutorials run: what the documentation shows is what works."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "examples").glob("tutorial_*.py"))
PAGES = [*sorted((ROOT / "docs" / "tutorials").glob("*.md")), ROOT / "docs" / "sklearn.md"]
INCLUDED = re.compile(r'--8<-- "(examples/tutorial_\w+\.py):(\w+)"')
SECTION = re.compile(r"# --8<-- \[start:(\w+)\]")


def run(name: str, *arguments: Any) -> Any:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](*arguments)


def test_a_table_gets_its_posterior_checks_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("tutorial_table", tmp_path, 40)
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("weights[sex=b]", "R2 0.5", "hmc", "Calibrated as far as seen"))
    assert {path.name for path in tmp_path.iterdir()} == {"diabetes.csv", "summary.csv", "draws.parquet", "report.html"}


def test_a_model_of_one_s_own_is_trained_checked_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    run("tutorial_model", {"steps": 2, "batch_size": 4}, 20)
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("log_half_dose", "truth", "hmc", "alibrated"))


def test_groups_get_their_posteriors_in_one_call(capsys: pytest.CaptureFixture[str]) -> None:
    result: pd.DataFrame = run("tutorial_groups", 60)
    assert result.index.names == ["store", "feature"]
    assert len(result) == 120
    share = float(capsys.readouterr().out.split("interval: ")[1].rstrip("%\n"))
    assert share == pytest.approx(90, abs=11)  # 4 standard errors of 120 intervals


def test_pages_show_every_section_of_the_tutorials_and_no_other() -> None:
    shown = {pair for page in PAGES for pair in INCLUDED.findall(page.read_text(encoding="utf-8"))}
    there = {(f"examples/{path.name}", name) for path in TUTORIALS
             for name in SECTION.findall(path.read_text(encoding="utf-8"))}
    assert shown == there
