"""Likelihoods that are computed some draws and datasets at a time."""

import pytest
import torch

from posteria.models import Model, blocks, build_model
from posteria.testing.models import example

_MODELS = [build_model("linear_regression", noise="inferred"), build_model("neural_regression", hidden=3),
           build_model("gaussian_mixture"), build_model("hierarchical", groups=3)]


# Of 3 datasets, 4 draws and 7 rows: one term; a draw; two draws; a dataset and a draw; two datasets.
@pytest.mark.parametrize("cached", [1, 7, 15, 35, 60])
@pytest.mark.parametrize("model", _MODELS, ids=lambda model: model.name)
def test_a_likelihood_in_blocks_is_that_of_all_at_once(model: Model, cached: int, monkeypatch: pytest.MonkeyPatch):
    dataset, theta = example(model, 2)
    theta.requires_grad_()
    together = model.log_likelihood(theta, dataset)
    (slope,) = torch.autograd.grad(together.sum(), theta)
    by_entry = model.likelihood_by_entry(theta, dataset) if model.separate_entries else None
    monkeypatch.setattr(blocks, "_CACHED", cached)
    apart = model.log_likelihood(theta, dataset)
    torch.testing.assert_close(apart, together)
    torch.testing.assert_close(torch.autograd.grad(apart.sum(), theta)[0], slope)
    if by_entry is not None:
        torch.testing.assert_close(model.likelihood_by_entry(theta, dataset), by_entry)


@pytest.mark.parametrize("cached", [1, 60])
def test_without_draws_there_is_nothing_to_split(cached: int, monkeypatch: pytest.MonkeyPatch):
    model = build_model("linear_regression")
    dataset, theta = example(model, 2)
    monkeypatch.setattr(blocks, "_CACHED", cached)
    assert model.log_likelihood(theta[:, :0], dataset).shape == (3, 0)
