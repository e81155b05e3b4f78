"""Named parameter blocks, and the layout that maps them to one flat unconstrained vector.

A block's shape names axes. The axis ``"features"`` takes its length from the dataset, so that one
model serves every number of features; other axes have fixed lengths given by the model.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy
import torch
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal, Transform, biject_to, constraints
from torch.distributions.constraints import Constraint

from posteria.errors import InputError
from posteria.randomness import generator_for, seeded

FEATURES = "features"
_MOMENT_DRAWS = 8192
_FIT_DRAWS = 64


@dataclass(frozen=True)
class Parameter:
    """One named block of parameters.

    Args:
        name: what users see (``weights``, ``noise_scale``).
        shape: axis names or lengths; ``"features"`` is the dataset's number of features.
        support: a ``torch.distributions.constraints`` object.
        prior: distribution of one entry (or one event, such as a simplex row) in constrained space; its
            support must be the parameter's.

    Raises:
        InputError: not an identifier, an axis twice, or a prior that does not fit the support or the shape.

    Examples:
        >>> prior = torch.distributions.HalfNormal(1.0)
        >>> noise_scale = Parameter("noise_scale", support=constraints.positive, prior=prior)
    """

    name: str
    shape: tuple[str | int, ...] = ()
    support: Constraint = constraints.real
    prior: Distribution = field(default_factory=lambda: Normal(0.0, 1.0, validate_args=False))

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError.of("name", repr(self.name), "a Python identifier")
        named = [axis for axis in self.shape if isinstance(axis, str)]
        if len(set(named)) != len(named):
            raise InputError.of(f"shape of {self.name}", str(self.shape), "every axis once")
        if self.prior.batch_shape:
            raise InputError.of(f"prior of {self.name}", f"batch shape {tuple(self.prior.batch_shape)}",
                                "a prior for one entry (batch shape ()), repeated over the block")
        if self.event_dim > len(self.shape):
            raise InputError.of(f"shape of {self.name}", str(self.shape), f"{self.event_dim} axes or more")
        if self.event_dim and FEATURES in self.shape[-self.event_dim:]:
            raise InputError.of(f"shape of {self.name}", str(self.shape), "a support that does not couple features")
        _check_prior_fits(self)
        # Candidates may round to the edge of the support in float32; that is a density of zero, not an error.
        object.__setattr__(self, "prior", _copied(self.prior))

    @property
    def event_dim(self) -> int:
        return len(self.prior.event_shape)


@dataclass(frozen=True)
class Block:
    """A parameter whose axes have lengths, and its place in the flat vector."""

    parameter: Parameter
    shape: tuple[int, ...]
    start: int

    @cached_property
    def bijection(self) -> Transform:
        return biject_to(self.parameter.support)

    @cached_property
    def flat_shape(self) -> tuple[int, ...]:
        return tuple(self.bijection.inverse_shape(torch.Size(self.shape)))

    @cached_property
    def size(self) -> int:
        return int(torch.Size(self.flat_shape).numel())

    @property
    def event_size(self) -> int:
        """Flat entries that share one prior density: those of an event, or one."""
        events = self.shape[:len(self.shape) - self.parameter.event_dim]
        return self.size // int(torch.Size(events).numel())

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.size)

    @property
    def name(self) -> str:
        return self.parameter.name

    def take(self, theta: Tensor) -> Tensor:
        """Unconstrained values (..., *flat_shape) out of theta (..., P)."""
        return theta[..., self.span].reshape(theta.shape[:-1] + self.flat_shape)

    def constrained(self, theta: Tensor) -> Tensor:
        """Constrained values (..., *shape)."""
        return self.bijection(self.take(theta))  # type: ignore[return-value]

    def _prior_like(self, theta: Tensor) -> Distribution:
        # Some families (Gamma, Dirichlet) compute where their arguments lie and in their precision.
        prior = self.parameter.prior
        plain = theta.device.type == "cpu" and theta.dtype == torch.get_default_dtype()
        return prior if plain else _copied(prior, theta.device, theta.dtype)

    def log_prior_terms(self, theta: Tensor) -> Tensor:
        """(..., size): prior density of each entry in unconstrained space, Jacobian included."""
        free = self.take(theta)
        value: Tensor = self.bijection(free)  # type: ignore[assignment]
        prior = self._prior_like(theta).log_prob(value)
        jacobian = self.bijection.log_abs_det_jacobian(free, value)
        entries_of_event = self.parameter.event_dim - self.bijection.codomain.event_dim
        if entries_of_event:
            jacobian = jacobian.sum(tuple(range(-entries_of_event, 0)))
        terms = prior + jacobian
        if not self.parameter.event_dim:
            return terms.reshape(theta.shape[:-1] + (self.size,))
        # An event's density belongs to all its entries: book it on the first one.
        terms = terms.reshape(*theta.shape[:-1], -1, 1)
        width = self.size // terms.shape[-2]
        return torch.nn.functional.pad(terms, (0, width - 1)).reshape(theta.shape[:-1] + (self.size,))


class Layout:
    """How a model's blocks lie in one flat unconstrained vector theta (..., P), for D features.

    Attributes:
        blocks: the blocks in order.
        size: P.
        names: P-independent block names; :attr:`scalar_names` names every constrained entry.
    """

    def __init__(self, parameters: tuple[Parameter, ...], axes: Mapping[str, int], num_features: int):
        if len({p.name for p in parameters}) != len(parameters):
            raise InputError.of("parameters", str([p.name for p in parameters]), "different names")
        self.num_features = num_features
        lengths = {**axes, FEATURES: num_features}
        blocks, start = [], 0
        for parameter in parameters:
            shape = tuple(_length(axis, lengths, parameter.name) for axis in parameter.shape)
            _check_event(parameter, shape)
            blocks.append(Block(parameter, shape, start))
            start += blocks[-1].size
        self.blocks: tuple[Block, ...] = tuple(blocks)
        self.size = start

    def __getitem__(self, name: str) -> Block:
        for block in self.blocks:
            if block.name == name:
                return block
        raise InputError.of("parameter", repr(name), f"one of {[b.name for b in self.blocks]}")

    def constrain(self, theta: Tensor) -> dict[str, Tensor]:
        """Named constrained values (..., *shape) of theta (..., P)."""
        self._check(theta)
        return {block.name: block.constrained(theta) for block in self.blocks}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """theta (..., P) of named constrained values."""
        missing = [b.name for b in self.blocks if b.name not in values]
        if missing or len(values) != len(self.blocks):
            raise InputError.of("values", str(sorted(values)), f"exactly {[b.name for b in self.blocks]}")
        parts = []
        for block in self.blocks:
            value = values[block.name]
            if tuple(value.shape[value.ndim - len(block.shape):]) != block.shape:
                raise InputError.of(block.name, f"shape {tuple(value.shape)}", f"shape (..., {block.shape})")
            free: Tensor = block.bijection.inv(value)  # type: ignore[assignment]
            parts.append(free.reshape(free.shape[:free.ndim - len(block.flat_shape)] + (block.size,)))
        return torch.cat(parts, -1)

    def log_abs_det_jacobian(self, theta: Tensor) -> Tensor:
        """(...) log |d constrained / d theta|, all blocks."""
        total = torch.zeros(theta.shape[:-1], dtype=theta.dtype, device=theta.device)
        for block in self.blocks:
            free = block.take(theta)
            value: Tensor = block.bijection(free)  # type: ignore[assignment]
            total = total + block.bijection.log_abs_det_jacobian(free, value).reshape(*theta.shape[:-1], -1).sum(-1)
        return total

    def log_prior(self, theta: Tensor, active: Tensor | None = None) -> Tensor:
        """(...) log prior density of theta (..., P) in unconstrained space, over the active parameters.

        ``active`` broadcasts against theta.
        """
        self._check(theta)
        terms = self.log_prior_terms(theta)
        return (terms if active is None else torch.where(active, terms, 0.0)).sum(-1)

    def log_prior_terms(self, theta: Tensor, skip_normal: bool = False) -> Tensor:
        """(..., P) log prior density of every parameter; zero for the blocks that are skipped."""
        skipped = [skip_normal and _normal_moments(block.parameter) is not None for block in self.blocks]
        return torch.cat([torch.zeros_like(theta[..., block.span]) if skip else block.log_prior_terms(theta)
                          for block, skip in zip(self.blocks, skipped, strict=True)], -1)

    def sample_prior(self, shape: tuple[int, ...], generator: torch.Generator | None = None,
                     device: torch.device | str = "cpu") -> Tensor:
        """Prior draws of theta, (*shape, P)."""
        parts = []
        with seeded(generator):
            for block in self.blocks:
                events = block.shape[:len(block.shape) - block.parameter.event_dim]
                value = block.parameter.prior.sample(torch.Size(shape + events))
                free: Tensor = block.bijection.inv(value)  # type: ignore[assignment]
                parts.append(free.reshape(*shape, block.size))
        return torch.cat(parts, -1).to(device)

    @cached_property
    def prior_moments(self) -> tuple[Tensor, Tensor]:
        """Location and scale (P,) of the prior in theta: exact for normal priors of theta, else from draws."""
        location, scale = torch.zeros(self.size), torch.ones(self.size)
        for block in self.blocks:
            moments = _normal_moments(block.parameter) or _sampled_moments(block)
            location[block.span], scale[block.span] = moments
        return location, scale

    @cached_property
    def has_normal_prior(self) -> bool:
        """Every prior is normal in theta (normal on reals, log-normal on positives): KL terms have a closed form."""
        return bool(self.normal.all())

    @cached_property
    def normal(self) -> Tensor:
        """(P,) bool: the prior is normal in theta."""
        return torch.cat([torch.full((b.size,), _normal_moments(b.parameter) is not None) for b in self.blocks])

    @cached_property
    def event_places(self) -> Tensor:
        """(P,) long: place of every parameter within its prior's event (a simplex row, say); zero where entrywise."""
        return torch.cat([torch.arange(b.size) % b.event_size for b in self.blocks])

    @cached_property
    def longest_event(self) -> int:
        """Entries of the longest event; 1 where all priors are entrywise."""
        return int(self.event_places.max()) + 1

    @cached_property
    def roles(self) -> Tensor:
        """(P,) long: block index of every parameter."""
        return torch.cat([torch.full((b.size,), i, dtype=torch.long) for i, b in enumerate(self.blocks)])

    @cached_property
    def groups(self) -> dict[str, Tensor]:
        """For every named axis, (P,) long index of each parameter along it, -1 where it has none."""
        named = [axis for b in self.blocks for axis in b.parameter.shape if isinstance(axis, str)]
        return {axis: torch.cat([_axis_index(b, axis) for b in self.blocks]) for axis in dict.fromkeys(named)}

    @lru_cache(maxsize=64)  # noqa: B019  a layout lives as long as its model
    def fixed_noise(self, num: int, seed: int) -> Tensor:
        """(num, P) standard normal numbers that depend only on the seed and each parameter's place.

        An entry keeps its number when more features are added, so that padding changes nothing.
        """
        return torch.cat([_block_noise(b, num, seed * 1009 + i) for i, b in enumerate(self.blocks)], -1)

    def active(self, features: Tensor) -> Tensor:
        """(B, P) bool: parameters of the real features, given features (B, D)."""
        index = self.groups.get(FEATURES)
        if index is None:
            return torch.ones(features.shape[0], self.size, dtype=torch.bool, device=features.device)
        index = index.to(features.device)
        return (index < 0) | features[:, index.clamp(min=0)]

    @cached_property
    def scalar_names(self) -> tuple[str, ...]:
        """Names of the constrained scalars in order, such as ``weights[3]``."""
        return tuple(name for block in self.blocks for name in _entry_names(block))

    def _check(self, theta: Tensor) -> None:
        if theta.shape[-1] != self.size:
            raise InputError.of("theta", f"{theta.shape[-1]} parameters",
                                f"{self.size} ({self.num_features} features)")


def layout_of_one_entry(parameter: Parameter) -> Layout:
    """That of a single entry, (..., 1), of a parameter whose prior is over one entry at a time."""
    return Layout((Parameter(parameter.name, (), parameter.support, parameter.prior),), {}, 1)


def _length(axis: str | int, lengths: Mapping[str, int], name: str) -> int:
    if isinstance(axis, int):
        return axis
    if axis not in lengths:
        raise InputError.of(f"shape of {name}", repr(axis), f"a number or one of the axes {sorted(lengths)}")
    return lengths[axis]


def _entry_names(block: Block) -> list[str]:
    places = itertools.product(*(range(n) for n in block.shape))
    return [block.name + (f"[{','.join(map(str, place))}]" if place else "") for place in places]


def _axis_index(block: Block, axis: str) -> Tensor:
    nowhere = torch.full((block.size,), -1, dtype=torch.long)
    if axis not in block.parameter.shape:
        return nowhere
    place = block.parameter.shape.index(axis)
    coupled = place >= len(block.shape) - block.bijection.codomain.event_dim
    if coupled and block.flat_shape != block.shape:  # entries of a simplex have no coordinate of their own
        return nowhere
    view = [1] * len(block.flat_shape)
    view[place] = block.shape[place]
    return torch.arange(block.shape[place]).view(view).expand(block.flat_shape).reshape(-1)


def _check_prior_fits(parameter: Parameter) -> None:
    """The prior and the support must cover each other: tried on draws of both."""
    name, prior, bijection = parameter.name, parameter.prior, biject_to(parameter.support)
    coupled = bijection.codomain.event_dim
    if coupled > parameter.event_dim:
        raise InputError.of(f"prior of {name}", "an entrywise prior", f"a prior over {coupled}-d events")
    with seeded(generator_for(0)):
        draws = prior.sample(torch.Size((_FIT_DRAWS,)))
        inside = parameter.support.check(draws).all()
        free = torch.randn(bijection.inverse_shape(draws.shape), dtype=draws.dtype)
    covered = torch.isfinite(_copied(prior).log_prob(bijection(free))).all()
    if not (inside and covered):
        raise InputError.of(f"prior of {name}", f"{prior} on {prior.support}", f"a prior on {parameter.support}")


def _copied(prior: Distribution, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Distribution:
    """A copy on a device and in a precision, which does not validate values."""
    prior = copy.copy(prior)
    prior._validate_args = False
    for name, part in prior.__dict__.items():
        if isinstance(part, Tensor):
            prior.__dict__[name] = part.to(device, dtype if part.is_floating_point() else None)
        elif isinstance(part, Distribution):
            prior.__dict__[name] = _copied(part, device, dtype)
    return prior


def _check_event(parameter: Parameter, shape: tuple[int, ...]) -> None:
    event = shape[len(shape) - parameter.event_dim:]
    if event != tuple(parameter.prior.event_shape):
        raise InputError.of(f"prior of {parameter.name}", f"events of shape {tuple(parameter.prior.event_shape)}",
                            f"events of shape {event}")


def _block_noise(block: Block, num: int, seed: int) -> Tensor:
    names = block.parameter.shape
    place = names.index(FEATURES) if FEATURES in names and block.flat_shape == block.shape else None
    shape = block.flat_shape if place is None else (block.shape[place], *block.shape[:place], *block.shape[place + 1:])
    rest = shape if place is None else shape[1:]
    lead = 1 if place is None else shape[0]
    # numpy draws in sequence, so the first features of a longer block are those of a shorter one.
    values = torch.from_numpy(numpy.random.default_rng(seed).standard_normal((lead, num, *rest)))
    values = values.to(torch.get_default_dtype()).movedim(0, 1)  # (num, lead, *rest)
    values = values[:, 0] if place is None else values.movedim(1, 1 + place)
    return values.reshape(num, block.size)


def _normal_moments(parameter: Parameter) -> tuple[float, float] | None:
    prior, support = parameter.prior, parameter.support
    real = type(support) is type(constraints.real)
    positive = type(support) is type(constraints.positive) and float(support.lower_bound) == 0.0
    if (isinstance(prior, Normal) and real) or (isinstance(prior, LogNormal) and positive):
        return float(prior.loc), float(prior.scale)
    return None


def _sampled_moments(block: Block) -> tuple[Tensor, Tensor]:
    """Robust moments (median, interquartile range) of one entry, repeated over the block."""
    with seeded(generator_for(0)):
        value = block.parameter.prior.sample(torch.Size((_MOMENT_DRAWS,)))
    free: Tensor = block.bijection.inv(value)  # type: ignore[assignment]
    free = free.reshape(_MOMENT_DRAWS, -1)
    low, middle, high = torch.quantile(free, torch.tensor([0.25, 0.5, 0.75]), dim=0)
    repeats = block.size // free.shape[1]
    return middle.repeat(repeats), ((high - low) / 1.349).clamp(min=1e-3).repeat(repeats)
