"""`posteria bench samplers`: our HMC against NUTS and exact posteriors, a cell per model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posteria.bench.plain_report import markdown_table
from posteria.bench.runner import CaseCell, Figures
from posteria.bench.samplers import CASES, compare_samplers
from posteria.bench.scales import Scale
from posteria.bench.store import ResultStore, key_of
from posteria.bench.workspace import Workspace
from posteria.errors import InputError

BENCH = "samplers"
_VERSION = 1
# Datasets, and draws of each of four chains.
_SIZES = {"smoke": (2, 200), "laptop": (10, 1000), "paper": (100, 1000)}
_SHOWN = ("case", "method", "reference", "agrees", "parameters", "datasets", "mean_z_max", "mean_z_rms", "sd_z_max",
          "sd_z_rms", "z_limit", "mean_shift_max", "sd_ratio_min", "sd_ratio_max", "r_hat", "divergences", "seconds",
          "reference_seconds")
_INTRODUCTION = """\
Posterior means and standard deviations of two methods on the same datasets, in combined Monte Carlo standard errors.
*agrees*: no z-score over all datasets and quantities is beyond the limit, which correct samplers exceed once in a
thousand times. Mixtures and networks are compared by what relabelling does not change: ordered means and predictions.
`paper_hmc` and `paper_langevin` have the paper's step sizes and lengths."""


@dataclass(frozen=True)
class SamplerBenchCell(CaseCell):
    """All samplers of one case; see :class:`posteria.bench.runner.Cell`."""

    BENCH = BENCH
    seed: int = 0

    @property
    def method_key(self) -> str:
        return "samplers"

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"bench": BENCH, "case": self.case, "sizes": _SIZES[self.scale.name], "seed": self.seed,
                "version": _VERSION}

    @property
    def group(self) -> str:
        return key_of(self.identity)

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        num_datasets, num_samples = _SIZES[self.scale.name]
        rows = compare_samplers([self.case], num_datasets, num_samples=num_samples, seed=self.seed)
        figures = {f"{row['method']} against {row['reference']}: {name}": {"mean": _finite(row[name]),
                                                                          "standard_error": None}
                   for row in rows for name in ("mean_z_max", "mean_z_rms", "sd_z_max", "sd_z_rms")}
        return figures, {"rows": [{name: _finite(value) for name, value in row.items()} for row in rows]}


def sampler_cells(scale: Scale, cases: Sequence[str] = ()) -> list[SamplerBenchCell]:
    """A cell per case.

    Raises:
        InputError: a case that does not exist.
    """
    unknown = sorted(set(cases) - set(CASES))
    if unknown:
        raise InputError.of("cases", str(unknown), f"names among {list(CASES)}")
    return [SamplerBenchCell(scale, case) for case in cases or CASES]


def write_sampler_report(scale: Scale, store: ResultStore, folder: Path) -> list[Path]:
    """Write ``samplers_<scale>.md`` and ``.csv``; returns their paths."""
    import pandas as pd

    results = [r for r in store.results() if r.bench == BENCH and r.scale == scale.name]
    frame = pd.DataFrame([row for r in results for row in r.record["rows"]])
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"samplers_{scale.name}.{ending}" for ending in ("md", "csv")]
    shown = [name for name in _SHOWN if name in frame]
    text = ["# Samplers against each other", "", f"    posteria bench samplers --scale {scale.name}", "", _INTRODUCTION,
            "", *markdown_table(frame.loc[:, shown])]
    paths[0].write_text("\n".join(text) + "\n", encoding="utf-8")
    frame.to_csv(paths[1], index=False, float_format="%.6g")
    return paths


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
