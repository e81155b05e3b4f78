"""Report: everything is on the page, nothing from outside is code."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from posteria.report import Report, Section


def page() -> Report:
    table = pd.DataFrame({"mean": [1.23456, -2.0]}, index=["weights[<script>]", "intercept"])
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return Report("A & B", [("data", "<b>houses</b>.csv")], ["n: 5 rows"],
                  [Section("Parameters", "Read it so.", table), Section("Plot", "Look.", figure=figure)])


def test_page_holds_tables_notes_and_plots() -> None:
    html = page().html()
    for text in ("A &amp; B", "n: 5 rows", "Read it so.", "1.235", "intercept"):
        assert text in html
    (image,) = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    assert base64.b64decode(image).startswith(b"\x89PNG")


def test_what_comes_from_outside_is_escaped() -> None:
    html = page().html()
    assert "<script>" not in html
    assert "<b>houses" not in html


def test_page_needs_nothing_else() -> None:
    assert "http://" not in page().html()
    assert "https://" not in page().html()


def test_long_tables_say_that_they_are_cut() -> None:
    table = pd.DataFrame({"mean": range(1000)}, index=[f"w[{i}]" for i in range(1000)])
    html = Report("t", sections=[Section("s", "", table)]).html()
    assert "The first 300 of 1000 parameters" in html
    assert "w[299]" in html
    assert "w[300]" not in html


def test_page_is_saved(tmp_path: Path) -> None:
    page().save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page().html()
