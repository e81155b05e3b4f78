"""``posteria list``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from posteria.cli.console import explained_errors, out


def list_parts() -> None:
    """Models, encoders, densities, objectives and shipped estimators, with the options each takes.

    Options of a model are given as --option key=value, those of other parts as --option part.key=value.
    """
    with explained_errors():
        from posteria.densities import DENSITIES
        from posteria.encoders import ENCODERS
        from posteria.models import MODELS
        from posteria.objectives import OBJECTIVES

        for kind, registry in (("models", MODELS), ("encoders", ENCODERS), ("densities", DENSITIES),
                               ("objectives", OBJECTIVES)):
            out().print(_table(kind, registry))
        out().print(_shipped())


def _table(kind: str, registry: Mapping[str, Callable[..., Any]]) -> Table:
    table = Table(kind, "", "options", box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name, part in registry.items():
        table.add_row(f"[bold]{name}[/bold]", escape(_first_line(part)), escape(_options(part)))
    return table


def _shipped() -> Table:
    from posteria.shipped import load, shipped_names

    table = Table("shipped estimators", "", box=None, padding=(0, 2, 0, 0))
    for name in shipped_names():
        info = load(name).info
        table.add_row(f"[bold]{name}[/bold]", f"{info.columns[0]} to {info.columns[1]} features, "
                                              f"{info.rows[0]} to {info.rows[1]} rows")
    return table


def _first_line(part: object) -> str:
    return (inspect.getdoc(part) or "").split("\n")[0]


def _options(part: Callable[..., Any]) -> str:
    """Its arguments with their defaults, as a user would write them."""
    parameters = [p for p in inspect.signature(part).parameters.values() if p.name not in ("spec", "priors")]
    return ", ".join(f"{p.name}={p.default}" for p in parameters if p.default is not p.empty and p.default is not None)
