"""Starting points that a few observations lead to."""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.models import build_model
from posteria.randomness import generator_for
from posteria.trust.outlying import led_by_few, subsets
from posteria.types import Dataset


def cloud(batch: int = 3, rows: int = 30, outliers: int = 2) -> Dataset:
    x = torch.randn(batch, rows, 2, generator=generator_for(0))
    x[:, :outliers:2] += 20.0
    x[:, 1:outliers:2] -= 20.0
    return Dataset.of(x)


def chosen(dataset: Dataset) -> Tensor:
    """(B, M, 4, D) the rows themselves."""
    rows = subsets(dataset)
    index = torch.arange(len(dataset))[:, None, None].expand_as(rows)
    return dataset.x[index, rows]


def test_every_outlier_is_seen_with_others_and_some_subsets_have_none() -> None:
    dataset = cloud()
    rows = subsets(dataset)
    for outlier in (0, 1):
        beside = (rows == outlier).any(-1) & (rows >= 2).any(-1) & ~(rows == 1 - outlier).any(-1)
        assert beside.any(-1).all()
    assert ((rows >= 2).all(-1).sum(-1) >= 10).all()


def test_order_padding_and_other_datasets_do_not_matter() -> None:
    dataset = cloud()
    found = chosen(dataset)
    order = torch.randperm(30, generator=generator_for(1))
    assert torch.equal(chosen(Dataset.of(dataset.x[:, order])), found)
    assert torch.equal(chosen(dataset.padded(40, 2)), found)
    assert torch.equal(chosen(dataset[torch.tensor([1])]), found[1:2])


def test_fewer_observations_than_a_subset_has() -> None:
    assert (subsets(cloud(2, 1, 0).padded(5, 2)) == 0).all()
    assert (subsets(Dataset.of(torch.ones(1, 4, 2)).padded(8, 2)) < 4).all()


def test_points_lie_where_few_observations_lead() -> None:
    """One component of a mixture ends at an outlier, of either side, where 28 others do not lead."""
    dataset = cloud()
    model = build_model("gaussian_mixture")
    means = led_by_few(model, dataset).unflatten(-1, (2, 2))
    assert (means.amin(-1).amax(-1) > 8.0).any(-1).all()
    assert (means.amax(-1).amin(-1) < -8.0).any(-1).all()
    assert means.isfinite().all()
