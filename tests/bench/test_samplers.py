"""Samplers compared with each other: the figures on draws whose truth is known, and one case from end to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from posteria.bench.samplers import (
    CASES,
    Moments,
    compare_moments,
    compare_samplers,
    labelling_free,
    moments_of,
    predictions,
)
from posteria.errors import InputError
from posteria.models import MODELS, build_model
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask


def _chains(seed: int, mean: float = 0.0, sd: float = 1.0, correlation: float = 0.6) -> Tensor:
    """(20, 4, 500, 3) stationary autoregressive chains with these moments."""
    noise = torch.randn(500, 20, 4, 3, generator=generator_for(seed), dtype=torch.float64)
    values = [noise[0]]
    for step in noise[1:]:
        values.append(correlation * values[-1] + (1.0 - correlation**2) ** 0.5 * step)
    return mean + sd * torch.stack(values, 2)


def test_correct_samplers_agree_in_standard_errors() -> None:
    figures = compare_moments(moments_of(_chains(0)), moments_of(_chains(1, correlation=0.2)))
    assert max(figures["mean_z_max"], figures["sd_z_max"]) < figures["z_limit"]
    # 60 z-scores each: their root mean square is within 4 standard errors of one.
    assert figures["mean_z_rms"] == pytest.approx(1.0, abs=4 * 120**-0.5)
    assert figures["sd_z_rms"] == pytest.approx(1.0, abs=4 * 120**-0.5)
    assert 0.8 < figures["sd_ratio_min"] < 1.0 < figures["sd_ratio_max"] < 1.2


def test_errors_against_exact_moments_are_of_size_one() -> None:
    exact = Moments(torch.zeros(20, 3), torch.ones(20, 3), torch.zeros(()), torch.zeros(()))
    figures = compare_moments(moments_of(_chains(2)), exact)
    assert figures["mean_z_rms"] == pytest.approx(1.0, abs=4 * 120**-0.5)
    assert figures["sd_z_rms"] == pytest.approx(1.0, abs=4 * 120**-0.5)


@pytest.mark.parametrize(("wrong", "figure"), [({"mean": 0.3}, "mean_z_max"), ({"sd": 0.8}, "sd_z_max")])
def test_wrong_samplers_do_not_agree(wrong: dict[str, float], figure: str) -> None:
    figures = compare_moments(moments_of(_chains(0, **wrong)), moments_of(_chains(1)))
    assert figures[figure] > figures["z_limit"]


def test_moments_of_a_mixture_do_not_depend_on_labels() -> None:
    model = build_model("gaussian_mixture", components=3)
    dataset, _ = SimulatedTask(model, (8, 8), (2, 2)).draw(2, generator_for(0))
    theta = torch.randn(2, 2, 4, 6, generator=generator_for(1))
    swapped = theta.unflatten(-1, (3, 2))[..., [2, 0, 1], :].flatten(-2)
    values = labelling_free(model, dataset, theta)
    assert values.shape == (2, 2, 4, 5)
    torch.testing.assert_close(values, labelling_free(model, dataset, swapped))
    means = theta.unflatten(-1, (3, 2))
    torch.testing.assert_close(values[..., 3], (means[..., 0] * means[..., 1]).mean(-1))


@pytest.mark.parametrize(("name", "options"), [("neural_regression", {"hidden": 3}),
                                               ("neural_classification", {"hidden": 3, "classes": 3})])
def test_predictions_do_not_depend_on_the_order_of_hidden_units(name: str, options: dict[str, Any]) -> None:
    model = build_model(name, **options)
    dataset, _ = SimulatedTask(model, (8, 8), (2, 2)).draw(2, generator_for(0))
    layout = model.layout(2)
    theta = torch.randn(2, 2, 4, layout.size, generator=generator_for(1))
    values = layout.constrain(theta)
    values = {"hidden_weights": values["hidden_weights"].flip(-2), "hidden_bias": values["hidden_bias"].flip(-1),
              "output_weights": values["output_weights"].flip(-1)}
    first = predictions(model, dataset, theta)
    assert first.shape == (2, 2, 4, 8 * (2 if model.target == "class" else 1))
    torch.testing.assert_close(first, predictions(model, dataset, layout.unconstrain(values)))


def test_cases_build_and_cover_all_models() -> None:
    assert {case.model for case in CASES.values()} == set(MODELS)
    sizes = {name: build_model(case.model, **case.options).layout(case.columns).size for name, case in CASES.items()}
    assert all(size <= 50 for name, size in sizes.items() if name != "lr_100d")


def test_both_samplers_find_the_exact_posterior() -> None:
    pytest.importorskip("numpyro")
    against_nuts, *against_exact = compare_samplers(["gm_2d"], num_datasets=3, num_samples=400)
    assert [row["method"] for row in against_exact] == ["hmc", "nuts"]
    for row in (against_nuts, *against_exact):
        assert row["agrees"], row
        assert row["r_hat"] < 1.03
    assert (against_nuts["reference"], against_exact[0]["reference"]) == ("nuts", "exact")
    assert against_nuts["reference_seconds"] > 0.0


def test_unknown_cases_are_named() -> None:
    with pytest.raises(InputError, match=r"cases: got \['lr_3d'\]; takes names among"):
        compare_samplers(["lr_3d"])
