"""Maps of a standard normal to a prior, against SciPy's quantiles and densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, distributions

from posteria.models.quantiles import QuantileMap

U = torch.linspace(-6.0, 6.0, 601, dtype=torch.double)
FAR = torch.tensor([-20.0, -12.5, 12.0, 13.0], dtype=torch.double)
# prior of a real parameter; SciPy's; location and scale that are handed over
PRIORS = {
    "laplace": (distributions.Laplace(1.0, 2.0), stats.laplace(1, 2), 1.0, 2.0),
    "student_t": (distributions.StudentT(4.0, -1.0, 0.5), stats.t(4, -1, 0.5), -1.0, 0.4),
    "cauchy": (distributions.Cauchy(0.0, 1.0), stats.cauchy(), 0.0, 1.5),
    "gumbel": (distributions.Gumbel(0.0, 1.0), stats.gumbel_r(), 0.4, 1.0),
}


def made(name: str) -> QuantileMap:
    prior, _, location, scale = PRIORS[name]
    found = QuantileMap.of(prior.log_prob, location, scale)
    assert found is not None
    return found


@pytest.mark.parametrize("name", PRIORS)
def test_values_are_the_priors_quantiles(name: str) -> None:
    reference, u = PRIORS[name][1], U.numpy()
    known = np.where(u < 0, reference.ppf(stats.norm.cdf(u)), reference.isf(stats.norm.sf(u)))
    away = np.abs(made(name).value(U).numpy() - known)
    assert (away < 1e-5 * (1 + np.abs(known))).all()


@pytest.mark.parametrize("name", PRIORS)
def test_slopes_take_the_prior_to_a_standard_normal(name: str) -> None:
    found, prior = made(name), PRIORS[name][0]
    theta, slope, bend = found.slopes(U)
    density = prior.log_prob(theta) + found.log_slope(U)
    torch.testing.assert_close(density, distributions.Normal(0.0, 1.0).log_prob(U), rtol=0, atol=1e-5)
    point = U.clone().requires_grad_()
    (first,) = torch.autograd.grad(found.value(point).sum(), point, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), point)
    for got, exact in ((theta, found.value(U)), (slope, first), (bend, second), (found.log_slope(U).exp(), first)):
        torch.testing.assert_close(got, exact.detach())


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse(name: str, dtype: torch.dtype) -> None:
    found, u = made(name), torch.cat([U, FAR] if dtype == torch.float64 else [U]).to(dtype)
    theta = found.value(u).requires_grad_()
    back = found.inverse(theta)
    torch.testing.assert_close(back, u, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-9)
    (slope,) = torch.autograd.grad(back.sum(), theta)
    torch.testing.assert_close(slope.log(), -found.log_slope(u), rtol=0, atol=1e-4)


def test_priors_that_no_such_map_fits_have_none() -> None:
    def apart(distance: float) -> distributions.Distribution:
        two = distributions.Normal(torch.tensor([-distance, distance]), 1.0)
        return distributions.MixtureSameFamily(distributions.Categorical(torch.ones(2)), two)

    def nowhere(theta: Tensor) -> Tensor:
        return torch.full_like(theta, torch.nan)

    assert QuantileMap.of(apart(30.0).log_prob, 0.0, 30.0) is None
    assert QuantileMap.of(apart(4.0).log_prob, 0.0, 4.0) is None
    assert QuantileMap.of(nowhere, 0.0, 1.0) is None
