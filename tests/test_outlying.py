"""Starting points that a few observations lead to."""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.models import build_model
from posteria.randomness import generator_for
from posteria.trust.outlying import led_by_few, subsets
from posteria.types import Dataset

_NUMBERS = torch.arange(18)


def cloud(batch: int = 3, rows: int = 30, outliers: int = 2) -> Dataset:
    x = torch.randn(batch, rows, 2, generator=generator_for(0))
    x[:, :outliers] += 20.0
    return Dataset.of(x)


def chosen(dataset: Dataset, few: int = 3) -> Tensor:
    """(B, M, few, D) the rows themselves."""
    rows = subsets(dataset, _NUMBERS, few)
    index = torch.arange(len(dataset))[:, None, None].expand_as(rows)
    return dataset.x[index, rows]


def test_half_of_the_subsets_have_observations_far_apart() -> None:
    found = chosen(cloud())
    with_outliers = (found.amax(-1) > 10.0).any(-1)
    assert with_outliers[:, 1::2].all()
    assert not with_outliers[:, ::2].all(1).any()
    assert (found.amin((-1, -2)) < 10.0).all()  # never outliers alone, of which there are two


def test_order_padding_and_other_datasets_do_not_matter() -> None:
    dataset = cloud()
    found = chosen(dataset)
    order = torch.randperm(30, generator=generator_for(1))
    assert torch.equal(chosen(Dataset.of(dataset.x[:, order])), found)
    assert torch.equal(chosen(dataset.padded(40, 2)), found)
    assert torch.equal(chosen(dataset[torch.tensor([1])]), found[1:2])


def test_fewer_observations_than_a_subset_has() -> None:
    dataset = cloud(2, 1, 0).padded(5, 2)
    assert (subsets(dataset, _NUMBERS, 4) == 0).all()
    same = Dataset.of(torch.ones(1, 4, 2)).padded(8, 2)
    assert (subsets(same, _NUMBERS, 3) < 4).all()


def test_points_lie_where_few_observations_lead() -> None:
    """One component of a mixture ends at two outliers, where 28 others do not lead."""
    dataset = cloud()
    model = build_model("gaussian_mixture")
    means = led_by_few(model, dataset).unflatten(-1, (2, 2))
    assert (means.amin(-1).amax(-1) > 8.0).any(-1).all()
    assert means.isfinite().all()
