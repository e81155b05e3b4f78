"""The canonical order of what can change places."""

from __future__ import annotations

import pytest
import torch

from posteria.models import build_model
from posteria.models.ordering import in_order, widest_direction
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


@pytest.mark.parametrize("name", ["neural_regression", "neural_classification"])
def test_hidden_units_move_as_a_whole(name: str) -> None:
    """Predictions stay as they are, whatever moves; and swapped units come out the same."""
    model = build_model(name, hidden=3)
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
