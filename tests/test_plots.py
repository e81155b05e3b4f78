"""Plots: right points and words on the figures, and refusals."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from posteria import plots
from posteria.errors import DataError, InputError
from posteria.models.gaussian import GaussianMean
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.posterior import Posterior
from posteria.tables import TableCodec
from posteria.types import Dataset
from tests.doubles import DiagonalGaussian, gaussian_for


def words(figure: Figure) -> str:
    texts = [figure.get_suptitle()]
    for axis in figure.axes:
        texts += [axis.get_title(), axis.get_xlabel(), axis.get_ylabel()]
        texts += [label.get_text() for label in (*axis.get_yticklabels(), *axis.texts)]
    return "\n".join(texts)


def drawn(figure: Figure) -> Figure:
    """Rendering finds what building does not: layouts that fail, fonts without a glyph."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    return figure


def regression(columns: int = 3) -> Posterior:
    model, generator = LinearRegression("inferred"), torch.Generator().manual_seed(0)
    x = torch.randn(50, columns, generator=generator)
    dataset = Dataset.of(x, x.sum(-1) + torch.randn(50, generator=generator))
    location = torch.cat([torch.ones(columns), torch.zeros(2)])[None]
    return Posterior(model, dataset, DiagonalGaussian(location, torch.full_like(location, 0.1), model.active(dataset)))


def classes(count: int) -> Posterior:
    model, generator = LinearClassification(count, temperature=1.0), torch.Generator().manual_seed(0)
    dataset = Dataset.of(torch.randn(60, 2, generator=generator), torch.arange(60) % count)
    return Posterior(model, dataset, gaussian_for(model, dataset))


def test_pairs_show_all_parameters_when_they_are_few() -> None:
    figure = drawn(plots.pairs(regression(2)))
    assert len(figure.axes) == 16
    assert figure.get_suptitle() == "Posterior draws"
    assert "weights[0]" in words(figure)
    assert "noise_scale" in words(figure)


@pytest.mark.parametrize("apart", [0.0, 6e-8, 1.2e-16])
def test_draws_that_hardly_vary_can_be_drawn(apart: float) -> None:
    """Data without noise: draws are so close together that single precision has a few numbers between them."""
    values = 0.95 + apart * (np.arange(40) % 9)
    for kind in (np.float32, np.float64):
        figure = drawn(plots.pairs(pd.DataFrame({"a": values.astype(kind), "b": np.zeros(40, dtype=kind)})))
        assert len(figure.axes) == 4


def test_many_parameters_are_cut_to_the_clearest_and_the_title_says_so() -> None:
    rng = np.random.default_rng(0)
    draws = pd.DataFrame(rng.normal(size=(200, 100)), columns=[f"weights[a rather long feature name {i}]"
                                                               for i in range(100)])
    draws.iloc[:, 40] += 10.0
    for figure, most in ((plots.pairs(draws), 6), (plots.marginals(draws), 30)):
        assert f"the {most} of 100 parameters furthest from zero" in words(drawn(figure))
        assert "name 40" in words(figure)
    assert max(map(len, words(plots.pairs(draws)).split("\n"))) < 70


def test_pairs_print_correlations() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=500)
    assert "-1.00" in words(plots.pairs(pd.DataFrame({"a": a, "b": -a})))
    drawn(plots.pairs(pd.DataFrame({"a": a})))
    assert "0.00" in words(plots.pairs(pd.DataFrame({"a": a, "b": np.ones(500)})))


def test_marginals_place_the_median() -> None:
    figure = plots.marginals(regression(2))
    (axis,) = figure.axes
    medians = axis.lines[-1].get_xdata()
    np.testing.assert_allclose(np.asarray(medians), [1.0, 1.0, 0.0, 1.0], atol=0.02)


def test_one_feature_gives_a_band_in_units() -> None:
    table = pd.DataFrame({"dose": np.linspace(100, 200, 30), "reply": np.linspace(5, 9, 30) + np.tile([0.1, -0.1], 15)})
    model = LinearRegression("inferred")
    codec = TableCodec.for_model(model, table, "reply")
    dataset = codec.dataset(table)
    location = torch.tensor([[1.0, 0.0, -3.0]])
    posterior = Posterior(model, dataset, DiagonalGaussian(location, torch.full((1, 3), 0.01), model.active(dataset)))
    figure = drawn(plots.predictive(posterior, codec=codec))
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("dose", "reply")
    mean, observed = axis.lines
    np.testing.assert_allclose(np.asarray(observed.get_ydata()), table["reply"], rtol=1e-4)
    np.testing.assert_allclose(np.asarray(observed.get_xdata()), table["dose"], rtol=1e-4)
    line = np.interp(150.0, np.asarray(mean.get_xdata()), np.asarray(mean.get_ydata()))
    assert abs(line - table["reply"].mean()) < 0.05


def test_more_features_give_predicted_against_observed_with_its_coverage() -> None:
    text = words(drawn(plots.predictive(regression())))
    assert "90% intervals hold" in text
    assert "on the rows it was fitted to" in text


def test_other_rows_can_be_shown() -> None:
    posterior = regression()
    x, y = np.zeros((5, 3)), np.zeros(5)
    assert "on other rows" in words(plots.predictive(posterior, x, y))
    with pytest.raises(InputError, match="both or neither"):
        plots.predictive(posterior, x)
    with pytest.raises(DataError, match="y: got 4 rows; takes 5 rows"):
        plots.predictive(posterior, x, y[:4])


@pytest.mark.parametrize(("count", "text"), [(2, "probability of class 1"), (3, "probability of the most probable")])
def test_classes_give_a_calibration_curve(count: int, text: str) -> None:
    figure = drawn(plots.predictive(classes(count)))
    assert text in words(figure)
    assert "accuracy" in words(figure)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_model_of_x_shows_replicated_data(columns: int) -> None:
    model = GaussianMean()
    dataset = Dataset.of(torch.randn(40, columns, generator=torch.Generator().manual_seed(0)))
    posterior = Posterior(model, dataset, gaussian_for(model, dataset))
    assert "drawn from the predictive" in words(drawn(plots.predictive(posterior)))


def test_padding_is_not_shown() -> None:
    posterior = regression(1)
    padded = posterior.dataset.padded(70, 1)
    wide = Posterior(posterior.model, padded, posterior.distribution)
    (axis,) = plots.predictive(wide).axes
    assert len(np.asarray(axis.lines[-1].get_xdata())) == 50


def test_several_datasets_are_refused() -> None:
    model = LinearRegression()
    dataset = Dataset.of(torch.zeros(2, 5, 1), torch.zeros(2, 5))
    posterior = Posterior(model, dataset, gaussian_for(model, dataset))
    for plot in (plots.pairs, plots.marginals, plots.predictive):
        with pytest.raises(InputError, match="posterior: got 2 datasets"):
            plot(posterior)
    with pytest.raises(InputError, match="max_parameters: got 0"):
        plots.pairs(posterior[0], max_parameters=0)


def test_no_figure_is_left_open() -> None:
    plots.marginals(regression())
    assert pyplot.get_fignums() == []
