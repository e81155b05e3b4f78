import pytest
import torch

from posteria.densities import AffineFlow, SplineFlow
from posteria.densities.coupling import halves
from posteria.errors import InputError
from posteria.randomness import generator_for
from posteria.testing.densities import check_log_determinant, example_context, randomise
from posteria.types import Context, ContextSpec

FLOWS = [AffineFlow, SplineFlow]
FIXED = ContextSpec(8, None, 5)
FREE = ContextSpec(8, 6, None, located=True)


@pytest.mark.parametrize("spec", [FIXED, FREE], ids=["fixed", "free"])
@pytest.mark.parametrize("flow", FLOWS)
def test_log_determinant_of_blocks_and_frame_matches_autograd(flow, spec):
    context = example_context(spec, [5], factor=spec.located)
    distribution = randomise(flow(spec))(context)

    def to_theta(eps):
        unit, total = eps[None, None], distribution.frame.log_volume
        for block in distribution.blocks:
            unit, log_det = block.forward(unit)
            total = total + log_det[0]
        return distribution.frame.to_theta(unit)[0, 0], total[0]

    check_log_determinant(to_theta, torch.linspace(-1.5, 2.0, 5))


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("spec_of", [lambda p: ContextSpec(8, None, p), lambda p: FREE], ids=["fixed", "free"])
@pytest.mark.parametrize("flow", FLOWS)
def test_blocks_invert(flow, spec_of, size):
    spec = spec_of(size)
    distribution = randomise(flow(spec))(example_context(spec, [size]))
    eps = torch.randn(1, 50, size, generator=generator_for(0))
    with torch.no_grad():
        unit = eps
        for block in distribution.blocks:
            unit = block.forward(unit)[0]
        moved = (unit - eps).abs().amax((0, 1))
        for block in reversed(distribution.blocks):
            unit = block.inverse(unit)[0]
    assert (moved > 1e-2).all()
    assert (unit - eps).abs().max() < 1e-3


@pytest.mark.parametrize("flow", FLOWS)
def test_flow_starts_as_the_gaussian_of_its_context(flow):
    context = example_context(FREE, [4])
    theta = torch.randn(1, 6, 4, generator=generator_for(0))
    assert context.location is not None
    assert context.scale is not None
    expected = torch.distributions.Normal(context.location, context.scale).log_prob(theta).sum(-1)
    torch.testing.assert_close(flow(FREE)(context).log_prob(theta), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 101])
def test_halves_part_every_pair_of_active_parameters(size):
    active = torch.zeros(1, 2 * size, dtype=torch.bool)
    active[0, torch.randperm(2 * size, generator=generator_for(0))[:size]] = True
    levels = torch.stack([halves(active, level)[0] for level in range(8)])
    assert not (levels & ~active).any()
    assert ((levels.sum(-1) > 0) & (levels.sum(-1) < size)).all()
    chosen = levels[:, active[0]]
    apart = (chosen[:, :, None] != chosen[:, None, :]).any(0)
    assert (apart | torch.eye(size, dtype=torch.bool)).all()


def test_spline_flow_learns_two_modes_that_depend_on_the_context():
    """theta = ±c + 0.3 noise with c read off the summary: no Gaussian comes close."""
    generator = generator_for(0)
    flow = SplineFlow(ContextSpec(1, None, 1), transforms=4, hidden=(32,))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    losses = []
    for _ in range(120):
        centre = 1 + torch.rand(128, 1, generator=generator)
        sign = torch.randint(2, (128, 1), generator=generator) * 2 - 1
        theta = sign * centre + 0.3 * torch.randn(128, 1, generator=generator)
        loss = -flow(Context(centre, torch.ones(128, 1, dtype=torch.bool))).log_prob(theta[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    entropy = 0.5 * torch.log(torch.tensor(2 * torch.pi * torch.e * 0.3**2)) + torch.log(torch.tensor(2.0))
    assert sum(losses[-20:]) / 20 < entropy + 0.1


@pytest.mark.parametrize(("flow", "options", "name"), [
    (AffineFlow, {"transforms": 1}, "transforms"),
    (AffineFlow, {"hidden": []}, "hidden"),
    (SplineFlow, {"bins": 1}, "bins"),
    (SplineFlow, {"bound": 0.0}, "bound"),
])
def test_bad_options_are_named(flow, options, name):
    with pytest.raises(InputError, match=rf"^{name}: got"):
        flow(FIXED, **options)


def test_context_of_another_size_is_refused():
    with pytest.raises(InputError, match="context: got 4 parameters"):
        AffineFlow(FIXED)(example_context(ContextSpec(8, None, 4), [4]))


def test_theta_of_another_shape_is_refused():
    with pytest.raises(InputError, match="theta: got shape"):
        AffineFlow(FIXED)(example_context(FIXED, [5])).log_prob(torch.zeros(1, 2, 4))


def test_spec_without_tokens_needs_a_number_of_parameters():
    with pytest.raises(InputError, match="number of parameters"):
        AffineFlow(ContextSpec(8, None, None))
