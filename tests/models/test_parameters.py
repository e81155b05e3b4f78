"""Layouts: bijections, priors of every support, masks, names, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import (
    Beta,
    Dirichlet,
    Distribution,
    Gamma,
    HalfCauchy,
    HalfNormal,
    LKJCholesky,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
    constraints,
)

from posteria.errors import InputError
from posteria.models import Layout, Parameter
from posteria.randomness import generator_for

ENTRYWISE: list[tuple[constraints.Constraint, Distribution]] = [
    (constraints.real, Normal(1.0, 2.0)),
    (constraints.positive, HalfNormal(0.5)),
    (constraints.positive, LogNormal(0.3, 0.7)),
    (constraints.positive, Gamma(2.0, 3.0)),
    (constraints.positive, HalfCauchy(1.0)),
    (constraints.unit_interval, Beta(2.0, 0.5)),
    (constraints.interval(-1.0, 3.0), Uniform(-1.0, 3.0)),
]


def _layout(*parameters: Parameter, features: int = 2) -> Layout:
    return Layout(parameters, {"groups": 2}, features)


@pytest.mark.parametrize(("support", "prior"), ENTRYWISE, ids=lambda value: type(value).__name__)
def test_entrywise_priors_integrate_to_one(support: constraints.Constraint, prior: Distribution) -> None:
    layout = _layout(Parameter("value", (), support, prior))
    location, scale = (float(m) for m in layout.prior_moments)
    grid = torch.linspace(location - 60 * scale, location + 60 * scale, 60_001, dtype=torch.float64)
    mass = torch.trapezoid(layout.log_prior(grid[:, None]).exp(), grid)
    assert abs(float(mass) - 1) < 1e-3


def test_half_normal_density_by_hand() -> None:
    layout = _layout(Parameter("scale", (), constraints.positive, HalfNormal(2.0)))
    theta = torch.tensor([[0.4]])
    value = math.exp(0.4)
    expected = math.log(2) - 0.5 * (value / 2) ** 2 - math.log(2 * math.sqrt(2 * math.pi)) + 0.4
    torch.testing.assert_close(layout.log_prior(theta), torch.tensor([expected]))


def test_simplex_prior_integrates_to_one() -> None:
    layout = _layout(Parameter("shares", (3,), constraints.simplex, Dirichlet(torch.tensor([1.0, 2.0, 3.0]))))
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = layout.log_prior(grid).exp().reshape(401, 401)
    assert layout.size == 2
    assert abs(float(torch.trapezoid(torch.trapezoid(density, axis), axis)) - 1) < 1e-3


def test_events_of_every_kind_round_trip() -> None:
    layout = _layout(
        Parameter("shares", ("groups", 3), constraints.simplex, Dirichlet(torch.ones(3))),
        Parameter("effects", (2,), prior=MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))),
        Parameter("correlation", (3, 3), constraints.corr_cholesky, LKJCholesky(3, 2.0)),
        Parameter("weights", ("features",)),
    )
    theta = layout.sample_prior((5, 4), generator_for(0)).double()
    values = layout.constrain(theta)
    assert layout.size == 4 + 2 + 3 + 2
    assert values["shares"].shape == (5, 4, 2, 3)
    assert values["correlation"].shape == (5, 4, 3, 3)
    torch.testing.assert_close(layout.unconstrain(values), theta, rtol=1e-5, atol=1e-5)
    expected = sum(
        b.parameter.prior.log_prob(values[b.name]).reshape(5, 4, -1).sum(-1) for b in layout.blocks
    ) + layout.log_abs_det_jacobian(theta)
    torch.testing.assert_close(layout.log_prior(theta), expected)


def test_moments_are_exact_for_priors_normal_in_theta() -> None:
    layout = _layout(Parameter("weights", ("features",), prior=Normal(1.0, 3.0)),
                     Parameter("scale", (), constraints.positive, LogNormal(-1.0, 0.5)))
    location, scale = layout.prior_moments
    assert layout.has_normal_prior
    torch.testing.assert_close(location, torch.tensor([1.0, 1.0, -1.0]))
    torch.testing.assert_close(scale, torch.tensor([3.0, 3.0, 0.5]))
    theta = torch.randn(7, 3)
    torch.testing.assert_close(layout.log_prior(theta), Normal(location, scale).log_prob(theta).sum(-1))
    assert not _layout(Parameter("scale", (), constraints.positive, HalfNormal(1.0))).has_normal_prior


def test_sampled_moments_of_a_half_normal() -> None:
    location, scale = _layout(Parameter("scale", (), constraints.positive, HalfNormal(1.0))).prior_moments
    quartiles = [math.log(math.sqrt(2) * torch.erfinv(torch.tensor(q)).item()) for q in (0.25, 0.5, 0.75)]
    assert abs(float(location) - quartiles[1]) < 0.05
    assert abs(float(scale) - (quartiles[2] - quartiles[0]) / 1.349) < 0.05


def test_masks_groups_and_names() -> None:
    layout = _layout(Parameter("weights", ("groups", "features")), Parameter("bias"),
                     Parameter("shares", ("features", 2), constraints.simplex, Dirichlet(torch.ones(2))), features=3)
    features = torch.tensor([[True, True, False], [True, False, True]])
    assert layout.scalar_names[:4] == ("weights[0,0]", "weights[0,1]", "weights[0,2]", "weights[1,0]")
    assert layout.scalar_names[6:9] == ("bias", "shares[0,0]", "shares[0,1]")
    assert layout.groups["features"].tolist() == [0, 1, 2, 0, 1, 2, -1, 0, 1, 2]
    assert layout.groups["groups"].tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1, -1]
    assert layout.active(features)[0].tolist() == [True, True, False] * 2 + [True] + [True, True, False]
    theta = torch.randn(1, 10)
    whole, part = layout.log_prior(theta), layout.log_prior(theta, layout.active(features))
    dropped = torch.distributions.Normal(0.0, 1.0).log_prob(theta[0, [2, 5]]).sum()
    share = layout["shares"].log_prior_terms(theta)[0, 2]
    torch.testing.assert_close(part[0], whole[0] - dropped - share)


@pytest.mark.parametrize(("support", "prior"), [
    *ENTRYWISE, (constraints.simplex, Dirichlet(torch.ones(3)))], ids=lambda value: type(value).__name__)
def test_priors_follow_theta_to_its_device(support: constraints.Constraint, prior: Distribution) -> None:
    layout = _layout(Parameter("value", tuple(prior.event_shape), support, prior))
    assert layout.log_prior(torch.zeros(4, layout.size, device="meta")).device.type == "meta"


def test_far_candidates_do_not_raise() -> None:
    layout = _layout(Parameter("scale", (), constraints.positive, LogNormal(0.0, 1.0)))
    assert layout.log_prior(torch.tensor([[-200.0], [200.0]])).shape == (2,)


def test_prior_draws_depend_on_the_generator_alone() -> None:
    layout = _layout(Parameter("weights", ("features",)), Parameter("scale", (), constraints.positive, HalfNormal(1.0)))
    state = torch.random.get_rng_state()
    one, same, other = (layout.sample_prior((3,), generator_for(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


BAD = {
    "takes a Python identifier": lambda: Parameter("my weights"),
    "every axis once": lambda: Parameter("w", ("features", "features")),
    "a prior for one entry": lambda: Parameter("w", (2,), prior=Normal(torch.zeros(2), 1.0)),
    "a prior on GreaterThan": lambda: Parameter("s", (), constraints.positive, Normal(0.0, 1.0)),
    "a prior on Real": lambda: Parameter("s", (), prior=HalfNormal(1.0)),
    "a prior on Interval": lambda: Parameter("s", (), constraints.interval(0.0, 2.0), Uniform(0.0, 1.0)),
    "a prior over 1-d events": lambda: Parameter("p", (3,), constraints.simplex),
    "1 axes or more": lambda: Parameter("p", (), constraints.simplex, Dirichlet(torch.ones(3))),
    "does not couple features": lambda: Parameter("p", ("features",), constraints.simplex, Dirichlet(torch.ones(3))),
    r"events of shape \(2,\)": lambda: _layout(Parameter("p", (2,), constraints.simplex, Dirichlet(torch.ones(3)))),
    "different names": lambda: _layout(Parameter("w"), Parameter("w")),
    "one of the axes": lambda: _layout(Parameter("w", ("cats",))),
    r"one of \['w'\]": lambda: _layout(Parameter("w"))["v"],
    r"1 \(2 features\)": lambda: _layout(Parameter("w")).constrain(torch.zeros(3, 2)),
    r"exactly \['w'\]": lambda: _layout(Parameter("w")).unconstrain({"v": torch.zeros(3)}),
    r"shape \(\.\.\., \(2,\)\)": lambda: _layout(Parameter("w", (2,))).unconstrain({"w": torch.zeros(4, 3)}),
}


@pytest.mark.parametrize("message", BAD)
def test_errors_name_the_argument(message: str) -> None:
    with pytest.raises(InputError, match=message):
        BAD[message]()
