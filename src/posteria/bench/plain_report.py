"""Reports of benches that are not laid out as the paper's tables of one figure: all figures of every setup."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posteria.bench.report import Entry, over_seeds
from posteria.bench.store import Result

if TYPE_CHECKING:
    import pandas as pd

# (setup, method) -> a number of the paper.
Printed = Callable[[str, str], Entry | None]


def plain_frame(results: Sequence[Result], printed: tuple[str, Printed] | None = None) -> pd.DataFrame:
    """A row per setup, method and figure, over seeds.

    Args:
        results: of one bench at one scale.
        printed: the figure that the paper prints, and its numbers.
    """
    import pandas as pd

    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.setup, result.method), []).append(result)
    rows = [_row(setup, method, figure, mine, printed) for (setup, method), mine in groups.items()
            for figure in dict.fromkeys(name for r in mine for name in r.figures)]
    return pd.DataFrame(rows)


def _row(setup: str, method: str, figure: str, results: Sequence[Result], printed: tuple[str, Printed] | None) -> (
        Mapping[str, object]):
    ours = over_seeds(results, figure)
    paper = printed[1](setup, method) if printed is not None and printed[0] == figure else None
    seconds = [r.record.get("training_seconds", r.record["seconds"]) for r in results]
    medians = sorted(r.figures[figure]["mean"] or math.nan for r in results if figure in r.figures)
    return {"setup": setup, "method": method, "figure": figure, "ours": ours.mean, "standard_error": ours.error,
            "median": medians[len(medians) // 2], "seeds": len(results), "paper": paper.mean if paper else math.nan,
            "paper_std": paper.error if paper else math.nan, "minutes": sum(seconds) / len(seconds) / 60,
            "converged": results[0].record.get("converged", math.nan)}


def write_plain_report(name: str, heading: str, introduction: str, frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write ``<name>.md`` and ``.csv``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.md", folder / f"{name}.csv"]
    parts = [f"# {heading}", "", introduction]
    for setup, rows in frame.groupby("setup", sort=False) if len(frame) else ():
        parts += ["", f"## {setup}", "", *_setup_table(rows)]
    paths[0].write_text("\n".join(parts) + "\n", encoding="utf-8")
    frame.to_csv(paths[1], index=False, float_format="%.6g")
    return paths


def _setup_table(rows: pd.DataFrame) -> list[str]:
    figures = list(dict.fromkeys(rows.figure))
    has_paper = bool(rows.paper.notna().any())
    heads = ["method", *(["paper"] if has_paper else []), *(name.replace("_", " ") for name in figures), "minutes",
             "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for method, mine in rows.groupby("method", sort=False):
        by_figure = mine.set_index("figure")
        paper = mine.loc[mine.paper.notna()]
        mark = " †" if (mine.converged < 0.99).any() else ""
        printed = [f"{paper.paper.iloc[0]:.4g} ± {paper.paper_std.iloc[0]:.2g}" if len(paper) else ""]
        cells = [_entry(by_figure, name) for name in figures]
        lines.append("| " + " | ".join([f"{method}{mark}", *(printed if has_paper else []), *cells,
                                        f"{mine.minutes.iloc[0]:.2g}", str(mine.seeds.iloc[0])]) + " |")
    return lines


def _entry(by_figure: pd.DataFrame, name: str) -> str:
    if name not in by_figure.index:
        return ""
    mean, error = by_figure.at[name, "ours"], by_figure.at[name, "standard_error"]
    return f"{mean:.4g} ± {error:.1g}" if error == error else f"{mean:.4g}"  # NaN is not equal to itself


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """Lines of a Markdown table: numbers with three digits, missing ones empty."""
    lines = ["| " + " | ".join(str(name).replace("_", " ") for name in frame.columns) + " |",
             "|" + "---|" * frame.shape[1]]
    return lines + ["| " + " | ".join(_cell(value) for value in row) + " |" for row in frame.itertuples(index=False)]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"
    return "" if value is None else str(value)
