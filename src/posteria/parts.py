"""The parts of an estimator by name: encoders and densities, fitted to each other and to a model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from posteria.ascent import climb
from posteria.densities import DENSITIES
from posteria.densities.base import Density
from posteria.densities.changed import ChangedTheta
from posteria.densities.collapsed import CollapsedTheta
from posteria.densities.gaussian import GaussianTheta
from posteria.densities.symmetric import Symmetrised, permutations_of_axis
from posteria.densities.tabulated import tabulate
from posteria.encoders import ENCODERS
from posteria.encoders.base import Encoder, EncoderSpec
from posteria.errors import InputError
from posteria.models import Model
from posteria.models.collapsed import CollapsedLogJoint, conjugate_places
from posteria.models.log_joint import ModelLogJoint
from posteria.models.whitened import Whitened, whitened
from posteria.types import ContextSpec, Dataset, LogJoint, ThetaDistribution

# Of the search for the mode of a single parameter.
_CLIMBS, _DAMPING = 60, 1.0
# For the shares of a mixture: an error of a few tenths of a nat.


@dataclass(frozen=True)
class Part:
    """A registered encoder or density by name, with the JSON options of its constructor."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, part: str | Part | Mapping[str, Any]) -> Part:
        if isinstance(part, Part):
            return part
        return cls(part) if isinstance(part, str) else cls(**part)

    def with_options(self, **options: Any) -> Part:
        """The same with other values of some options."""
        return Part(self.name, {**self.options, **options})


def encoder_spec(model: Model, columns: int, density: Part) -> EncoderSpec:
    """What an encoder for a model, a number of columns and a density needs to know."""
    correlated = DENSITIES[density.name].correlated if density.name in DENSITIES else True
    # What is left of a collapsed network is looked for around the prior's centre, where its symmetries hold.
    exchangeable = bool(model.exchangeable_axes) and not is_collapsed(density)
    return EncoderSpec(columns, model.target != "none", getattr(model, "num_classes", 0), len(model.parameters),
                       exchangeable, correlated)


def build_encoder(part: Part, spec: EncoderSpec) -> Encoder:
    """The encoder of that name.

    Raises:
        InputError: an unknown name, or options that it does not take.
    """
    return _build(ENCODERS, "encoder", part, spec)


def build_density(part: Part, encoder: Encoder, model: Model, columns: int | None) -> Density:
    """The density of that name, for what an encoder gives.

    Args:
        part: name and options; ``symmetrise`` averages over relabellings (:class:`Symmetrised`), ``collapse`` and
            ``whiten`` are left to :func:`over_theta`, ``exact_terms`` to the estimator.
        encoder: whose contexts it reads.
        model: whose theta it is over.
        columns: of datasets, where all have as many; else None.

    Raises:
        InputError: an unknown name, options that it does not take, or a model without relabellings.
        UnsupportedError: a model of which nothing can be integrated out.
    """
    collapsed = is_collapsed(part)
    places = conjugate_places(model, columns or 1 + len(model.extra_columns)) if collapsed else None
    size = None if columns is None else int((~places).sum()) if places is not None else model.layout(columns).size
    spec = ContextSpec(encoder.summary_dim, encoder.token_dim, size, encoder.located)
    options = dict(part.options)
    symmetrise = options.pop("symmetrise", False)
    for done in ("collapse", "whiten", "exact_terms"):  # where the data are
        options.pop(done, None)
    density = _build(DENSITIES, "density", Part(part.name, options), spec)
    if not symmetrise:
        return density
    if not model.exchangeable_axes:
        raise InputError.of("symmetrise", "True", "a model with exchangeable axes (a Gaussian mixture, say)")
    return Symmetrised(density, _Permutations(model))


def is_collapsed(density: Part) -> bool:
    """What can be integrated out is left to its posterior given the rest (:mod:`posteria.densities.collapsed`)."""
    return bool(density.options.get("collapse", False))


def is_whitened(density: Part) -> bool:
    """Encoder and density work in parameters in which priors are normal (:mod:`posteria.models.whitened`)."""
    return bool(density.options.get("whiten", False))


def takes_exact_terms(density: Part) -> bool:
    """Posteriors that are far from normal get exact terms (:mod:`posteria.densities.exact_terms`)."""
    return bool(density.options.get("exact_terms", False))


def log_joint_for(density: Part, model: Model, dataset: Dataset) -> LogJoint:
    """What an encoder sees of a model, for a density."""
    model = whitened(model) if is_whitened(density) else model
    return CollapsedLogJoint(model, dataset) if is_collapsed(density) else ModelLogJoint(model, dataset)


def over_theta(base: ThetaDistribution, density: Part, model: Model, dataset: Dataset) -> ThetaDistribution:
    """The distribution over theta, from what a density gives for :func:`log_joint_for`."""
    own = whitened(model) if is_whitened(density) else model
    whole = completed(base, own, dataset) if is_collapsed(density) else base
    if not isinstance(own, Whitened):
        return whole
    return ChangedTheta(whole, lambda u: own.theta(u, dataset), lambda theta: own.units(theta, dataset),
                        lambda u: own.log_slopes(u, dataset))


def completed(base: ThetaDistribution, model: Model, dataset: Dataset) -> CollapsedTheta:
    """The distribution over theta, from one over the rest of a collapsed model's parameters."""
    places = conjugate_places(model, dataset.x.shape[-1]).to(dataset.device)

    def conditional(theta: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return model.conditional(theta, dataset if len(index) == len(dataset) else dataset[index])

    return CollapsedTheta(base, conditional, places, model.active(dataset))


@torch.no_grad()
def known_exactly(model: Model) -> bool:
    """All parameters but at most one can be integrated out, so that there is nothing to search for or to learn."""
    places = model.conjugate(model.layout(1 + len(model.extra_columns)))
    return bool(places.any()) and int((~places).sum()) <= 1


@torch.no_grad()
def exact_distribution(model: Model, dataset: Dataset) -> ThetaDistribution:
    """The exact posterior of a model that is :func:`known_exactly`.

    Where one parameter cannot be integrated out, it is looked up in a table of its log density.
    """
    wide, kind = dataset.double(), dataset.x.dtype
    if model.conjugate(model.layout_of(dataset)).all():
        mean, factor = (part[:, 0].to(kind) for part in model.conditional(_nowhere(model, wide), wide))
        return GaussianTheta(mean, torch.ones_like(mean), model.active(dataset), factor)
    joint = CollapsedLogJoint(model, wide)
    location, scale = joint.location[0].double(), joint.scale[0].double()
    guess = climb(joint, location.new_zeros(len(dataset), 1), _CLIMBS, _DAMPING, 1)

    def log_density(theta: Tensor) -> Tensor:
        return joint.density((theta - location)[..., None] / scale)

    base = tabulate(log_density, location + scale * guess.z[:, 0], scale * guess.spread[:, 0])
    return completed(replace(base, dtype=kind), model, dataset)


def _nowhere(model: Model, dataset: Dataset) -> Tensor:
    """(B, 1, P) zeros."""
    return dataset.x.new_zeros(len(dataset), 1, model.layout_of(dataset).size)


def _build(registry: Mapping[str, Any], kind: str, part: Part, spec: Any) -> Any:
    if part.name not in registry:
        raise InputError.of(kind, repr(part.name), f"one of {sorted(registry)}")
    try:
        return registry[part.name](spec, **part.options)
    except TypeError as error:
        raise InputError.of(f"options of {kind} {part.name}", str(dict(part.options)), str(error)) from error


class _Permutations:
    """Number of parameters -> permutations of the model's first exchangeable axis, for :class:`Symmetrised`."""

    def __init__(self, model: Model):
        self.model = model
        self.known: dict[int, Tensor] = {}

    def __call__(self, size: int) -> Tensor:
        if size not in self.known:
            layouts = (self.model.layout(n) for n in itertools.count(1 + len(self.model.extra_columns)))
            layout = next(layout for layout in layouts if layout.size >= size)
            self.known[size] = permutations_of_axis(layout.roles, layout.groups[self.model.exchangeable_axes[0]])
        return self.known[size]
