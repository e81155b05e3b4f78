"""Contract of a model: run :func:`check_model` on your own.

Every function raises AssertionError with what differs. Comparisons are in double precision; statistical ones use
fixed seeds and tolerances in standard errors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from posteria.errors import UnsupportedError
from posteria.models.base import Model
from posteria.models.parameters import Block, Parameter
from posteria.randomness import generator_for
from posteria.types import Dataset

# A correct model exceeds this many standard errors once in about two million comparisons.
_STANDARD_ERRORS = 5.0


def check_model(model: Model, num_columns: int, seed: int = 0, exact_curvature: bool = False) -> None:
    """The whole contract, on datasets that the model simulates.

    Args:
        model: the model.
        num_columns: columns of x, extra columns included; 2 features or more test their masks too.
        seed: of every random choice.
        exact_curvature: the curvature must be the exact negative Hessian, not a stand-in for it.

    Examples:
        >>> from posteria.models import LinearRegression
        >>> check_model(LinearRegression(), num_columns=2, exact_curvature=True)
    """
    check_transforms(model, num_columns, seed)
    check_prior(model, num_columns, seed)
    check_simulation(model, num_columns, seed)
    if not model.has_likelihood:
        check_simulator_says_so(model, num_columns, seed)
        return
    check_likelihood_shapes(model, num_columns, seed)
    check_padding(model, num_columns, seed)
    check_geometry(model, num_columns, seed)
    check_curvature(model, num_columns, seed, exact_curvature)
    check_exchangeable(model, num_columns, seed)
    check_prediction(model, num_columns, seed)
    check_exact_posterior(model, num_columns, seed)
    check_conditional(model, num_columns, seed)
    check_normal_given_hyperparameters(model, num_columns, seed)


def example(model: Model, num_columns: int, seed: int = 0, num_datasets: int = 3, rows: int = 7,
            num_draws: int = 4) -> tuple[Dataset, Tensor]:
    """Datasets simulated by the model, without padding, and theta (B, S, P) from its prior; in double precision."""
    x = model.draw_inputs(num_datasets, rows, num_columns, generator_for(seed, 1))
    inputs = Dataset(x, None, _all_true(num_datasets, rows), _all_true(num_datasets, num_columns))
    theta = model.sample_prior(inputs, num_draws, generator_for(seed, 2))
    dataset = model.simulate(theta[:, 0], inputs, generator_for(seed, 3))
    model.check(dataset)
    y = None if dataset.y is None else dataset.y.double()
    return replace(dataset, x=dataset.x.double(), y=y), theta.double()


# -- parameters and prior ---------------------------------------------------------------------------
def check_transforms(model: Model, num_columns: int, seed: int = 0) -> None:
    """Constrained values meet their support, the round trip is the identity, Jacobians agree with autograd."""
    layout = model.layout(num_columns)
    theta = layout.sample_prior((5,), generator_for(seed)).double()
    values = layout.constrain(theta)
    for block in layout.blocks:
        assert values[block.name].shape == (5, *block.shape), f"{block.name}: shape {tuple(values[block.name].shape)}"
        assert block.parameter.support.check(values[block.name]).all(), f"{block.name}: values outside the support"
    torch.testing.assert_close(layout.unconstrain(values), theta, msg=_named("constrain and back"))
    assert len(layout.scalar_names) == sum(int(torch.Size(b.shape).numel()) for b in layout.blocks)
    expected = torch.stack([sum((_autograd_log_det(b, t) for b in layout.blocks), t.new_zeros(())) for t in theta])
    actual = layout.log_abs_det_jacobian(theta)
    torch.testing.assert_close(actual, expected, msg=_named("log-determinant against autograd"))


def _autograd_log_det(block: Block, theta: Tensor) -> Tensor:
    """log |det| of the block's bijection at one theta (P,); a simplex is charted by all but its last entry."""
    def chart(free: Tensor) -> Tensor:
        value: Tensor = block.bijection(free.reshape(block.flat_shape))  # type: ignore[assignment]
        return (value[..., :block.flat_shape[-1]] if block.flat_shape else value).reshape(-1)

    jacobian = torch.autograd.functional.jacobian(chart, block.take(theta).reshape(-1))
    return torch.linalg.slogdet(jacobian).logabsdet  # type: ignore[arg-type]


def check_prior(model: Model, num_columns: int, seed: int = 0) -> None:
    """Prior densities integrate to one in theta, and draws have the moments that whitening uses."""
    layout = model.layout(num_columns)
    draws = layout.sample_prior((4000,), generator_for(seed)).double()
    assert draws.shape == (4000, layout.size), f"sample_prior: shape {tuple(draws.shape)}"
    location, scale = (moments.double() for moments in layout.prior_moments)
    error = (draws.median(0).values - location).abs() / scale * len(draws) ** 0.5
    # The median of n normal draws has standard error 1.25 / √n; skewed priors may double it.
    assert (error < 2.5 * _STANDARD_ERRORS).all(), f"prior location is {float(error.max()):.1f} standard errors off"
    assert torch.isfinite(layout.log_prior(draws)).all(), "log prior of prior draws is not finite"
    for block in layout.blocks:
        if not block.parameter.event_dim:
            _check_normalised(block.parameter, float(location[block.start]), float(scale[block.start]))


def _check_normalised(parameter: Parameter, location: float, scale: float) -> None:
    entry = Block(Parameter(parameter.name, (), parameter.support, parameter.prior), (), 0)
    grid = torch.linspace(location - 60 * scale, location + 60 * scale, 40_001, dtype=torch.float64)
    mass = float(torch.trapezoid(entry.log_prior_terms(grid[:, None])[:, 0].exp(), grid))
    assert abs(mass - 1) < 2e-3, f"prior of {parameter.name} integrates to {mass:.4f} in theta"


# -- likelihood -------------------------------------------------------------------------------------
def check_likelihood_shapes(model: Model, num_columns: int, seed: int = 0) -> None:
    """Many draws of many datasets give what every draw of every dataset gives alone."""
    dataset, theta = example(model, num_columns, seed)
    together = model.log_likelihood(theta, dataset)
    assert together.shape == theta.shape[:2], f"log_likelihood: shape {tuple(together.shape)}"
    rows = model.row_log_prob(theta, dataset)
    assert rows.shape == (*theta.shape[:2], dataset.x.shape[1]), f"row_log_prob: shape {tuple(rows.shape)}"
    torch.testing.assert_close(rows.sum(-1), together, msg=_named("row_log_prob summed"))
    alone = [[model.log_likelihood(theta[b:b + 1, s:s + 1], dataset[b:b + 1])[0, 0] for s in range(theta.shape[1])]
             for b in range(len(dataset))]
    torch.testing.assert_close(torch.tensor(alone, dtype=together.dtype), together, msg=_named("one by one"))
    joint = model.log_prior(theta, dataset) + together
    torch.testing.assert_close(model.log_joint(theta, dataset), joint, msg=_named("log_joint"))


def check_padding(model: Model, num_columns: int, seed: int = 0) -> None:
    """Padded rows and features, whatever they contain, change nothing."""
    dataset, theta = example(model, num_columns, seed)
    masked = _masked(model, dataset)
    small, active = _cut(masked), model.active(masked)[0]
    full = _measures(model, theta, masked)
    assert torch.isfinite(full[0]).all(), "log likelihood of a padded dataset is not finite"
    cut = _measures(model, theta[..., active], small)
    for name, one, other in zip(("log likelihood", "log prior", "score", "curvature"), full, cut, strict=True):
        one = one[..., active] if one.ndim == 3 else one
        torch.testing.assert_close(one, other, msg=_named(f"{name} with padding"))
    assert (full[2][..., ~active] == 0).all(), "the score of an inactive parameter is not zero"
    spoiled = _measures(model, torch.where(active, theta, theta + 1.0), _spoiled(masked))
    for name, one, other in zip(("log likelihood", "log prior", "score", "curvature"), full, spoiled, strict=True):
        torch.testing.assert_close(one, other, msg=_named(f"{name} with garbage in the padding"))


def _measures(model: Model, theta: Tensor, dataset: Dataset) -> tuple[Tensor, ...]:
    with torch.no_grad():
        geometry = model.likelihood_geometry(theta, dataset)
    return model.log_likelihood(theta, dataset), model.log_prior(theta, dataset), geometry.score, geometry.curvature


def _masked(model: Model, dataset: Dataset) -> Dataset:
    """The last two rows padded, and the last feature if there are two or more; zeros in the padding."""
    observed, features = dataset.observed.clone(), dataset.features.clone()
    observed[:, -2:] = False
    if features.shape[1] - len(model.extra_columns) > 1:
        features[:, -1] = False
    y = None if dataset.y is None else torch.where(observed, dataset.y, 0.0)
    real = observed[..., None] & features[:, None]
    return Dataset(torch.where(real, dataset.x, 0.0), y, observed, features)


def _cut(dataset: Dataset) -> Dataset:
    rows, columns = int(dataset.observed[0].sum()), int(dataset.features[0].sum())
    y = None if dataset.y is None else dataset.y[:, :rows]
    return Dataset(dataset.x[:, :rows, :columns], y, dataset.observed[:, :rows], dataset.features[:, :columns])


def _spoiled(dataset: Dataset) -> Dataset:
    real = dataset.observed[..., None] & dataset.features[:, None]
    y = None if dataset.y is None else torch.where(dataset.observed, dataset.y, 1.0)
    return replace(dataset, x=torch.where(real, dataset.x, 7.0), y=y)


def check_geometry(model: Model, num_columns: int, seed: int = 0) -> None:
    """Density and score agree with automatic differentiation, and are differentiable; the curvature is a constant."""
    dataset, theta = example(model, num_columns, seed)
    point = theta.clone().requires_grad_()
    value = model.log_likelihood(point, dataset)
    (score,) = torch.autograd.grad(value.sum(), point)
    geometry = model.likelihood_geometry(point, dataset)
    torch.testing.assert_close(geometry.log_density, value, msg=_named("geometry's density"))
    torch.testing.assert_close(geometry.score, score, rtol=1e-6, atol=1e-8, msg=_named("score against autograd"))
    assert geometry.curvature.shape == theta.shape, f"curvature: shape {tuple(geometry.curvature.shape)}"
    assert not geometry.curvature.requires_grad, "the curvature carries a gradient"
    assert geometry.score.requires_grad, "the score carries no gradient"
    (through,) = torch.autograd.grad(geometry.score.sum() + geometry.log_density.sum(), point)
    assert torch.isfinite(through).all(), "the gradient through the score is not finite"
    for one, other in zip(model.likelihood_score(point, dataset), (value, score), strict=True):
        assert one.requires_grad, "likelihood_score carries no gradient"
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8, msg=_named("likelihood_score"))
    gradient = model.likelihood_gradient(theta, dataset)
    torch.testing.assert_close(gradient, score, rtol=1e-6, atol=1e-8, msg=_named("likelihood_gradient"))
    with torch.no_grad():
        quiet = model.likelihood_geometry(theta, dataset)
    assert not quiet.score.requires_grad, "the score carries a gradient where gradients are off"
    torch.testing.assert_close(quiet.score, score, rtol=1e-6, atol=1e-8, msg=_named("score without gradients"))


def check_curvature(model: Model, num_columns: int, seed: int = 0, exact: bool = False) -> None:
    """Diagonal and full curvature agree; positive where the model says so; the exact Hessian on request."""
    dataset, theta = example(model, num_columns, seed, num_draws=1)
    diagonal = model.likelihood_geometry(theta, dataset).curvature[:, 0]
    precision = model.likelihood_precision(theta, dataset)
    assert precision.shape == (*diagonal.shape, diagonal.shape[-1]), f"precision: shape {tuple(precision.shape)}"
    assert not precision.requires_grad, "the precision carries a gradient"
    scale = model.layout_of(dataset).prior_moments[1].double()
    least = -1.0 if model.curvature_is_positive_with_prior else 0.0
    assert (diagonal * scale.square() >= least).all(), "negative curvature"
    torch.testing.assert_close(precision.diagonal(dim1=-2, dim2=-1).abs(), diagonal.abs(), rtol=1e-6, atol=1e-8,
                               msg=_named("diagonal of the precision"))
    if model.curvature_is_positive_with_prior:
        values = torch.linalg.eigvalsh(precision * scale * scale[:, None] + torch.eye(len(scale)))
        assert (values >= -1e-8 * values.amax(-1, keepdim=True).clamp(min=1)).all(), "the precision is not positive"
    if exact:
        hessian = _hessian(model, theta, dataset)
        torch.testing.assert_close(precision, -hessian, rtol=1e-6, atol=1e-7, msg=_named("precision against Hessian"))


def _hessian(model: Model, theta: Tensor, dataset: Dataset) -> Tensor:
    def one(b: int) -> Tensor:
        def value(point: Tensor) -> Tensor:
            return model.log_likelihood(point[None, None], dataset[b:b + 1])[0, 0]

        return torch.autograd.functional.hessian(value, theta[b, 0])  # type: ignore[return-value]

    return torch.stack([one(b) for b in range(len(dataset))])


def check_exchangeable(model: Model, num_columns: int, seed: int = 0) -> None:
    """Permuting along every exchangeable axis leaves the likelihood as it is."""
    dataset, theta = example(model, num_columns, seed)
    layout = model.layout(num_columns)
    values = layout.constrain(theta)
    before = model.log_likelihood(theta, dataset)
    for axis in model.exchangeable_axes:
        moved = {b.name: _rolled(b, values[b.name], axis) for b in layout.blocks}
        after = model.log_likelihood(layout.unconstrain(moved), dataset)
        torch.testing.assert_close(after, before, msg=_named(f"likelihood after permuting {axis}"))


def _rolled(block: Block, value: Tensor, axis: str) -> Tensor:
    shape = block.parameter.shape
    return value.roll(1, shape.index(axis) - len(shape)) if axis in shape else value


# -- simulation and prediction ----------------------------------------------------------------------
def check_simulation(model: Model, num_columns: int, seed: int = 0) -> None:
    """Simulation depends on its generator alone, leaves the global state, keeps masks and zero padding."""
    dataset, theta = example(model, num_columns, seed, rows=40)
    inputs = replace(_masked(model, dataset), y=None)
    state = torch.random.get_rng_state()
    first, again, *others = (model.simulate(theta[:, 0], inputs, generator_for(seed, k)) for k in (1, 1, *range(2, 22)))
    assert torch.equal(state, torch.random.get_rng_state()), "simulate moved the global random state"
    assert (first.y is None) == (model.target == "none"), "y must be there unless the target is 'none'"
    assert _same(first, again), "the same generator gave different datasets"
    assert not all(_same(first, other) for other in others), "different generators gave the same dataset"
    assert torch.equal(first.observed, inputs.observed), "simulate changed the mask of rows"
    assert torch.equal(first.features, inputs.features), "simulate changed the mask of features"
    assert (first.x[:, -2:] == 0).all(), "padded rows of x are not zero"
    assert first.y is None or (first.y[:, -2:] == 0).all(), "padded entries of y are not zero"
    model.check(first)


def _same(one: Dataset, other: Dataset) -> bool:
    same = torch.equal(one.x, other.x)
    return same if one.y is None or other.y is None else same and torch.equal(one.y, other.y)


def check_prediction(model: Model, num_columns: int, seed: int = 0, num_datasets: int = 4000) -> None:
    """``predict`` is the distribution of the rows: its density is the likelihood, its moments the simulations'."""
    dataset, theta = example(model, num_columns, seed)
    try:
        distribution = model.predict(theta, dataset)
    except UnsupportedError:
        return
    assert distribution.batch_shape == (*theta.shape[:2], dataset.x.shape[1]), (
        f"predict: batch shape {tuple(distribution.batch_shape)}")
    rows = dataset.x if dataset.y is None else dataset.y
    torch.testing.assert_close(distribution.log_prob(rows[:, None]), model.row_log_prob(theta, dataset),
                               rtol=1e-6, atol=1e-8, msg=_named("predict's log_prob"))
    few = Dataset(dataset.x[:1, :3], None, dataset.observed[:1, :3], dataset.features[:1])
    inputs = few[torch.zeros(num_datasets, dtype=torch.long)]
    simulated = model.simulate(theta[:1, 0].expand(num_datasets, -1), inputs, generator_for(seed, 4))
    values = simulated.x if simulated.y is None else simulated.y
    single = model.predict(theta[:1, :1], few)
    if model.target == "class":
        _check_frequencies(values, single, model.num_classes)
        return
    squares = (values - single.mean[0, 0]) ** 2
    _check_close("mean of simulations", values, single.mean[0, 0], single.stddev[0, 0])
    _check_close("variance of simulations", squares, single.variance[0, 0], squares.std(0))


def _check_frequencies(values: Tensor, distribution: torch.distributions.Distribution, num_classes: int) -> None:
    for k in range(num_classes):
        expected = distribution.log_prob(torch.full(distribution.batch_shape, float(k)))[0, 0].exp()
        _check_close(f"frequency of class {k}", (values == k).double(), expected, (expected * (1 - expected)).sqrt())


def _check_close(what: str, values: Tensor, expected: Tensor, deviation: Tensor) -> None:
    """The mean of ``values`` (M, ...) is the expected one; ``deviation`` is the sd of one value."""
    off = (values.mean(0) - expected).abs() - _STANDARD_ERRORS * deviation / len(values) ** 0.5
    # A few events in the whole sample are nothing against a tiny frequency.
    assert (off <= 3.0 / len(values)).all(), f"{what}: {values.mean(0).tolist()} against predict's {expected.tolist()}"


def check_exact_posterior(model: Model, num_columns: int, seed: int = 0) -> None:
    """Log joint minus log exact posterior is the log evidence, the same at every theta; inactive keep their prior."""
    dataset, theta = example(model, num_columns, seed)
    try:
        exact = model.exact_posterior(dataset)
    except UnsupportedError:
        return
    assert exact.loc.shape == (len(dataset), theta.shape[-1]), f"exact_posterior: shape {tuple(exact.loc.shape)}"
    evidence = model.log_joint(theta, dataset) - exact.log_prob(theta.movedim(1, 0)).movedim(0, 1)
    torch.testing.assert_close(evidence, evidence[:, :1].expand_as(evidence), rtol=1e-6, atol=1e-6,
                               msg=_named("log joint minus log exact posterior"))
    masked = _masked(model, dataset)
    active, padded = model.active(masked)[0], model.exact_posterior(masked)
    cut = model.exact_posterior(_cut(masked))
    torch.testing.assert_close(padded.loc[:, active], cut.loc, msg=_named("exact mean with padding"))
    torch.testing.assert_close(padded.covariance_matrix[:, active][..., active], cut.covariance_matrix,
                               msg=_named("exact covariance with padding"))
    location, scale = (m.double().expand_as(padded.loc) for m in model.layout(num_columns).prior_moments)
    torch.testing.assert_close(padded.loc[:, ~active], location[:, ~active], msg=_named("inactive means"))
    torch.testing.assert_close(padded.variance[:, ~active], scale[:, ~active] ** 2, msg=_named("inactive variances"))


def check_conditional(model: Model, num_columns: int, seed: int = 0) -> None:
    """Given the others, the conjugate parameters have the posterior that the model says.

    Moving them changes the log joint by as much as its log density, and by nothing else; padded rows and features that
    a dataset lacks change nothing.
    """
    places = model.conjugate(model.layout(num_columns))
    if not places.any():
        return
    dataset, theta = example(model, num_columns, seed)
    mean, factor = model.conditional(theta, dataset)
    moved = theta.clone()
    moved[..., places] = mean + 0.5 * torch.randn(mean.shape, generator=generator_for(seed, 4), dtype=mean.dtype)
    heights = []
    for each in (theta, moved):
        noise = factor.mT @ (each[..., places] - mean)[..., None]
        heights.append(model.log_joint(each, dataset) + 0.5 * noise.square().sum((-1, -2)))
    torch.testing.assert_close(*heights, msg=_named("conditional posterior against the log joint"))
    torch.testing.assert_close(model.conditional(moved, dataset)[0], mean, msg=_named("it reads the others only"))
    padded = dataset.padded(dataset.x.shape[1] + 3, num_columns)
    for once, again in zip((mean, factor), model.conditional(theta, padded), strict=True):
        torch.testing.assert_close(again, once, msg=_named("conditional posterior of padded rows"))


def check_normal_given_hyperparameters(model: Model, num_columns: int, seed: int = 0) -> None:
    """Where the model says so: along lines on which the hyperparameters stay, the log likelihood is a parabola."""
    if not model.normal_given_hyperparameters:
        return
    dataset, theta = example(model, num_columns, seed)
    step = torch.randn(theta.shape, generator=generator_for(seed, 4), dtype=theta.dtype)
    layout = model.layout(num_columns)
    for name in model.hyperparameters:
        step[..., layout[name].span] = 0.0
    step = torch.where(model.active(dataset)[:, None], step, 0.0)
    heights = torch.stack([model.log_likelihood(theta + t * step, dataset) for t in range(4)])
    bend = heights[0] - 2.0 * heights[1] + heights[2]
    torch.testing.assert_close(heights[1] - 2.0 * heights[2] + heights[3], bend, msg=_named("bend along a line"))
    precision = model.likelihood_precision(theta[:, :1], dataset)
    torch.testing.assert_close(-torch.einsum("bp,bpq,bq->b", step[:, 0], precision, step[:, 0]), bend[:, 0],
                               msg=_named("bend by the precision"))


def check_simulator_says_so(model: Model, num_columns: int, seed: int = 0) -> None:
    """Without a likelihood, asking for one raises UnsupportedError."""
    dataset, theta = example(model, num_columns, seed)
    for ask in (model.log_likelihood, model.likelihood_geometry):
        try:
            ask(theta, dataset)
        except UnsupportedError:
            continue
        raise AssertionError(f"{ask.__name__} of a simulator did not raise UnsupportedError")


def _all_true(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def _named(what: str):
    return lambda message: f"{what}: {message}"
