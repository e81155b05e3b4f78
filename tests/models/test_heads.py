"""Heads: averages over draws, against means of the values per draw."""

import pytest
import torch

from posteria.models.heads import CategoricalHead, Head, InferredNoiseHead
from posteria.models.heads_counts import PoissonHead
from posteria.models.links import bounded_log, bounded_log_slope
from posteria.randomness import generator_for


@pytest.mark.parametrize("head", [
    CategoricalHead(3, temperature=0.5), CategoricalHead(4, temperature=1.0, reference=True),
    CategoricalHead(2), CategoricalHead(2, temperature=0.5, reference=True), PoissonHead(), InferredNoiseHead()],
    ids=["classes", "reference", "binary", "logistic", "counts", "inferred_noise"])
def test_averages_are_means_over_draws(head: Head) -> None:
    generator = generator_for(0)
    outputs = torch.randn(2, 50, 6, head.num_outputs, generator=generator, dtype=torch.float64)
    y = torch.randint(max(2, head.num_classes), (2, 1, 6), generator=generator).double()
    extra = {p.name: torch.full((2, 50), 0.7, dtype=torch.float64) for p in head.parameters}
    score, information = head.averages(outputs, y, extra)
    root = head.root(outputs, extra)
    torch.testing.assert_close(score, head.score(outputs, y, extra).mean(1, keepdim=True))
    torch.testing.assert_close(information, (root @ root.mT).mean(1, keepdim=True))


def test_bounds_do_not_depend_on_the_company() -> None:
    outputs = torch.tensor([-30.0, -15.0, -0.5, 0.0, 7.0, 15.0, 16.0], dtype=torch.float64)
    alone = [torch.stack([function(one) for one in outputs]) for function in (bounded_log, bounded_log_slope)]
    torch.testing.assert_close(alone[0], bounded_log(outputs))
    torch.testing.assert_close(alone[1], bounded_log_slope(outputs))
    assert bounded_log(outputs[:0]).shape == (0,)
    assert bounded_log(torch.tensor([torch.nan, 1.0])).isnan().tolist() == [True, False]
