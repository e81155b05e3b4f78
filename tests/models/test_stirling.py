"""Differences of gamma functions: against the plain ones in high precision, and where those have no digits left."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, getcontext

import pytest
import torch
from torch import Tensor

from posteria.models.families import build_head
from posteria.models.stirling import (
    digamma_gain,
    gamma_constant,
    gamma_information,
    log_minus_digamma,
    log_rising,
    trigamma_gain,
)

STARTS, COUNTS = (0.01, 2.5, 29.9, 30.1, 1e3, 1e8), (0, 1, 7, 200)
Term = Callable[[Decimal], Decimal]
GAINS: list[tuple[Callable[[Tensor, Tensor], Tensor], Term]] = [
    (log_rising, lambda a: a.ln()), (digamma_gain, lambda a: 1 / a), (trigamma_gain, lambda a: -1 / a**2)]


@pytest.mark.parametrize(("function", "term"), GAINS, ids=["log_rising", "digamma", "trigamma"])
@pytest.mark.parametrize("start", STARTS)
def test_gains_are_sums_over_whole_steps(function: Callable[[Tensor, Tensor], Tensor], term: Term,
                                         start: float) -> None:
    getcontext().prec = 40
    for count in COUNTS:
        expected = float(sum((term(Decimal(start) + j) for j in range(count)), Decimal(0)))
        actual = function(torch.tensor(start, dtype=torch.float64), torch.tensor(float(count), dtype=torch.float64))
        assert float(actual) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("function", [digamma_gain, trigamma_gain])
def test_in_single_precision_they_are_right_up_to_its_rounding(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    start = torch.logspace(-3, 4, 200)[:, None]
    count = torch.tensor([0.0, 1.0, 2.0, 7.0, 200.0])
    single, double = function(start, count), function(start.double(), count.double())
    assert single.dtype == torch.float32
    assert ((single - double).abs() <= 16 * torch.finfo(torch.float32).eps * double.abs()).all()


@pytest.mark.parametrize("function", [log_rising, digamma_gain, trigamma_gain])
def test_many_at_once_are_each_by_itself(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    start = torch.linspace(0.1, 40.0, 700, dtype=torch.float64)[:, None]
    count = torch.arange(150.0, dtype=torch.float64)
    some = torch.tensor([0, 311, 699])
    torch.testing.assert_close(function(start, count)[some], function(start[some], count), rtol=0, atol=0)


@pytest.mark.parametrize("start", [1e20, 1e30, 1e37])
def test_rising_from_huge_starts_is_a_power(start: float) -> None:
    count = torch.tensor([0.0, 1.0, 5000.0])
    torch.testing.assert_close(log_rising(torch.tensor(start), count), count * math.log(start))


def test_functions_of_a_shape_are_continuous_and_have_their_limits() -> None:
    shape = torch.tensor([30.0, 30.0 + 1e-9], dtype=torch.float64)
    for function in (log_minus_digamma, gamma_constant, gamma_information):
        below, above = function(shape).tolist()
        assert below == pytest.approx(above, rel=1e-8)
    large = torch.tensor(1e12, dtype=torch.float64)
    assert float(gamma_information(large)) == pytest.approx(0.5)
    assert float(large * log_minus_digamma(large)) == pytest.approx(0.5)
    assert float(gamma_constant(large)) == pytest.approx(0.5 * math.log(1e12 / (2 * math.pi)))


@pytest.mark.parametrize("family", ["negative_binomial", "beta_binomial"])
@pytest.mark.parametrize("log_concentration", [12.0, 25.0, 60.0])
def test_large_concentrations_reach_the_limit(family: str, log_concentration: float) -> None:
    """Poisson and binomial, to rounding: there is nothing to gain for a chain that goes there."""
    head, y = build_head(family), torch.arange(9.0, dtype=torch.float64)[None, None]
    outputs = torch.full((1, 1, 9, 1), 0.4, dtype=torch.float64)
    whole = torch.tensor([[log_concentration]], dtype=torch.float64).exp()
    extra = {"concentration": whole, "trials": torch.full((1, 1, 9), 8.0, dtype=torch.float64)}
    limit = (torch.distributions.Poisson(outputs[..., 0].exp()) if family == "negative_binomial"
             else torch.distributions.Binomial(8, logits=outputs[..., 0]))
    torch.testing.assert_close(head.log_prob(outputs, y, extra), limit.log_prob(y), rtol=1e-3, atol=1e-3)
    own = head.own_score(outputs, y, torch.ones(1, 9, dtype=torch.bool), extra)
    assert float(own.abs()) < 100 / float(whole) + 1e-10


def test_densities_keep_their_digits_in_single_precision() -> None:
    y = torch.tensor([[[3.0, 4.0, 5.0]]])
    for family, name in (("negative_binomial", "concentration"), ("beta_binomial", "concentration"),
                         ("gamma", "shape")):
        head, outputs = build_head(family), torch.full((1, 1, 3, 1), 1.4)
        extra = {name: torch.tensor([[3e4]]), "trials": torch.full((1, 1, 3), 8.0)}
        wide = {key: value.double() for key, value in extra.items()}
        exact = head.log_prob(outputs.double(), y.double(), wide)
        torch.testing.assert_close(head.log_prob(outputs, y, extra).double(), exact, rtol=2e-5, atol=1e-3)
