from __future__ import annotations

import pytest
import torch

from posteria.errors import InputError
from posteria.metrics.labellings import labelling_shares


def test_shares_count_the_nearest_labelling() -> None:
    truth = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]])
    noise = 0.1 * torch.randn(1, 9, 3, 2, generator=torch.Generator().manual_seed(0))
    draws = truth[:, None].expand(1, 9, 3, 2) + noise
    swapped = torch.cat([draws[:, :6], draws[:, 6:, [1, 0, 2]]], 1)
    shares = labelling_shares(swapped, truth)
    assert shares.shape == (1, 6)
    assert sorted(shares[0].tolist()) == pytest.approx([0, 0, 0, 0, 1 / 3, 2 / 3])


def test_datasets_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(1)
    truth, draws = torch.randn(4, 2, 3, generator=generator), torch.randn(4, 50, 2, 3, generator=generator)
    both = labelling_shares(draws, truth)
    assert torch.equal(both[2:3], labelling_shares(draws[2:3], truth[2:3]))


def test_wrong_shapes_and_many_components_are_refused() -> None:
    with pytest.raises(InputError, match="truth"):
        labelling_shares(torch.zeros(1, 5, 2, 3), torch.zeros(1, 3, 3))
    with pytest.raises(InputError, match="components"):
        labelling_shares(torch.zeros(1, 5, 6, 1), torch.zeros(1, 6, 1))
