import pytest
import torch
from torch.distributions import MultivariateNormal

from posteria.densities import LowRankGaussian
from posteria.densities.low_rank import LowRankTheta
from posteria.errors import InputError
from posteria.randomness import generator_for
from posteria.testing.densities import example_context, randomise
from posteria.types import Context, ContextSpec

SPEC = ContextSpec(8, 6, None, located=True)


@pytest.mark.parametrize("factor", [False, True])
def test_log_prob_is_that_of_the_dense_normal(factor):
    context = example_context(SPEC, [7, 7], factor=factor)
    distribution = randomise(LowRankGaussian(SPEC, rank=3), scale=0.5)(context)
    theta = distribution.rsample(20, generator_for(0))
    dense = MultivariateNormal(distribution.mean[:, None], distribution.covariance[:, None])
    torch.testing.assert_close(distribution.log_prob(theta), dense.log_prob(theta), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(distribution.variance, distribution.covariance.diagonal(dim1=-2, dim2=-1))


def test_covariance_of_draws_is_the_covariance():
    distribution = randomise(LowRankGaussian(SPEC, rank=2), scale=0.5)(example_context(SPEC, [4]))
    draws = distribution.rsample(20_000, generator_for(0))[0].detach()
    expected = distribution.covariance[0].detach()
    sd = expected.diagonal().sqrt()
    error = (draws.T.cov() - expected).abs() / (sd[:, None] * sd)
    assert error.max() < 5 * 2**0.5 / 20_000**0.5


def test_huge_and_collinear_loadings_keep_their_digits():
    """3,500 equal tokens make U of rank one with enormous columns; Woodbury's difference would be noise."""
    spec = ContextSpec(8, 6, None, located=True)
    density = randomise(LowRankGaussian(spec), scale=1.0)
    context = example_context(spec, [3500])
    assert context.tokens is not None
    same = Context(context.summary, context.active, 50 * context.tokens[:, :1].expand_as(context.tokens),
                   torch.zeros(1, 3500), torch.ones(1, 3500))
    distribution = density(same)
    assert isinstance(distribution, LowRankTheta)
    theta = distribution.rsample(3, generator_for(0))
    loadings = distribution.loadings.double()[0]
    unit = (theta - distribution.mean[:, None]).double()[0] / distribution.frame.scale.double()
    inner = torch.eye(8, dtype=torch.double) + loadings.T @ loadings
    projected = unit @ loadings
    square = (unit**2).sum(-1) - (projected @ torch.linalg.inv(inner) * projected).sum(-1)
    expected = -0.5 * (square + torch.logdet(inner) + 3500 * torch.log(torch.tensor(2 * torch.pi)))
    got = distribution.log_prob(theta) + distribution.frame.scale.log().sum()
    torch.testing.assert_close(got[0].double(), expected, atol=0.05, rtol=1e-5)


def test_rank_must_be_positive():
    with pytest.raises(InputError, match=r"^rank: got 0"):
        LowRankGaussian(SPEC, rank=0)
