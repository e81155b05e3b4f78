"""How our best configuration stands to the paper's best amortized number, over all tables and setups."""

from __future__ import annotations

import math
from collections.abc import Iterator

from posteria.bench.report import main_figure, table_frame
from posteria.bench.report_text import FIGURE_TITLES, Verdict, verdict
from posteria.bench.setups import Setup, setups_of_table
from posteria.bench.store import ResultStore

# Tables 1 and 2 repeat columns of the others.
_TABLES = range(5, 23)


def standings(store: ResultStore, scale: str) -> Iterator[tuple[int, Setup, Verdict]]:
    """(table, setup, verdict) wherever there are numbers of ours and the paper's that can be compared."""
    for number in _TABLES:
        setups = setups_of_table(number)
        frame = table_frame(number, setups, scale, store)
        for setup in setups:
            found = verdict(number, setup, frame)
            if found is not None:
                yield number, setup, found


def standing_markdown(store: ResultStore, scale: str) -> str:
    """All of them as a Markdown table, and how many are met."""
    found = list(standings(store, scale))
    met = sum(each.met for _, _, each in found)
    lines = ["## Our best configuration against the paper's best amortized number", "",
             f"At or beyond it, to the precision printed or within one combined standard error, on {met} of "
             f"{len(found)} columns that can be compared. *Exact* is the exact posterior on our test datasets. "
             "Squared errors of mixtures are not compared (see the tables' reports), nor is what was not run.", "",
             "| table | setup | figure | paper | by | posteria | by | exact | at or beyond |", "|" + "---|" * 9]
    return "\n".join(lines + [_line(*each) for each in found]) + "\n"


def _line(number: int, setup: Setup, found: Verdict) -> str:
    exact = "" if math.isnan(found.exact) else f"{found.exact:.4g}"
    said = "yes" if found.met else f"**no**, by {found.gap:.3g} ± {found.error:.2g}"
    variable = " (any number of features)" if setup.variable else ""
    return (f"| {number} | {setup.title}{variable} | {FIGURE_TITLES[main_figure(number, setup)]} | {found.paper:.4g} | "
            f"{found.paper_method} | {found.ours:.4g} | {found.our_method} | {exact} | {said} |")
