import pytest
import torch

from posteria.densities import DiagonalGaussian, Symmetrised, permutations_of_axis
from posteria.errors import InputError
from posteria.randomness import generator_for
from posteria.testing.densities import check_density, example_context, randomise
from posteria.types import Context, ContextSpec

# Two blocks along an axis of length 3, the first with 2 entries per position, and a block without the axis.
ROLES = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2, 2, 2])
GROUP = torch.tensor([0, 0, 1, 1, 2, 2, -1, 0, 1, 2])
SPEC = ContextSpec(4, 6, None, located=True)


def test_permutations_move_whole_positions_in_every_block():
    permutations = permutations_of_axis(ROLES, GROUP)
    assert permutations.shape == (6, 10)
    assert permutations[0].tolist() == list(range(10))
    assert [2, 3, 0, 1, 4, 5, 6, 8, 7, 9] in permutations.tolist()
    assert len({tuple(row) for row in permutations.tolist()}) == 6


def test_axis_that_is_not_leading_permutes_across_rows():
    group = torch.tensor([0, 1, 0, 1])
    assert permutations_of_axis(torch.zeros(4, dtype=torch.long), group).tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]


def test_no_exchangeable_axis_gives_the_identity():
    roles = torch.zeros(3, dtype=torch.long)
    assert permutations_of_axis(roles, torch.full((3,), -1)).tolist() == [[0, 1, 2]]


def test_symmetrised_keeps_the_contract_for_three_positions():
    base = randomise(DiagonalGaussian(SPEC), scale=0.1)
    check_density(_symmetrised(base), example_context(SPEC, [10, 10]))


def test_log_prob_does_not_change_under_the_group_and_draws_have_every_labelling():
    spec = ContextSpec(4, 6, None, located=True)
    context = Context(torch.zeros(1, 4), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, 6),
                      torch.tensor([[-3.0, 3.0]]), torch.full((1, 2), 0.1))
    distribution = Symmetrised(DiagonalGaussian(spec), lambda _: torch.tensor([[0, 1], [1, 0]]))(context)
    theta = distribution.rsample(4000, generator_for(0))
    torch.testing.assert_close(distribution.log_prob(theta), distribution.log_prob(theta.flip(-1)))
    share = (theta[0, :, 0] > 0).double().mean()
    assert abs(share - 0.5) < 5 * 0.5 / 4000**0.5
    assert (theta.prod(-1) < 0).all()


@pytest.mark.parametrize(("group", "message"), [
    (torch.tensor([0, 0, 1, -1]), "as many at every position"),
    (torch.arange(6), "length at most 5"),
])
def test_groups_that_cannot_be_permuted_are_refused(group, message):
    with pytest.raises(InputError, match=message):
        permutations_of_axis(torch.zeros(len(group), dtype=torch.long), group)


@pytest.mark.parametrize("permutations", [torch.tensor([[0, 1]]), torch.tensor([[0, 0, 1]]), torch.empty(0, 3).long()])
def test_permutations_that_do_not_fit_are_refused(permutations):
    density = Symmetrised(DiagonalGaussian(SPEC), lambda _: permutations)
    with pytest.raises(InputError, match=r"^permutations_of: got"):
        density(example_context(SPEC, [3]))


def _symmetrised(base):
    return Symmetrised(base, lambda size: permutations_of_axis(ROLES, GROUP))
