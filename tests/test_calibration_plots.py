"""The figure of a calibration check: panels, words, and a band that the curves leave where the check fails."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from posteria.calibrate import check_calibration, exact_posterior_of
from posteria.calibration_plots import calibration
from posteria.errors import InputError
from posteria.metrics.calibration import Calibration, expected_coverage, sbc, tarp
from posteria.models.linear import LinearRegression
from posteria.tasks import SimulatedTask


def found(scale: float = 1.0, parameters: int = 3, active: torch.Tensor | None = None) -> Calibration:
    draws = torch.randn(400, 101, parameters, generator=torch.Generator().manual_seed(0))
    theta, draws = draws[:, 0], scale * draws[:, 1:]
    covered = expected_coverage(theta, draws, log_q=(-theta.abs().sum(-1), -draws.abs().sum(-1)), active=active)
    ranks = sbc(theta, draws, {"norm": (theta.norm(dim=-1), draws.norm(dim=-1))}, active=active).tests
    return Calibration((*ranks, *covered.tests, tarp(theta, draws)))


def words(figure: Figure) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    texts = [figure.get_suptitle()]
    for axis in figure.axes:
        legend = axis.get_legend()
        texts += [axis.get_title(), axis.get_xlabel(), axis.get_ylabel()]
        texts += [] if legend is None else [text.get_text() for text in legend.get_texts()]
    return "\n".join(texts)


def test_a_check_that_passes_says_so_in_every_panel() -> None:
    figure = calibration(found(), 400)
    text = words(figure)
    for phrase in ("Calibrated as far as seen: all 9 tests pass (400 datasets)", "all 3 pass", "passes",
                   "95% band, all tests", "theta[2]", "highest density", "TARP", "coverage minus level"):
        assert phrase in text
    assert len(figure.axes) == 4
    assert pyplot.get_fignums() == []


def test_a_check_that_fails_names_what_and_how() -> None:
    text = words(calibration(found(0.7), 400))
    for phrase in ("Not calibrated", "3 of 3 fail", "theta[0]: draws too narrow", "norm: draws too low",
                   "highest density: draws too narrow"):
        assert phrase in text


def test_curves_leave_the_band_where_they_fail() -> None:
    for scale in (1.0, 0.7):
        axis = calibration(found(scale), 400).axes[2]
        area = axis.collections[0].get_paths()[0].vertices
        curve = np.asarray(axis.lines[1].get_ydata())
        assert (curve.min() < np.asarray(area)[:, 1].min()) == (scale < 1)


def test_many_parameters_name_only_the_worst() -> None:
    text = words(calibration(found(0.75, 30), 400))
    assert "more fail" in text
    assert text.count("theta[") <= 12


def test_unequal_numbers_of_datasets_share_one_band() -> None:
    active = torch.ones(400, 3, dtype=torch.bool)
    active[:200, 2] = False
    assert "distances scaled to 400 datasets" in words(calibration(found(active=active), 400))


def test_only_the_panels_that_have_tests_are_drawn() -> None:
    draws = torch.randn(100, 31, 1, generator=torch.Generator().manual_seed(0))
    figure = calibration(sbc(draws[:, 0], draws[:, 1:]), 100)
    assert "Ranks of parameters" in words(figure)
    assert len(figure.axes) == 1


def test_a_report_draws_itself() -> None:
    model = LinearRegression()
    report = check_calibration(exact_posterior_of(model), SimulatedTask(model, (10, 20), (1, 1)), model, 100)
    assert "log likelihood" in words(report.plot())


def test_no_tests_are_refused() -> None:
    with pytest.raises(InputError, match="found: got no tests"):
        calibration(Calibration(()), 10)
