"""The cells of the paper's tables: a method on a setup with a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posteria.bench import measure
from posteria.bench.methods import METHODS, PER_DATASET, TRAINED, Method, PerDataset, Trained
from posteria.bench.runner import Figures
from posteria.bench.scales import Scale
from posteria.bench.setups import Setup, setups_of_table
from posteria.bench.store import key_of
from posteria.bench.workspace import Workspace
from posteria.errors import InputError

BENCH = "paper"
_TABLES = (1, 2, *range(5, 23))


@dataclass(frozen=True)
class PaperCell:
    """A method on a setup; see :class:`posteria.bench.runner.Cell`."""

    setup: Setup
    method: Method
    scale: Scale
    seed: int

    @property
    def bench(self) -> str:
        return BENCH

    @property
    def setup_key(self) -> str:
        return self.setup.key

    @property
    def method_key(self) -> str:
        return self.method.key

    @property
    def scale_name(self) -> str:
        return self.scale.name

    @property
    def identity(self) -> Mapping[str, Any]:
        evaluation: dict[str, Any] = {"num_datasets": self.scale.num_datasets,
                                      "num_reference": self.scale.num_reference, "version": measure.VERSION}
        how = ({"config": self.scale.config(self.setup, self.method, self.seed).model_dump(mode="json")}
               if isinstance(self.method, Trained) else
               {"baseline": self.method.baseline, "scale": self.scale.name, "seed": self.seed})
        if looks := self._looks:
            evaluation["looks"] = looks
        return {"bench": BENCH, "setup": self.setup.key, "evaluation": evaluation, **how}

    @property
    def _looks(self) -> dict[str, int]:
        return self.scale.looks(self.setup, self.method) if isinstance(self.method, Trained) else {}

    @property
    def group(self) -> str:
        identity = self.identity
        return key_of(identity.get("config", identity))

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        if isinstance(self.method, Trained):
            config = self.scale.config(self.setup, self.method, self.seed)
            return measure.measure_trained(self.setup, self.scale, config, workspace, self._looks)
        return measure.measure_baseline(self.setup, self.scale, self.method.baseline, self.seed, workspace)


def cells_of_table(number: int, scale: Scale, seeds: int | None = None, setups: Sequence[str] = (),
                   methods: Sequence[str] = ()) -> list[PaperCell]:
    """The cells of Table 1, 2 or 5 to 22.

    Args:
        number: of the table.
        scale: budget and sizes.
        seeds: how many; default the scale's.
        setups: keys of some columns; default all.
        methods: keys of some rows; default all.

    Raises:
        InputError: a table, setup or method that does not exist.
    """
    columns = chosen_setups(number, setups)
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise InputError.of("methods", str(unknown), f"names among {sorted(METHODS)}")
    rows = [METHODS[name] for name in methods] if methods else [*PER_DATASET, *TRAINED]
    count = scale.seeds if seeds is None else seeds
    if count < 1:
        raise InputError.of("seeds", count, "1 or more")
    cells = [cell for seed in range(count) for setup in columns for cell in _column(setup, rows, scale, seed)]
    return sorted(cells, key=lambda cell: (cell.seed, not _gives_reference(cell.method)))


def chosen_setups(number: int, keys: Sequence[str] = ()) -> tuple[Setup, ...]:
    """The columns of a table, or some of them."""
    if number not in _TABLES:
        raise InputError.of("table", number, f"one of {list(_TABLES)}")
    columns = setups_of_table(number)
    known = {setup.key: setup for setup in columns}
    unknown = sorted(set(keys) - set(known))
    if unknown:
        raise InputError.of("setups", str(unknown), f"names among {list(known)}")
    return tuple(known[key] for key in keys) if keys else columns


def _column(setup: Setup, methods: Sequence[Method], scale: Scale, seed: int) -> Iterator[PaperCell]:
    for method in methods:
        # Baselines have no training whose luck a seed would show.
        if isinstance(method, Trained) or (seed == 0 and _applies(method, setup)):
            yield PaperCell(setup, method, scale, seed)


def _applies(method: PerDataset, setup: Setup) -> bool:
    exact = setup.task in measure.EXACT_TASKS
    if method.baseline == measure.EXACT:
        return exact
    if method.baseline == measure.REFERENCE:
        return not exact and setup.dim <= measure.MOST_CHAIN_FEATURES
    return True


def _gives_reference(method: Method) -> bool:
    return isinstance(method, PerDataset) and method.baseline == measure.REFERENCE

