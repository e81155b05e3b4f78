"""Shared by all tests: few threads, fixed seeds, and the folder of real tables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_DATA = Path(os.environ.get("POSTERIA_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """Small tensors run slower on many threads, and results should not depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Weights are initialised from the global state; everything else takes a generator."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with ``tabular/index.json``: POSTERIA_DATA, by default ../shared/data."""
    if not (_DATA / "tabular" / "index.json").is_file():
        pytest.skip(f"no tables at {_DATA}; set POSTERIA_DATA to a folder that holds tabular/index.json")
    return _DATA
