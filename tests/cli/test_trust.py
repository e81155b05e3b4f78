"""posteria infer --trust: the status column, the report, and exit code 3."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from posteria import inference
from tests.cli.conftest import Command


def test_auto_shows_a_status_everywhere(posteria: Command, regression_run: Path, csv: Path, tmp_path: Path) -> None:
    outcome = posteria("infer", regression_run, csv, "--target", "price", "--num-samples", 50, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    (status,) = pd.read_csv(tmp_path / "summary.csv")["status"].unique()
    assert status in ("amortized", "reweighted", "refined", "mcmc")
    assert f"trust: {status} (" in outcome.out
    assert f"<dd>{status}: " in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_off_leaves_the_posterior_as_it_is(posteria: Command, regression_run: Path, csv: Path, tmp_path: Path) -> None:
    outcome = posteria("infer", regression_run, csv, "--target", "price", "--trust", "off", "--out", tmp_path)
    assert outcome.code == 0
    assert "status" not in pd.read_csv(tmp_path / "summary.csv").columns
    assert "trust" not in outcome.out


@pytest.mark.parametrize(("trust", "code"), [("strict", 3), ("auto", 0)])
def test_strict_fails_where_the_answer_does(posteria: Command, regression_run: Path, csv: Path, tmp_path: Path,
                                            trust: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inference.Posterior.refine
    monkeypatch.setattr(inference.Posterior, "refine", lambda self, seed: whole(_narrowed(self), "reweight", seed=seed))
    outcome = posteria("infer", regression_run, csv, "--target", "price", "--trust", trust, "--out", tmp_path)
    assert outcome.code == code
    assert "trust: this posterior failed its checks" in outcome.err
    assert (tmp_path / "report.html").exists()


def _narrowed(posterior: inference.Posterior) -> inference.Posterior:
    """Far too narrow."""
    from dataclasses import replace

    q = posterior.distribution
    return posterior.with_distribution(replace(q, scale=0.01 * q.scale))  # type: ignore[type-var]
