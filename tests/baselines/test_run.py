"""The driver: only datasets that have not converged run again, and results say which."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from posteria.baselines import Budget, Info, run
from posteria.errors import InputError
from posteria.metrics.convergence import r_hat

ACTIVE = torch.ones(3, 2, dtype=torch.bool)


@dataclass(frozen=True)
class _State:
    z: Tensor
    iteration: int = 0


class _Scripted:
    """Independent draws around a shift per (dataset, chain); the shift goes when the warm-up was long enough."""

    def __init__(self, index: Tensor, num_warmup: int, needed: Tensor):
        self.index, self.num_warmup, self.needed = index, num_warmup, needed[index]

    def init(self, z: Tensor, generator: torch.Generator) -> _State:
        self.began = z
        return _State(z)

    def update(self, state: _State, generator: torch.Generator) -> tuple[_State, Info]:
        stuck = (self.num_warmup < self.needed)[:, None, None] * torch.arange(state.z.shape[1])[:, None]
        z = 3.0 * stuck + torch.randn(state.z.shape, generator=generator, dtype=torch.float64)
        warming = state.iteration < self.num_warmup
        divergent = torch.full(z.shape[:2], not warming and len(self.index) == 3)
        return _State(z, state.iteration + 1), Info(torch.full(z.shape[:2], 0.5), divergent, 1.0 + self.index)


def _run(needed: list[int], rounds: int) -> tuple[list[_Scripted], dict[str, object]]:
    made: list[_Scripted] = []

    def rebuild(index: Tensor, longer: int) -> _Scripted:
        made.append(_Scripted(index, 10 * longer, torch.tensor(needed)))
        return made[-1]

    z = torch.zeros(3, 4, 2, dtype=torch.float64)
    draws = run(rebuild, z, ACTIVE, torch.Generator().manual_seed(0), Budget(500, thin=2, rounds=rounds))
    return made, vars(draws)


def test_only_datasets_that_have_not_converged_run_again() -> None:
    made, draws = _run([0, 40, 20], rounds=4)
    assert [sampler.index.tolist() for sampler in made] == [[0, 1, 2], [1, 2], [1]]
    assert [sampler.num_warmup for sampler in made] == [10, 20, 40]
    assert draws["rounds"].tolist() == [1, 3, 2]
    assert draws["converged"].all()
    assert draws["step_size"].tolist() == [1.0, 2.0, 3.0]
    assert draws["divergences"].tolist() == [4 * 1000, 0, 0]  # of the draws that are kept
    assert draws["accept"].tolist() == [0.5] * 3


def test_they_go_on_from_where_their_chains_are() -> None:
    made, _ = _run([0, 20, 0], rounds=2)
    assert (made[1].began.mean(-1)[0].diff() > 0).all()  # the shifts of the first round, chain by chain


def test_blocks_run_one_after_the_other_and_come_back_as_one() -> None:
    made: list[_Scripted] = []

    def rebuild(index: Tensor, longer: int) -> _Scripted:
        made.append(_Scripted(index, 10 * longer, torch.tensor([0, 0, 20])))
        return made[-1]

    z = torch.zeros(3, 4, 2, dtype=torch.float64)
    draws = run(rebuild, z, ACTIVE, torch.Generator().manual_seed(0), Budget(500, rounds=3), block=2)
    assert [sampler.index.tolist() for sampler in made] == [[0, 1], [2], [2]]
    assert draws.z.shape == (3, 4, 500, 2)
    assert draws.rounds.tolist() == [1, 1, 2]
    assert draws.step_size.tolist() == [1.0, 2.0, 3.0]
    assert draws.convergence is not None
    torch.testing.assert_close(draws.convergence.r_hat, r_hat(draws.z))


def test_rounds_end_and_say_what_has_not_converged() -> None:
    made, draws = _run([0, 1000, 0], rounds=3)
    assert len(made) == 3
    assert draws["converged"].tolist() == [True, False, True]
    assert float(draws["convergence"].worst["r_hat"][1]) > 1.5


def test_parameters_that_are_padding_do_not_count() -> None:
    z = torch.zeros(1, 4, 2, dtype=torch.float64)
    active = torch.tensor([[True, False]])

    class _Padded(_Scripted):
        def update(self, state: _State, generator: torch.Generator) -> tuple[_State, Info]:
            state, info = super().update(state, generator)
            return _State(state.z * active[0], state.iteration), info

    draws = run(lambda index, longer: _Padded(index, 1, torch.zeros(1)), z, active,
                torch.Generator().manual_seed(0), Budget(500))
    assert draws.converged.all()


@pytest.mark.parametrize(("settings", "argument"), [
    ({"num_samples": 0}, "num_samples"), ({"num_samples": -5}, "num_samples"), ({"thin": 0}, "thin"),
    ({"rounds": 0}, "rounds"), ({"max_r_hat": 1.0}, "max_r_hat"), ({"num_samples": 2.5}, "num_samples"),
])
def test_budgets_are_checked(settings: dict[str, int], argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        Budget(**settings)
