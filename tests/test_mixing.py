"""Shares of a mixture, beside those of a posterior that is a mixture of the same parts."""

from __future__ import annotations

from collections.abc import Mapping

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


def test_shares_are_the_posterior_s_where_parts_are_apart() -> None:
    found = mixed([part(-8.0, 1.0), part(8.0, 0.5)], posterior_like((-8.0, 8.0), (1.0, 0.5)), DATASET)
    # The log densities that are compared differ by the shares, at every draw: there is no Monte Carlo error.
    torch.testing.assert_close(found.log_share.exp(), SHARES.expand(2, 2), rtol=0, atol=1e-4)


def test_shares_are_on_the_way_there_where_parts_overlap() -> None:
    found = mixed([part(0.0, 3.0), part(0.0, 0.5)], posterior_like((0.0, 0.0), (3.0, 0.5)), DATASET)
    assert ((found.log_share[:, 1].exp() > 0.5) & (found.log_share[:, 1].exp() < 0.7)).all()


def test_parts_that_are_alike_have_even_shares() -> None:
    found = mixed([part(1.0, 2.0)] * 3, posterior_like((0.0, 0.0), (3.0, 0.5)), DATASET)
    torch.testing.assert_close(found.log_share.exp(), torch.full((2, 3), 1 / 3))


def test_parts_that_are_nowhere_get_nothing() -> None:
    broken = part(torch.nan, 1.0)
    found = mixed([part(0.0, 1.0), broken], posterior_like((0.0, 0.0), (1.0, 1.0)), DATASET)
    torch.testing.assert_close(found.log_share.exp(), torch.tensor([[1.0, 0.0]]).expand(2, 2))
    lost = mixed([broken, broken], posterior_like((0.0, 0.0), (1.0, 1.0)), DATASET)
    torch.testing.assert_close(lost.log_share.exp(), torch.full((2, 2), 0.5))
