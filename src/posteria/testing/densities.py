"""Contract of a density, as plain functions that raise AssertionError: run them on your own density.

Examples:
    >>> spec = ContextSpec(summary_dim=4, token_dim=None, num_parameters=2)
    >>> density = DiagonalGaussian(spec)  # doctest: +SKIP
    >>> check_density(density, example_context(spec, [2, 1]))  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from posteria.densities.base import Density
from posteria.randomness import generator_for, randn
from posteria.types import Context, ContextSpec, ThetaDistribution

_STANDARD_ERRORS = 5.0
# Quadrature covers the range of the draws and this many standard deviations more; points per axis in 1 and 2 d.
_MARGIN, _POINTS = 3.0, {1: 4001, 2: 201}


def example_context(spec: ContextSpec, sizes: Sequence[int], seed: int = 0, magnitude: float = 1.0,
                    factor: bool = False) -> Context:
    """A random context that fits a spec.

    Args:
        spec: widths. ``spec.num_parameters`` or else the largest size is P.
        sizes: number of active parameters of each dataset, at random places among P.
        seed: what to draw.
        magnitude: size of the network outputs; 1000 is what a broken encoder might give.
        factor: give a located context a precision factor too.
    """
    generator = generator_for(seed)
    batch, size = len(sizes), spec.num_parameters or max(sizes)
    order = torch.rand(batch, size, generator=generator).argsort(-1).argsort(-1)
    active = order < torch.tensor(sizes)[:, None]
    like = torch.zeros(())
    summary = magnitude * randn(batch, spec.summary_dim, like=like, generator=generator)
    tokens = None
    if spec.token_dim is not None:
        tokens = magnitude * randn(batch, size, spec.token_dim, like=like, generator=generator)
    context = Context(summary, active, tokens)
    if not spec.located:
        return context
    location = magnitude * randn(batch, size, like=like, generator=generator)
    scale = magnitude * (0.2 + torch.rand(batch, size, generator=generator))
    return replace(context, location=location, scale=scale, factor=_factor(active, generator) if factor else None)


def _factor(active: Tensor, generator: torch.Generator) -> Tensor:
    size = active.shape[1]
    lower = randn(*active.shape, size, like=torch.zeros(()), generator=generator).tril(-1) * 0.5 / math.sqrt(size)
    lower = lower + torch.diag_embed(0.7 + torch.rand(active.shape, generator=generator))
    return torch.where(active[:, :, None] & active[:, None], lower, torch.eye(size))


def randomise(density: Density, seed: int = 0, scale: float = 0.05) -> Density:
    """Move every weight by noise, in place, since a density at its first weights may be a plain Gaussian."""
    generator = generator_for(seed)
    with torch.no_grad():
        for weight in density.parameters():
            weight += scale * randn(*weight.shape, like=weight, generator=generator)
    return density


def check_density(density: Density, context: Context, seed: int = 0) -> None:
    """Run every check that applies to this density at this context (of ordinary magnitude).

    Args:
        density: the density, best with weights that are not its first ones (:func:`randomise`).
        context: a context of at least one dataset, of at most a few hundred parameters.
        seed: what to draw.

    Raises:
        AssertionError: the contract is broken; the message says where.
    """
    check_shapes(density, context, seed)
    check_sample_matches_log_prob(density, context, seed)
    check_generator(density, context, seed)
    check_masks(density, context, seed)
    check_batching(density, context, seed)
    check_gradients(density, context, seed)
    check_detach(density, context, seed)
    check_kl(density, context, seed)
    check_score_identities(density, context, seed)
    if context.active.shape[1] <= 2 and bool(context.active.all()):
        check_normalised(density, context, seed)
    if density.spec.num_parameters is None:
        check_padding(density, context, seed)


def check_shapes(density: Density, context: Context, seed: int = 0) -> None:
    """Draws are (B, S, P), log densities (B, S), both finite."""
    distribution = density(context)
    theta, log_prob = distribution.rsample_and_log_prob(3, generator_for(seed))
    assert torch.equal(distribution.active, context.active), "active is not the context's"
    assert theta.shape == (len(context.active), 3, context.active.shape[1]), f"draws have shape {tuple(theta.shape)}"
    assert log_prob.shape == theta.shape[:2], f"their log_prob has shape {tuple(log_prob.shape)}"
    assert distribution.log_prob(theta).shape == theta.shape[:2], "log_prob(theta) is not (B, S)"
    assert distribution.rsample(2, generator_for(seed)).shape[1] == 2, "rsample ignores num_samples"
    check_finite(density, context, seed)


def check_finite(density: Density, context: Context, seed: int = 0, samples: int = 4) -> None:
    """Draws, log densities in both directions and every gradient are finite. Extreme contexts may be asked."""
    distribution = density(context)
    theta, log_prob = distribution.rsample_and_log_prob(samples, generator_for(seed))
    again = distribution.log_prob(theta)
    for name, value in (("rsample", theta), ("log_prob of a draw", log_prob), ("log_prob", again)):
        assert bool(torch.isfinite(value).all()), f"{name} is not finite"
    weights = [weight for weight in density.parameters() if weight.numel()]
    loss = theta.mean() + log_prob.mean() + again.mean()
    for gradient in torch.autograd.grad(loss, weights, allow_unused=True):
        assert gradient is None or bool(torch.isfinite(gradient).all()), "a weight's gradient is not finite"


def check_sample_matches_log_prob(density: Density, context: Context, seed: int = 0, tolerance: float = 1e-3) -> None:
    """log_prob(draw) is what rsample_and_log_prob said, within tolerance × (1 + sqrt P)."""
    with torch.no_grad():
        distribution = density(context)
        draws = _num_draws(context.active.shape[1]) // 20
        theta, log_prob = distribution.rsample_and_log_prob(draws, generator_for(seed))
        error = (distribution.log_prob(theta) - log_prob).abs().max()
    assert error < tolerance * (1 + math.sqrt(theta.shape[-1])), f"log_prob of draws differs by {error:.2g}"


def check_generator(density: Density, context: Context, seed: int = 0) -> None:
    """Equal seeds give equal draws, others do not, rsample draws the same, the global state is untouched."""
    before = torch.random.get_rng_state()
    with torch.no_grad():
        distribution = density(context)
        first = distribution.rsample(5, generator_for(seed))
        assert torch.equal(first, distribution.rsample(5, generator_for(seed))), "one seed, two results"
        both = distribution.rsample_and_log_prob(5, generator_for(seed))[0]
        other = distribution.rsample(5, generator_for(seed + 1))
    assert torch.equal(first, both), "rsample and rsample_and_log_prob draw differently"
    assert not torch.equal(first, other), "the generator is ignored"
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state is used"


def check_masks(density: Density, context: Context, seed: int = 0) -> None:
    """Inactive parameters are zero in draws; nothing at their places, in theta or context, has any influence."""
    inactive = ~context.active
    with torch.no_grad():
        distribution = density(context)
        theta, log_prob = distribution.rsample_and_log_prob(5, generator_for(seed))
        assert not theta.masked_select(inactive[:, None]).any(), "draws are not zero at inactive parameters"
        junk = torch.where(inactive[:, None], 1e3, theta)
        assert torch.equal(distribution.log_prob(junk), distribution.log_prob(theta)), "inactive theta is seen"
        other, other_log_prob = density(_with_junk(context)).rsample_and_log_prob(5, generator_for(seed))
    assert torch.equal(theta, other), "the context at inactive parameters moves draws"
    assert torch.equal(log_prob, other_log_prob), "the context at inactive parameters changes log_prob"


def _with_junk(context: Context) -> Context:
    inactive = ~context.active

    def junk(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return torch.where(inactive.view(*inactive.shape, *[1] * (values.ndim - 2)), 7.0, values)

    return replace(context, tokens=junk(context.tokens), location=junk(context.location), scale=junk(context.scale))


def check_batching(density: Density, context: Context, seed: int = 0) -> None:
    """A dataset gets the same density alone as in a batch."""
    with torch.no_grad():
        distribution = density(context)
        theta = distribution.rsample(5, generator_for(seed))
        log_prob = distribution.log_prob(theta)
        for i in range(len(theta)):
            alone = density(_map(context, lambda t, i=i: t[i:i + 1])).log_prob(theta[i:i + 1])
            _assert_close(alone[0], log_prob[i], f"log_prob of dataset {i} alone and in the batch")


def check_padding(density: Density, context: Context, seed: int = 0) -> None:
    """A density for any number of parameters gives a padded dataset what it gives the smaller one."""
    with torch.no_grad():
        distribution = density(context)
        theta = distribution.rsample(5, generator_for(seed))
        log_prob = distribution.log_prob(theta)
        for i in range(len(theta)):
            chosen = context.active[i].nonzero().squeeze(-1)
            small = density(_only(context, i, chosen)).log_prob(theta[i:i + 1, :, chosen])
            _assert_close(small[0], log_prob[i], f"log_prob of dataset {i} with and without padding")


def _only(context: Context, index: int, chosen: Tensor) -> Context:
    """One dataset's context, without its inactive parameters."""
    small = _map(context, lambda t: t[index:index + 1])
    parts = {"active": small.active, "tokens": small.tokens, "location": small.location, "scale": small.scale}
    taken = {name: None if part is None else part[:, chosen] for name, part in parts.items()}
    factor = None if small.factor is None else small.factor[:, chosen][:, :, chosen]
    return replace(small, **taken, factor=factor)


def _map(context: Context, function: Callable[[Tensor], Tensor]) -> Context:
    parts = {f.name: getattr(context, f.name) for f in fields(context)}
    return replace(context, **{name: function(part) for name, part in parts.items() if part is not None})


def check_gradients(density: Density, context: Context, seed: int = 0) -> None:
    """Draws and log densities are differentiable in the density's weights."""
    distribution = density(context)
    draws = distribution.rsample(4, generator_for(seed))
    log_prob = distribution.log_prob(draws.detach())
    weights = [weight for weight in density.parameters() if weight.numel()]
    for name, value in (("rsample", draws), ("log_prob", log_prob)):
        gradients = torch.autograd.grad(value.square().sum(), weights, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().max() > 0 for g in gradients), f"{name} has no gradient in any weight"


def check_detach(density: Density, context: Context, seed: int = 0) -> None:
    """detach() changes no value, cuts weights and context off, and stays differentiable in theta."""
    context = _map(context, lambda t: t.clone().requires_grad_() if t.is_floating_point() else t)
    distribution = density(context)
    detached = distribution.detach()
    theta = distribution.rsample(4, generator_for(seed)).detach()
    assert not detached.log_prob(theta).requires_grad, "log_prob of the detached still depends on weights or context"
    assert not detached.rsample(2, generator_for(seed)).requires_grad, "draws of the detached still have a gradient"
    cut, kept = theta.clone().requires_grad_(), theta.clone().requires_grad_()
    cut_log_prob, kept_log_prob = detached.log_prob(cut), distribution.log_prob(kept)
    assert torch.equal(cut_log_prob, kept_log_prob), "detach changes log_prob"
    (gradient,) = torch.autograd.grad(cut_log_prob.sum(), cut)
    (expected,) = torch.autograd.grad(kept_log_prob.sum(), kept)
    assert torch.equal(gradient, expected), "detach changes the gradient in theta"


def check_kl(density: Density, context: Context, seed: int = 0) -> None:
    """kl_to_normal agrees with Monte Carlo, where it has a closed form."""
    size = context.active.shape[1]
    location, scale = torch.linspace(-0.5, 0.5, size), torch.linspace(1.0, 2.0, size)
    with torch.no_grad():
        distribution = density(context)
        exact = distribution.kl_to_normal(location, scale)
        if exact is None:
            return
        assert exact.shape == (len(context.active),), f"kl_to_normal has shape {tuple(exact.shape)}"
        theta, log_prob = distribution.rsample_and_log_prob(_num_draws(size), generator_for(seed))
        terms = torch.distributions.Normal(location, scale).log_prob(theta)
        _assert_mean(log_prob - torch.where(context.active[:, None], terms, 0.0).sum(-1), exact, "kl_to_normal")


def check_score_identities(density: Density, context: Context, seed: int = 0) -> None:
    """Draws follow log_prob: its score has mean zero, and mean -1 against each centred parameter.

    Both hold for every smooth density that vanishes at infinity (integrate by parts), and fail for draws
    from another one.
    """
    with torch.no_grad():
        distribution = density(context)
        draws = _num_draws(context.active.shape[1])
        theta = distribution.rsample(draws, generator_for(seed))
        centre = distribution.rsample(draws, generator_for(seed + 1)).mean(1, keepdim=True)
    score = _score(distribution, theta)
    _assert_mean(score.movedim(1, -1), torch.zeros(()), "the score")
    products = torch.where(context.active[:, None], (theta - centre) * score, -1.0)
    _assert_mean(products.movedim(1, -1), -torch.ones(()), "the score times theta")


def _score(distribution: ThetaDistribution, theta: Tensor) -> Tensor:
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(distribution.detach().log_prob(theta).sum(), theta)[0]


def check_normalised(density: Density, context: Context, seed: int = 0, tolerance: float = 5e-3) -> None:
    """The density of 1 or 2 parameters integrates to one, by quadrature."""
    size = context.active.shape[1]
    assert size in _POINTS, f"quadrature is for 1 or 2 parameters, not {size}"
    with torch.no_grad():
        distribution = density(context)
        draws = distribution.rsample(_num_draws(size), generator_for(seed))
        margin = _MARGIN * draws.std(1, keepdim=True)
        low, high = draws.amin(1, keepdim=True) - margin, draws.amax(1, keepdim=True) + margin
        axis = torch.linspace(0, 1, _POINTS[size])
        grid = torch.cartesian_prod(*[axis] * size).reshape(-1, size)
        mean_density = distribution.log_prob(low + (high - low) * grid).exp().mean(-1)
    mass = mean_density * (high - low).prod(-1).squeeze(1) * (1 + axis[1]) ** size  # mean × cells per axis
    assert bool(((mass - 1).abs() < tolerance).all()), f"the density integrates to {mass.tolist()}"


def check_log_determinant(transform: Callable[[Tensor], tuple[Tensor, Tensor]], values: Tensor,
                          tolerance: float = 1e-3) -> None:
    """The log-determinant that a map of (P,) gives equals that of its Jacobian by automatic differentiation.

    Args:
        transform: (P,) -> (moved (P,), log |det| ()).
        values: (P,) where to check.
        tolerance: largest absolute difference.
    """
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[0], values)
    expected = torch.linalg.slogdet(jacobian)[1]  # type: ignore[arg-type]
    error = (transform(values)[1] - expected).abs()
    assert error < tolerance, f"the log-determinant is wrong by {error:.2g}"


def _num_draws(size: int) -> int:
    """Enough for standard errors to mean something, affordable for many parameters."""
    return max(200, min(4000, 20_000 // size))


def _assert_mean(draws: Tensor, expected: Tensor, what: str) -> None:
    """The mean over the last axis is as expected, in standard errors."""
    error = (draws.mean(-1) - expected).abs()
    allowed = _STANDARD_ERRORS * draws.std(-1) / math.sqrt(draws.shape[-1]) + 1e-4 * (1 + expected.abs())
    worst = (error / allowed).max() * _STANDARD_ERRORS
    assert bool((error <= allowed).all()), f"{what} is off by {worst:.1f} standard errors"


def _assert_close(got: Tensor, expected: Tensor, what: str) -> None:
    error = (got - expected).abs().max()
    assert error <= 1e-3 + 1e-5 * expected.abs().max(), f"{what} differ by {error:.2g}"
