"""Whether a dataset is like those of training: p-values, named traits, padding, saving."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import LinearRegression
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.trust import Familiarity, diagnose
from posteria.trust.familiarity import traits_of
from posteria.types import Dataset
from tests.problems import simulated


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    torch.manual_seed(0)
    made = Estimator(LinearRegression(), "iterative", "full", EstimatorInfo((1, 3), (20, 60)))
    made.familiarise(SimulatedTask(made.model, rows=(20, 60), columns=(1, 3)), num_datasets=600)
    return made


def test_familiar_datasets_have_uniform_p_values(estimator: Estimator) -> None:
    task = SimulatedTask(estimator.model, rows=(20, 60), columns=(1, 3))
    parts = [diagnose(estimator.posterior(task.draw(10, generator_for(77, i))[0]), 100) for i in range(20)]
    p = torch.cat([part.ood_summary for part in parts])
    assert abs(float(p.mean()) - 0.5) < 4 * (1 / 12 / 200) ** 0.5 + 0.05
    assert ((p < 0.1).double().mean() - 0.1).abs() < 0.09


@pytest.mark.parametrize(("change", "trait"), [
    (lambda d: replace(d, x=20 * d.x), "x scale"), (lambda d: replace(d, y=30 * d.y), "y scale"),
    (lambda d: replace(d, x=d.x + 4.0), "x location"),
    (lambda d: replace(d, x=d.x[..., :1].expand_as(d.x).clone()), "x correlation"),
])
def test_strange_datasets_are_seen(estimator: Estimator, change: Any, trait: str) -> None:
    dataset = simulated(estimator.model, 3, rows=40, batch=5)
    found = diagnose(estimator.posterior(change(dataset)), 100)
    assert (found.ood_traits[trait] < 0.02).all()
    assert any(trait in note for note in found.notes)


@pytest.mark.parametrize("summaries", [torch.zeros(128, 3), torch.full((128, 3), torch.nan),
                                       torch.randn(128, 1, generator=torch.Generator().manual_seed(0)) * 1e8
                                       * torch.ones(3)], ids=["constant", "not finite", "one direction"])
def test_familiarity_of_degenerate_summaries_is_learned_and_objects_to_others(summaries: Tensor) -> None:
    known = Familiarity.of(summaries, torch.zeros(128, 9))
    assert known.whitening.isfinite().all()
    if summaries.isfinite().all():
        assert (known.p_value(summaries[64:]) > 1 / 65).float().mean() > 0.95
        assert (known.p_value(torch.tensor([[1e12, -1e12, 5.0]])) < 0.05).all()


def test_familiarity_is_saved_and_padding_changes_nothing(estimator: Estimator, tmp_path: Any) -> None:
    estimator.save(tmp_path)
    again = Estimator.load(tmp_path)
    dataset = simulated(estimator.model, 2, rows=40, batch=3)
    first, second = diagnose(estimator.posterior(dataset), 100), diagnose(again.posterior(dataset), 100)
    torch.testing.assert_close(first.ood_summary, second.ood_summary)
    padded = diagnose(again.posterior(dataset.padded(55, 3)), 100)
    for name, values in first.ood_traits.items():
        torch.testing.assert_close(padded.ood_traits[name], values)
    assert Familiarity.from_tensors({}) is None
    with pytest.raises(InputError, match="num_datasets: got 10; takes 64 or more"):
        again.familiarise(SimulatedTask(again.model), num_datasets=10)


def test_rounding_errors_are_no_trait() -> None:
    x = torch.randn(3, 20, 2, generator=generator_for(0))
    centred = Dataset.of(x - x.mean(1, keepdim=True))
    assert torch.equal(traits_of(centred), traits_of(replace(centred, x=centred.x + 1e-7)))
