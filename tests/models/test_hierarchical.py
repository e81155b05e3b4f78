"""Hierarchical models: the line and its Jacobian written out, eight schools, groups that have no rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import HalfNormal, Normal

from posteria.errors import DataError, InputError
from posteria.models import Hierarchical, build_model
from posteria.randomness import generator_for
from posteria.testing.models import check_normal_given_hyperparameters
from posteria.types import Dataset
from tests.problems import simulated

# Rubin (1981): effects and standard errors of eight coaching programmes.
EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def eight_schools() -> tuple[Hierarchical, Dataset]:
    """Rubin's data; the features' place is masked."""
    model = Hierarchical(noise="column", groups=8, priors={"intercept": Normal(0.0, 5.0),
                                                           "group_scale": HalfNormal(5.0)})
    x = torch.stack([torch.arange(8.0), torch.tensor(ERRORS), torch.zeros(8)], -1)
    return model, Dataset.of(x, torch.tensor(EFFECTS), features=torch.tensor([True, True, False]))


def test_the_line_is_written_out() -> None:
    model = Hierarchical("poisson", groups=3, varying_slopes=True)
    dataset = simulated(model, 3, rows=20, batch=2)
    theta = model.sample_prior(dataset, 4, generator_for(0))
    values, expected = model.layout(3).constrain(theta), torch.zeros(2, 4, 20)
    for b, s, n in np.ndindex(2, 4, 20):
        group, features = int(dataset.x[b, n, 0]), dataset.x[b, n, 1:]
        slopes = values["weights"][b, s] + values["slope_scale"][b, s] * values["slope_offsets"][b, s, group]
        own = values["group_scale"][b, s] * values["group_offsets"][b, s, group]
        expected[b, s, n] = values["intercept"][b, s] + own + features @ slopes
    torch.testing.assert_close(model.linearize(theta, dataset).outputs[..., 0], expected, rtol=1e-4, atol=1e-4)


def test_a_jacobian_is_the_derivative_of_the_outputs() -> None:
    model = Hierarchical(groups=3, varying_slopes=True, noise=0.25)
    dataset = simulated(model, 3, rows=6, batch=1)
    wide = Dataset(dataset.x.double(), None, dataset.observed, dataset.features)
    theta = model.sample_prior(dataset, 1, generator_for(0)).double()

    def outputs(point: Tensor) -> Tensor:
        return model.linearize(point, wide).outputs[0, 0, :, 0]

    expected = torch.autograd.functional.jacobian(outputs, theta)[:, 0, 0]  # type: ignore[index]
    root = torch.tensor([2.0, -1.0], dtype=torch.float64).expand(1, 1, 6, 1, 2)
    line = model.linearize(theta, wide)
    rows = line.jacobian(root)[0, 0].unflatten(0, (6, 2))
    torch.testing.assert_close(rows, expected[:, None] * root[0, 0, :, 0, :, None])
    torch.testing.assert_close(line.pull_back_squared(root)[0, 0], 5 * expected.square().sum(0))


@pytest.mark.parametrize(("family", "slopes"), [("gaussian", True), ("bernoulli", True), ("poisson", False)])
def test_blocks_are_those_of_the_whole_curvature(family: str, slopes: bool) -> None:
    model = Hierarchical(family, groups=3, varying_slopes=slopes)
    dataset = simulated(model, 3, rows=20, batch=2)
    dataset = Dataset(dataset.x, dataset.y, dataset.observed & (torch.arange(20) < 17),
                      dataset.features & torch.tensor([True, True, False]))
    theta, layout = model.sample_prior(dataset, 4, generator_for(0)), model.layout(3)
    score, (common, cross, own) = model.likelihood_blocks(theta, dataset)
    torch.testing.assert_close(score, model.likelihood_score(theta, dataset)[1])
    entries, kept = layout.groups["groups"], torch.ones(layout.size, dtype=torch.bool)
    for name in model.hyperparameters:
        kept[layout[name].span] = False
    line, groups = ((entries < 0) & kept).nonzero()[:, 0], [(entries == g).nonzero()[:, 0] for g in range(3)]
    for draw in range(4):
        whole = model.likelihood_precision(theta[:, draw, None], dataset)
        torch.testing.assert_close(common[:, draw], whole[:, line[:, None], line], rtol=1e-4, atol=1e-4)
        for g, group in enumerate(groups):
            torch.testing.assert_close(cross[:, draw, g], whole[:, group[:, None], line], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(own[:, draw, g], whole[:, group[:, None], group], rtol=1e-4, atol=1e-4)
        assert (whole[:, groups[0][:, None], groups[1]] == 0).all()


def test_eight_schools_by_quadrature() -> None:
    """The log joint, integrated over the schools' effects exactly and over mean and scale on a grid."""
    model, dataset = eight_schools()
    log_scale = torch.linspace(-7.0, 3.5, 400, dtype=torch.float64)
    mean = torch.linspace(-16.0, 24.0, 300, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(mean, log_scale, indexing="ij"), -1).flatten(0, 1)
    density = _marginal(model, dataset, grid)
    weights = (density - density.max()).exp()
    weights = weights / weights.sum()
    tau = grid[:, 1].exp().numpy()
    expected = stats.norm.logpdf(EFFECTS, grid[:, :1].numpy(), np.sqrt(np.square(ERRORS) + tau[:, None] ** 2)).sum(1)
    expected += stats.norm.logpdf(grid[:, 0], 0, 5) + stats.halfnorm.logpdf(tau, scale=5) + grid[:, 1].numpy()
    np.testing.assert_allclose(density, expected, rtol=1e-9, atol=1e-6)
    # Close to posteriordb's 4.4, 3.3 and 3.6, whose scale has a half-Cauchy prior.
    assert float(weights @ grid[:, 0]) == pytest.approx(4.4, abs=0.1)
    assert float((weights @ (grid[:, 0] - weights @ grid[:, 0]) ** 2) ** 0.5) == pytest.approx(3.3, abs=0.1)
    assert float(weights @ grid[:, 1].exp()) == pytest.approx(3.29, abs=0.02)


def _marginal(model: Hierarchical, dataset: Dataset, grid: Tensor) -> Tensor:
    """(M,) log density of mean and log scale: the joint is normal in the offsets, so Laplace is exact."""
    layout, wide = model.layout_of(dataset), Dataset(dataset.x.double(), dataset.y.double(), dataset.observed,  # type: ignore[union-attr]
                                                     dataset.features)
    theta = torch.zeros(1, len(grid), layout.size, dtype=torch.float64)
    theta[0, :, layout["intercept"].span], theta[0, :, layout["group_scale"].span] = grid[:, :1], grid[:, 1:]
    tau, errors = grid[:, 1:].exp(), torch.tensor(ERRORS, dtype=torch.float64)
    precision = 1 + (tau / errors) ** 2
    score = model.likelihood_score(theta, wide)[1][0, :, layout["group_offsets"].span]
    theta[0, :, layout["group_offsets"].span] = score / precision
    return model.log_joint(theta, wide)[0].detach() + (0.5 * (2 * torch.pi / precision).log()).sum(-1)


def test_groups_without_rows_do_not_matter() -> None:
    few, many = Hierarchical(groups=2, noise=0.25), Hierarchical(groups=5, noise=0.25)
    dataset = simulated(few, 2, rows=12)
    theta = many.sample_prior(dataset, 3, generator_for(0))
    kept = [i for i, name in enumerate(many.layout(2).scalar_names) if name not in
            ("group_offsets[2]", "group_offsets[3]", "group_offsets[4]")]
    torch.testing.assert_close(many.log_likelihood(theta, dataset), few.log_likelihood(theta[..., kept], dataset))
    score = many.likelihood_score(theta, dataset)[1]
    assert (score[..., [i for i in range(theta.shape[-1]) if i not in kept]] == 0).all()


def test_tokens_of_one_group_share_an_index() -> None:
    layout = Hierarchical(groups=2, varying_slopes=True).layout(3)
    expected = [-1, -1, -1, -1, 0, 1, -1, -1, 0, 0, 1, 1, -1]
    assert layout.groups["groups"].tolist() == expected
    assert layout.scalar_names[4:10:2] == ("group_offsets[0]", "slope_scale[0]", "slope_offsets[0,0]")


def test_simulated_groups_vary_as_they_should() -> None:
    model, batch = Hierarchical(groups=4, noise=0.25, varying_slopes=True), 4000
    x = torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 1.0]]).expand(batch, -1, -1)
    inputs = Dataset(x, None, torch.ones(batch, 3, dtype=torch.bool), torch.ones(batch, 2, dtype=torch.bool))
    theta = model.sample_prior(inputs, 1, generator_for(0))[:, 0]
    layout = model.layout(2)
    for name, value in (("weights", 0.0), ("intercept", 0.0), ("group_scale", np.log(2.0)), ("slope_scale", 0.0)):
        theta[:, layout[name].span] = value
    y = model.simulate(theta, inputs, generator_for(1)).y
    assert y is not None
    # Intercept effects of variance 4, slope effects of variance 1, noise of 0.25: rows 0 and 1 are of one group.
    expected = torch.tensor([[5.25, 6.0, 0.0], [6.0, 8.25, 0.0], [0.0, 0.0, 5.25]])
    torch.testing.assert_close(y.T @ y / batch, expected, rtol=0.0, atol=0.7)


def test_drawn_groups_are_spread_evenly() -> None:
    drawn = Hierarchical(groups=5).draw_inputs(10, 1000, 2, generator_for(0))[..., 0]
    assert drawn.unique().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert ((drawn.flatten().long().bincount() / 10_000 - 0.2).abs() < 5 * (0.16 / 10_000) ** 0.5).all()


@pytest.mark.parametrize("value", [-1.0, 0.5, 8.0])
def test_impossible_groups_are_refused(value: float) -> None:
    with pytest.raises(DataError, match=f"column group: got {value:g}"):
        build_model("hierarchical").check(Dataset.of([[value, 0.3]], [1.0]))


def test_wrong_options() -> None:
    with pytest.raises(InputError, match="groups: got 1"):
        Hierarchical(groups=1)
    with pytest.raises(InputError, match="family: got 'categorical'; takes a family with one output"):
        Hierarchical("categorical")


def test_the_contract_objects_to_a_wrong_claim_that_the_others_are_normal() -> None:
    model = Hierarchical("poisson", groups=3)
    assert not model.normal_given_hyperparameters
    model.normal_given_hyperparameters = True
    with pytest.raises(AssertionError, match="bend along a line"):
        check_normal_given_hyperparameters(model, 3)
