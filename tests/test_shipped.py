"""Loading estimators by name or folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import posteria
from posteria import Estimator, EstimatorInfo, InputError
from posteria.shipped import shipped_names


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    Estimator(posteria.build_model("linear_regression"), info=EstimatorInfo((2, 2), (8, 16))).save(tmp_path)
    assert posteria.load(tmp_path).info.columns == (2, 2)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name: got .*nonsense.*; takes the folder of a trained estimator"):
        posteria.load(tmp_path / "nonsense")


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_estimators_load_and_say_how_they_were_trained(name: str) -> None:
    estimator = posteria.load(name)
    known = (name, (1, 100), (8, 2000))
    if name == "universal":  # its model is nominal
        known = ("linear_regression", (1, 64), (4, 2000))
    assert (estimator.model.name, estimator.info.columns, estimator.info.rows) == known
    assert estimator.info.training
