"""Convergence diagnostics against ArviZ, and on chains whose answer is known."""

from __future__ import annotations

import arviz
import numpy as np
import pytest
import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.metrics import convergence
from posteria.metrics.convergence import Convergence, ess_bulk, ess_tail, r_hat

_B, _C, _S, _P = 3, 4, 200, 2


def chains(correlation: float, draws: int = _S, num_chains: int = _C, seed: int = 0) -> Tensor:
    """(B, C, S, P) stationary AR(1) chains of unit variance, double."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(_B, num_chains, draws, _P, generator=generator, dtype=torch.float64)
    steps = [noise[:, :, 0]]
    for t in range(1, draws):
        steps.append(correlation * steps[-1] + (1 - correlation**2) ** 0.5 * noise[:, :, t])
    return torch.stack(steps, 2)


def one_stuck() -> Tensor:
    draws = chains(0.3)
    draws[:, 0] = draws[:, 0, :1]
    return draws


def apart() -> Tensor:
    return chains(0.5) + torch.arange(float(_C)).view(_C, 1, 1)


CASES = {
    "independent": chains(0.0),
    "autocorrelated": chains(0.9),
    "odd number of draws": chains(0.5, 101),
    "antithetic": chains(-0.7),
    "one stuck chain": one_stuck(),
    "chains apart": apart(),
    "heavy tails": torch.tan(1.5 * chains(0.5).clamp(-1, 1)),
    "ties": chains(0.8).round(),
    "two values": chains(0.8).sign(),
    "four draws": chains(0.0, 4, 2),
    "five draws": chains(0.0, 5, 3),
    "nine draws": chains(0.5, 9, 3),
    "two chains": chains(0.2, 50, 2),
}


def arviz_value(draws: Tensor, which: str) -> np.ndarray:
    compute = {"r_hat": lambda v: arviz.rhat(v), "ess_bulk": lambda v: arviz.ess(v, method="bulk"),
               "ess_tail": lambda v: arviz.ess(v, method="tail")}[which]
    return np.array([[compute(draws[b, :, :, p].numpy()) for p in range(draws.shape[3])] for b in range(len(draws))])


@pytest.mark.parametrize("which", ["r_hat", "ess_bulk", "ess_tail"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_equal_to_arviz(case: str, which: str) -> None:
    ours = {"r_hat": r_hat, "ess_bulk": ess_bulk, "ess_tail": ess_tail}[which](CASES[case]).numpy()
    np.testing.assert_allclose(ours, arviz_value(CASES[case], which), rtol=1e-6)


def test_all_at_once_equals_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "_CHUNK_ENTRIES", 1)
    for draws in (chains(0.5), chains(0.5, 101)):
        together = Convergence.of(draws)
        for function, value in ((r_hat, together.r_hat), (ess_bulk, together.ess_bulk), (ess_tail, together.ess_tail)):
            torch.testing.assert_close(function(draws), value, rtol=0, atol=0)
            torch.testing.assert_close(function(draws[1:2]), value[1:2], rtol=0, atol=0)


def test_size_of_independent_and_correlated_chains() -> None:
    """An AR(1) chain has effective size N (1 - φ) / (1 + φ)."""
    for correlation in (0.0, 0.6):
        draws = chains(correlation, 5000)
        expected = 4 * 5000 * (1 - correlation) / (1 + correlation)
        np.testing.assert_allclose(ess_bulk(draws).mean(), expected, rtol=0.06)
        assert (r_hat(draws) < 1.01).all()


def test_equal_or_infinite_draws_have_not_converged() -> None:
    draws = chains(0.0, 400)
    draws[0, :, :, 0] = 1.5
    draws[1, 0, 3, 1] = torch.inf
    found = Convergence.of(draws)
    assert found.r_hat.isnan().tolist() == [[True, False], [False, True], [False, False]]
    assert found.converged(1.05).tolist() == [False, False, True]
    assert found.worst["r_hat"].isnan().tolist() == [True, True, False]


def test_chains_that_sit_still_apart_have_not_converged() -> None:
    draws = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 50, 1)
    assert float(r_hat(draws)) > 1e3
    assert not Convergence.of(draws).converged()


def test_inactive_parameters_do_not_count() -> None:
    draws = chains(0.0, 1000)
    draws[0, :, :, 1] = 0.0
    active = torch.ones(_B, _P, dtype=torch.bool)
    active[0, 1] = False
    found = Convergence.of(draws, active)
    assert found.converged().all()
    assert not Convergence.of(draws).converged()[0]
    assert len(found.to_frame(["a", "b"])) == _B * _P - 1
    assert found.to_frame(["a", "b"]).loc[(1, "b"), "r_hat"] == float(found.r_hat[1, 1])
    assert found.worst["ess_bulk"][0] == found.ess_bulk[0, 0]


def test_single_precision_is_close_and_a_subset_keeps_its_numbers() -> None:
    draws = chains(0.5)
    found = Convergence.of(draws.float(), divergences=torch.tensor([0, 3, 1]))
    np.testing.assert_allclose(found.ess_bulk, ess_bulk(draws), rtol=1e-3)
    some = found[torch.tensor([1])]
    assert (len(some), int(some.divergences), some.num_draws) == (1, 3, _C * _S)
    torch.testing.assert_close(some.r_hat, found.r_hat[1:2])


def test_limits_are_the_callers() -> None:
    found = Convergence.of(chains(0.0))
    assert found.converged(1.05, 100).all()
    assert not found.converged(1.05, 5000).any()
    assert not found.converged(1.0, 100).any()


@pytest.mark.parametrize(("draws", "message"), [
    (torch.zeros(2, 4, 3, 1), "draws: got 3 draws per chain; takes 4 draws or more"),
    (torch.zeros(2, 1, 10, 1), "draws: got 1 chain; takes 2 chains or more"),
    (torch.zeros(4, 10, 1), r"draws: got torch.float32 of shape \(4, 10, 1\)"),
    (torch.zeros(2, 4, 10, 1, dtype=torch.long), "draws: got torch.int64"),
    (torch.zeros(0, 4, 10, 1), "takes real numbers of shape"),
])
def test_too_little_is_refused(draws: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Convergence.of(draws)


def test_one_chain_has_sizes_but_no_r_hat() -> None:
    draws = chains(0.0, num_chains=1)
    np.testing.assert_allclose(ess_bulk(draws), arviz_value(draws, "ess_bulk"), rtol=1e-6)
    with pytest.raises(InputError, match="1 chain"):
        r_hat(draws)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"active: got shape \(2,\)"):
        Convergence.of(chains(0.0), active=torch.ones(2, dtype=torch.bool))
    with pytest.raises(InputError, match="divergences"):
        Convergence.of(chains(0.0), divergences=torch.zeros(7))
    with pytest.raises(InputError, match="names: got 1 names; takes 2 names"):
        Convergence.of(chains(0.0)).to_frame(["a"])
