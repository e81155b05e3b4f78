from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from posteria.bench.runner import run_cells
from posteria.bench.sampler_cells import SamplerBenchCell, sampler_cells, write_sampler_report
from posteria.bench.samplers import CASES
from posteria.bench.scales import SCALES
from posteria.bench.workspace import Workspace
from posteria.errors import InputError


def test_there_is_a_cell_for_every_case() -> None:
    cells = sampler_cells(SCALES["laptop"])
    assert [cell.case for cell in cells] == list(CASES)
    assert len({cell.group for cell in cells}) == len(cells)
    with pytest.raises(InputError, match="cases"):
        sampler_cells(SCALES["laptop"], ["nothing"])


def test_rows_are_stored_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"case": "gm_2d", "method": "hmc", "reference": "exact", "agrees": True, "mean_z_max": 2.0,
           "mean_z_rms": 1.0, "sd_z_max": float("nan"), "sd_z_rms": 1.0, "seconds": 3.0}
    monkeypatch.setattr("posteria.bench.sampler_cells.compare_samplers", lambda *args, **kwargs: [row])
    workspace = Workspace(tmp_path)
    assert run_cells([SamplerBenchCell(SCALES["smoke"], "gm_2d")], workspace).run == 1
    paths = write_sampler_report(SCALES["smoke"], workspace.store, tmp_path / "reports")
    assert "| gm_2d | hmc | exact | yes |" in paths[0].read_text()
    assert pd.read_csv(paths[1]).mean_z_max.tolist() == [2.0]
