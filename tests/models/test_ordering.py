"""The canonical order of what can change places."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from posteria import universal
from posteria.densities.gaussian import GaussianTheta
from posteria.densities.symmetric import SymmetrisedTheta
from posteria.errors import UnsupportedError
from posteria.inference import infer_table
from posteria.models import GaussianMean, build_model
from posteria.models.ordering import in_order, widest_direction
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.types import Dataset


def test_components_in_order_do_not_depend_on_labels() -> None:
    model = build_model("gaussian_mixture", components=3)
    dataset, _ = SimulatedTask(model, (8, 8), (2, 2)).draw(2, generator_for(0))
    theta = torch.randn(2, 2, 4, 6, generator=generator_for(1))
    swapped = theta.unflatten(-1, (3, 2))[..., [2, 0, 1], :].flatten(-2)
    values = in_order(model, dataset, theta)
    torch.testing.assert_close(values, in_order(model, dataset, swapped))
    torch.testing.assert_close(values[..., 1::2].sum(-1), theta[..., 1::2].sum(-1))


def test_components_are_ordered_along_the_axis_of_the_data_whatever_outliers_say() -> None:
    model = build_model("gaussian_mixture", components=2)
    x = torch.randn(1, 200, 2, generator=generator_for(0)) * torch.tensor([0.1, 3.0])
    x[0, 0, 0] = 1e4
    theta = torch.randn(1, 2, 50, 4, generator=generator_for(1))
    values = in_order(model, Dataset.of(x), theta)
    upwards = (values[..., 3] > values[..., 1]).double().mean()
    assert max(upwards, 1 - upwards) > 0.95  # the direction is estimated: near ties may go either way


@pytest.mark.parametrize(("name", "layers"), [("neural_regression", 1), ("neural_classification", 1),
                                              ("neural_regression", 2)])
def test_hidden_units_move_as_a_whole(name: str, layers: int) -> None:
    """Predictions stay as they are, whatever moves."""
    model = build_model(name, hidden=3, layers=layers)
    dataset, _ = SimulatedTask(model, (8, 8), (2, 2)).draw(2, generator_for(0))
    size = model.layout_of(dataset).size
    theta = torch.randn(2, 5, size, generator=generator_for(1))
    values = in_order(model, dataset, theta)
    assert not torch.equal(values, theta)
    torch.testing.assert_close(model.log_likelihood(values, dataset), model.log_likelihood(theta, dataset))
    torch.testing.assert_close(in_order(model, dataset, values), values)
    torch.testing.assert_close(values.sort(-1).values, theta.sort(-1).values)


def test_padding_does_not_change_the_direction() -> None:
    x = torch.randn(3, 20, 2, generator=generator_for(0)) * torch.tensor([1.0, 2.0])
    whole = widest_direction(Dataset.of(x))
    padded = widest_direction(Dataset.of(x).padded(25, 4))
    torch.testing.assert_close(padded[:, :2], whole)
    assert not padded[:, 2:].any()
    assert (whole.gather(1, whole.abs().argmax(1, keepdim=True)) > 0).all()


def test_a_posterior_in_order_has_components_of_its_own() -> None:
    """Means at -3 and 3, in either order with equal shares: each has mean zero, unless they are in order."""
    model = build_model("gaussian_mixture", components=2)
    noise = torch.randn(1, 50, 1, generator=generator_for(0))
    dataset = Dataset.of(torch.cat([noise - 3.0, noise + 3.0], 1))
    q = GaussianTheta(torch.tensor([[-3.0, 3.0]]), torch.full((1, 2), 0.2), model.active(dataset))
    posterior = Posterior(model, dataset, SymmetrisedTheta(q, torch.tensor([[0, 1], [1, 0]])))
    assert posterior.mean["means"].abs().max() < 0.3  # four standard errors of 4,000 draws are 0.19
    ordered = posterior.in_order()
    torch.testing.assert_close(ordered.mean["means"].flatten(), torch.tensor([-3.0, 3.0]), rtol=0, atol=0.02)
    assert (ordered.sd["means"] < 0.25).all()
    torch.testing.assert_close(ordered.sample_theta(9, 0).sort(-1).values, posterior.sample_theta(9, 0).sort(-1).values)
    with pytest.raises(UnsupportedError, match="in order"):
        ordered.log_prob(ordered.sample_theta(3, 0))


def test_what_is_not_exchangeable_is_in_order() -> None:
    model, dataset = GaussianMean(), Dataset.of(torch.zeros(5, 2))
    posterior = Posterior(model, dataset, GaussianTheta(torch.zeros(1, 2), torch.ones(1, 2), model.active(dataset)))
    assert posterior.in_order() is posterior


def test_tables_of_a_mixture_are_in_order() -> None:
    """Two groups of points along one column; without an order both components would have mean zero."""
    points = torch.cat([torch.randn(60, 1, generator=generator_for(0)) + side for side in (-4.0, 4.0)])
    table = pd.DataFrame({"a": points[:, 0].numpy()})
    result = infer_table(universal().estimator(build_model("gaussian_mixture", components=2, covariance=0.1)), table)
    assert any("are in order" in note for note in result.notes)
    mean = result.summary["mean"]
    assert mean["means[0,a]"] < -0.5
    assert mean["means[1,a]"] > 0.5
