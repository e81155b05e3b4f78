"""The ablations: their designs, and measures checked against known answers."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posteria.bench.ablations import (
    ABLATIONS,
    SIZES,
    ablation_cells,
    ablation_figures,
    distance_figures,
    shuffle_spread,
)
from posteria.bench.scales import SCALES
from posteria.bench.store import key_of
from posteria.bench.workspace import Workspace
from posteria.densities.gaussian import GaussianTheta
from posteria.errors import InputError, UnsupportedError
from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import build_model
from posteria.parts import Part
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.training import build
from posteria.types import Dataset

SMOKE, LAPTOP = SCALES["smoke"], SCALES["laptop"]


# -- designs ----------------------------------------------------------------------------------


def test_pooling_is_complete_in_pooling_and_sizes_and_varies_one_factor_elsewhere() -> None:
    variants = {v.name: dict(v.encoder["options"]) for v in ABLATIONS["pooling"].variants}
    base = variants.pop("mean")
    changes = {name: {k: v for k, v in options.items() if base.get(k) != v} for name, options in variants.items()
               if not name.startswith("gru")}
    assert {(c.get("pooling", "mean"), c.get("sizes", True)) for c in [{}, *changes.values()]
            if not set(c) - {"pooling", "sizes"}} == {
        (pooling, sizes) for pooling in ("mean", "sum", "max", "moments") for sizes in (True, False)}
    assert changes["mean_normalised"] == {"normalise": True}
    assert changes["mean_dropout"] == {"dropout": 0.1}


def test_both_objectives_for_the_mean_and_the_gru_only() -> None:
    both = {v.name for v in ABLATIONS["pooling"].variants if len(v.objectives) == 2}
    assert both == {"mean", "mean_no_sizes", "gru", "gru_no_sizes"}


def test_cells_are_distinct_and_every_seed_and_setup_has_the_same() -> None:
    cells = ablation_cells("pooling", LAPTOP)
    assert len(cells) == len({key_of(cell.identity) for cell in cells}) == 2 * 5 * (12 + 4)
    counts = Counter((cell.seed, cell.setup_key) for cell in cells)
    assert set(counts.values()) == {16}
    assert len(ablation_cells("positions", LAPTOP, seeds=2)) == 2 * 2 * 2


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_cell_pickles_and_its_configuration_builds(name: str) -> None:
    cells = ablation_cells(name, LAPTOP, seeds=1)
    for cell in cells:
        again = pickle.loads(pickle.dumps(cell))  # noqa: S301  # our own, as the runner's processes get it
        assert again.identity == cell.identity
        estimator, _, _ = build(cell.config)
        assert sum(p.numel() for p in estimator.parameters()) < 110_000


def test_variants_of_one_ablation_share_their_recipe() -> None:
    for name in ABLATIONS:
        for key in ABLATIONS[name].steps:
            cells = [cell for cell in ablation_cells(name, LAPTOP, seeds=1) if cell.setup_key == key]
            assert len({cell.config.model_dump_json(exclude={"encoder", "objective"}) for cell in cells}) == 1


def test_unknown_names_and_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"^ablation: got 'depth'; takes one of \['pooling', 'positions'\]"):
        ablation_cells("depth", SMOKE)
    with pytest.raises(InputError, match=r"^seeds: got 0"):
        ablation_cells("pooling", SMOKE, seeds=0)


@pytest.mark.parametrize(("ablation", "variant", "moves"), [("positions", "none", False),
                                                            ("positions", "sinusoidal", True)])
def test_a_cell_trains_and_measures(ablation: str, variant: str, moves: bool, tmp_path: Path) -> None:
    cell = next(c for c in ablation_cells(ablation, SMOKE, seeds=1) if c.variant.name == variant)
    figures, record = cell.compute(Workspace(tmp_path))
    assert record["steps"] == cell.config.steps
    for suffix in ("", "_256", "_512", "_1024"):
        value = figures[f"symmetric_kl{suffix}"]["mean"]
        assert value is not None
        assert value > 0
    spread = figures["shuffle_spread"]["mean"]
    assert spread is not None
    assert (spread > 1e-3) == moves


# -- distances --------------------------------------------------------------------------------


class _Given(Estimator):
    """An estimator whose posterior is a function of the dataset that the test writes."""

    def __init__(self, model: Any, answer: Any):
        super().__init__(model, Part("deepsets", {"layers": 1, "width": 2}), "gaussian", EstimatorInfo((2, 2)))
        self.answer = answer

    def posterior(self, dataset: Dataset) -> Posterior:
        return Posterior(self.model, dataset, self.answer(self.model, dataset), self.info)


def _exact_but(mean_shift: float = 0.0, sd_factor: float = 1.0) -> Any:
    """The exact posterior (a diagonal one), moved by so many sds and scaled."""

    def answer(model: Any, dataset: Dataset) -> GaussianTheta:
        exact = model.exact_posterior(dataset)
        return GaussianTheta(exact.mean + mean_shift * exact.stddev, sd_factor * exact.stddev, model.active(dataset))

    return answer


def _drawn(num: int = 4, rows: int = 20, model: str = "gaussian_mean") -> Dataset:
    return SimulatedTask(build_model(model), (rows, rows), (2, 2)).draw(num, generator_for(3))[0]


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1.0), (0.5, 1.0), (-0.5, 1.0), (0.0, 2.0), (0.3, 0.5)])
def test_distances_are_those_of_normals_that_are_shifted_and_scaled(shift: float, factor: float) -> None:
    """Per parameter (s² + 1/s² - 2 + d² (1 + 1/s²)) / 4, for a shift of d exact sds and a scale of s."""
    figures = distance_figures(_Given(build_model("gaussian_mean"), _exact_but(shift, factor)), _drawn())
    kl = (factor**2 + factor**-2 - 2 + shift**2 * (1 + factor**-2)) / 4
    expected = {"symmetric_kl": kl, "mean_error": abs(shift), "sd_error": abs(math.log(factor)),
                "log_sd_ratio": math.log(factor)}
    assert set(figures) == set(expected)
    for name, value in figures.items():
        torch.testing.assert_close(value, torch.full((4,), expected[name], dtype=torch.double), rtol=1e-6, atol=1e-6)


def test_figures_have_every_size_once() -> None:
    figures = ablation_figures(_Given(build_model("gaussian_mean"), _exact_but(0.1)), 20)
    assert len(figures) == 4 * len(SIZES) + 1
    for name, values in figures.items():
        if name.startswith("mean_error"):
            assert values["mean"] == pytest.approx(0.1, rel=1e-5)
    assert figures["shuffle_spread"]["mean"] == pytest.approx(0.0, abs=1e-5)


def test_the_least_distance_without_knowing_the_number_of_rows() -> None:
    """The 0.0100 of the module's docstring: one sd for all of 64 to 128 rows, the best for reverse KL."""
    precision = torch.arange(64, 129).double() + 1.0
    weight = 1 / (precision + 1.0)  # the objective divides by rows + parameters
    ratio = (weight * precision).sum() / weight.sum() / precision
    assert float((0.25 * (ratio + 1 / ratio - 2)).mean()) == pytest.approx(0.0100, abs=5e-5)


# -- orders -----------------------------------------------------------------------------------


def _first_row(spread: float, sd: float = 0.5) -> Any:
    """A mean that is ``spread`` times the first row: the order moves it as far as rows differ."""

    def answer(model: Any, dataset: Dataset) -> GaussianTheta:
        scales = torch.tensor([spread, 0.0])  # only the first parameter moves
        first = dataset.observed.long().argmax(-1)
        mean = scales * dataset.x[torch.arange(len(dataset)), first]
        return GaussianTheta(mean, torch.full_like(mean, sd), model.active(dataset))

    return answer


def _expected_spread(x: Tensor, spread: float, sd: float) -> Tensor:
    return spread * x[..., 0].double().std(1, correction=0) / sd


def test_shuffle_spread_is_the_sd_over_orders_in_posterior_sds() -> None:
    """Every row is the first equally often, so the mean's sd over shuffles is that of the rows."""
    dataset, num = _drawn(3), 1000
    got = shuffle_spread(_Given(build_model("gaussian_mean"), _first_row(0.2)), dataset, num, generator_for(1))
    expected = _expected_spread(dataset.x, 0.2, 0.5)
    assert got.shape == (3,)
    # Standard error of a sample sd: sqrt((kurtosis - 1) / 4 n), and bounded rows have a kurtosis below 4.
    assert ((got - expected) / expected).abs().max() < 4 * math.sqrt(3 / (4 * num))


def test_shuffle_spread_ignores_padding() -> None:
    """Shuffles put padding between rows, and only the order of the real rows may count."""
    estimator, num = _Given(build_model("gaussian_mean"), _first_row(0.2)), 1000
    dataset = _drawn(2)
    got = shuffle_spread(estimator, dataset.padded(30, 2), num, generator_for(2))
    expected = _expected_spread(dataset.x, 0.2, 0.5)
    assert ((got - expected) / expected).abs().max() < 4 * math.sqrt(3 / (4 * num))


def test_shuffles_keep_rows_whole() -> None:
    """x and y move together: a regression posterior that sees no order stays where it is."""
    model = build_model("linear_regression")

    def exact(model: Any, dataset: Dataset) -> GaussianTheta:
        posterior = model.exact_posterior(dataset)
        return GaussianTheta(posterior.mean, posterior.stddev, model.active(dataset))

    assert shuffle_spread(_Given(model, exact), _drawn(model="linear_regression"), 5).max() < 1e-4


def test_sets_do_not_move_and_sequences_do() -> None:
    model, info = build_model("gaussian_mean"), EstimatorInfo((2, 2))
    spreads = {name: shuffle_spread(Estimator(model, Part(name, {"layers": 1, "width": 8}), "gaussian", info),
                                    _drawn(), 10) for name in ("deepsets", "gru")}
    assert spreads["deepsets"].max() < 1e-4
    assert spreads["gru"].min() > 1e-3


def test_shuffle_spread_is_repeatable_and_per_dataset() -> None:
    estimator = Estimator(build_model("gaussian_mean"), Part("gru", {"layers": 1, "width": 8}), "gaussian",
                          EstimatorInfo((2, 2)))
    dataset = _drawn()
    torch.testing.assert_close(shuffle_spread(estimator, dataset, 5), shuffle_spread(estimator, dataset, 5))
    others = replace(dataset, x=torch.cat([dataset.x[:2], 3.0 * dataset.x[2:]]))
    torch.testing.assert_close(shuffle_spread(estimator, others, 5)[:2], shuffle_spread(estimator, dataset, 5)[:2])


def test_errors_say_what_is_measured() -> None:
    gaussian = _Given(build_model("gaussian_mean"), _exact_but())
    with pytest.raises(InputError, match=r"^num_shuffles: got 1"):
        shuffle_spread(gaussian, _drawn(), 1)
    flow = Estimator(build_model("gaussian_mean"), Part("deepsets", {"layers": 1, "width": 4}), "flow",
                     EstimatorInfo((2, 2)))
    with pytest.raises(UnsupportedError, match=r"^density: got"):
        shuffle_spread(flow, _drawn(), 2)
