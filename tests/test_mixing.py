"""Shares of a mixture: those of a posterior that is a mixture of the same parts, however much these overlap."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from posteria.densities.gaussian import GaussianTheta
from posteria.mixing import mixed
from posteria.models import CustomModel, Parameter
from posteria.types import Dataset

SHARES = torch.tensor([0.3, 0.7])


def part(mean: float, sd: float) -> GaussianTheta:
    return GaussianTheta(torch.full((2, 1), mean), torch.full((2, 1), sd), torch.ones(2, 1, dtype=torch.bool))


def posterior_like(centres: tuple[float, float], sds: tuple[float, float]) -> CustomModel:
    """A model whose posterior is a mixture of two normals, whatever the data."""
    normals, prior = Normal(torch.tensor(centres), torch.tensor(sds)), Normal(0.0, 1.0)

    def log_likelihood(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        density = (SHARES.log() + normals.log_prob(params["a"][..., None])).logsumexp(-1)
        return (density - prior.log_prob(params["a"])).expand(len(x)) / len(x)

    return CustomModel([Parameter("a", prior=prior)], log_likelihood=log_likelihood)


DATASET = Dataset.of(torch.zeros(2, 4, 1), torch.zeros(2, 4))


@pytest.mark.parametrize(("centres", "sds"), [((-8.0, 8.0), (1.0, 0.5)), ((-2.0, 2.0), (1.5, 1.0)),
                                              ((0.0, 0.0), (3.0, 0.5))])
def test_shares_are_the_posterior_s(centres: tuple[float, float], sds: tuple[float, float]) -> None:
    parts = [part(mean, sd) for mean, sd in zip(centres, sds, strict=True)]
    found = mixed(parts, posterior_like(centres, sds), DATASET)
    # By 64 draws of each: the log densities that are compared are the same up to rounding, so that there is no error.
    torch.testing.assert_close(found.log_share.exp(), SHARES.expand(2, 2), rtol=0, atol=0.01)


def test_parts_that_are_nowhere_get_nothing() -> None:
    broken = part(torch.nan, 1.0)
    found = mixed([part(0.0, 1.0), broken], posterior_like((0.0, 0.0), (1.0, 1.0)), DATASET)
    torch.testing.assert_close(found.log_share.exp(), torch.tensor([[1.0, 0.0]]).expand(2, 2))
    lost = mixed([broken, broken], posterior_like((0.0, 0.0), (1.0, 1.0)), DATASET)
    torch.testing.assert_close(lost.log_share.exp(), torch.full((2, 2), 0.5))
