"""`posteria bench table N`: which bench a table of the paper belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posteria.bench import misspecified, tabular
from posteria.bench.cells import cells_of_table, chosen_setups
from posteria.bench.plain_report import plain_frame, write_plain_report
from posteria.bench.report import Entry, write_report
from posteria.bench.runner import Cell
from posteria.bench.scales import Scale
from posteria.bench.store import ResultStore
from posteria.bench.tabular_report import write_tabular_report
from posteria.errors import InputError

MISSPECIFIED = (4, 23, 24)
_TABULAR = 3
# What Tables 23 and 24 hold; Table 4 repeats the Transformer's rows of both.
_EVALUATED_ON = {4: ("linear", "mlp-tanh", "gp"), 23: ("linear", "mlp-tanh"), 24: ("gp",)}


def table_cells(number: int, scale: Scale, seeds: int | None, setups: Sequence[str], methods: Sequence[str]) -> (
        Sequence[Cell]):
    """The cells of a table.

    Raises:
        InputError: a number, setup or method that does not exist.
    """
    if number == _TABULAR:
        return tabular.tabular_cells(scale, seeds, setups, methods)
    if number not in MISSPECIFIED:
        return cells_of_table(number, scale, seeds, setups, methods)
    cells = [cell for cell in misspecified.misspecified_cells(scale, seeds, methods=methods)
             if cell.evaluated_on in _EVALUATED_ON[number]]
    known = list(dict.fromkeys(cell.setup_key for cell in cells))
    unknown = sorted(set(setups) - set(known))
    if unknown:
        raise InputError.of("setups", str(unknown), f"names among {known}")
    return [cell for cell in cells if not setups or cell.setup_key in setups]


def table_report(number: int, scale: Scale, setups: Sequence[str], store: ResultStore, folder: Path) -> list[Path]:
    """Write the report of a table from what the store has; returns the paths."""
    if number == _TABULAR:
        return write_tabular_report(scale, setups, store, folder)
    if number not in MISSPECIFIED:
        return write_report(number, chosen_setups(number, setups), scale.name, store, folder)
    cells = table_cells(number, scale, None, setups, ())
    keys = {cell.setup_key for cell in cells}
    results = [r for r in store.results()
               if r.bench == misspecified.BENCH and r.scale == scale.name and r.setup in keys]
    printed = {(cell.setup_key, cell.method_key): entry for cell in cells
               if isinstance(cell, misspecified.MisspecifiedCell) and (entry := misspecified.paper_entry(cell))}

    def paper(setup: str, method: str) -> Entry | None:
        return Entry(*printed[setup, method]) if (setup, method) in printed else None

    heading = f"Table {number} at scale `{scale.name}`: misspecified models"
    introduction = f"    posteria bench table {number} --scale {scale.name}\n\n{misspecified.__doc__ or ''}"
    return write_plain_report(f"table_{number:02}_{scale.name}", heading, introduction,
                              plain_frame(results, ("l2_per_draw", paper)), folder)
