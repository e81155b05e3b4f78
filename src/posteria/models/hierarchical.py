"""Hierarchical models: every group has an intercept, and if wanted slopes, of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, HalfNormal, constraints

from posteria.errors import InputError
from posteria.models.blocks import in_blocks
from posteria.models.extra_columns import whole_column
from posteria.models.families import build_head
from posteria.models.heads import GaussianHead
from posteria.models.outputs import OutputModel
from posteria.models.parameters import FEATURES, Parameter
from posteria.types import Dataset

_GROUPS = "groups"


@dataclass(frozen=True)
class _Groups:
    """Which group every row is in. Entries of groups and of rows come with draws last, where copies are fast."""

    place: Tensor  # (B N) long, counted through all datasets
    shape: tuple[int, int]  # B, G

    @classmethod
    def of(cls, index: Tensor, count: int) -> _Groups:
        """From groups (B, N)."""
        first = count * torch.arange(len(index), device=index.device)
        return cls((index + first[:, None]).flatten(), (len(index), count))

    def at_rows(self, values: Tensor) -> Tensor:
        """(B, N, ...) values of every row's group, from (B, G, ...)."""
        return values.flatten(0, 1).index_select(0, self.place).unflatten(0, (self.shape[0], -1))

    def sums(self, rows: Tensor) -> Tensor:
        """(B, G, ...) sums over the rows (B, N, ...) of each group."""
        nothing = rows.new_zeros(self.shape[0] * self.shape[1], *rows.shape[2:])
        return nothing.index_add(0, self.place, rows.flatten(0, 1)).unflatten(0, self.shape)

    def member(self) -> Tensor:
        """(B, N, G) bool."""
        index = self.place.unflatten(0, (self.shape[0], -1)) % self.shape[1]
        return index[..., None] == torch.arange(self.shape[1], device=index.device)


@dataclass(frozen=True)
class _Effects:
    """How one kind of group effects, scale * offsets, depends on theta; E = 1 for intercepts, D for slopes."""

    scale: Tensor  # (B, S, E) positive
    offsets: Tensor  # (B, S, G, E)
    inputs: Tensor  # (B, N, E): ones for intercepts, the features for slopes
    groups: _Groups

    @property
    def values(self) -> Tensor:
        """(B, S, G, E) effects of the groups."""
        return self.scale[:, :, None] * self.offsets

    def outputs(self) -> Tensor:
        """(B, S, N) what the effects add."""
        return (self._by_row() * self.inputs[..., None]).sum(2).mT

    def pull_back(self, cotangent: Tensor, power: int) -> Tensor:
        """(B, S, E + G E) Jᵀ v for v (B, S, N), in (log scale, offsets); of the squared entries of J for power 2."""
        rows = cotangent.mT[:, :, None] * (self.inputs**power)[..., None]  # (B, N, E, S)
        pulled = self.groups.sums(rows).permute(0, 3, 1, 2)  # (B, S, G, E)
        scales = (pulled * self.values**power).sum(2)
        return torch.cat([scales, (pulled * self.scale[:, :, None] ** power).flatten(2)], -1)

    def jacobian(self) -> Tensor:
        """(B, S, N, E + G E) derivatives of the outputs."""
        member = self.groups.member()[:, None, :, :, None]
        offsets = member * (self.inputs[:, None] * self.scale[:, :, None])[:, :, :, None]
        scales = self._by_row().permute(0, 3, 1, 2) * self.inputs[:, None]
        return torch.cat([scales, offsets.flatten(3)], -1)

    def _by_row(self) -> Tensor:
        """(B, N, E, S) effects of every row's group."""
        return self.groups.at_rows(self.values.permute(0, 2, 3, 1))


@dataclass(frozen=True)
class _HierarchicalLine:
    """Outputs (B, S, N, 1) of the common line and the effects of the groups."""

    outputs: Tensor
    design: Tensor  # (B, N, D + 1): the features and ones
    effects: tuple[_Effects, ...]

    def pull_back(self, cotangent: Tensor) -> Tensor:
        return self._pull(cotangent[..., 0], 1)

    def pull_back_squared(self, root: Tensor) -> Tensor:
        # A row belongs to one group, so every entry of its Jacobian is one product.
        return self._pull((root[..., 0, :] ** 2).sum(-1), 2)

    def jacobian(self, root: Tensor) -> Tensor:
        common = self.design[:, None].expand(-1, root.shape[1], -1, -1)
        whole = torch.cat([common, *(effect.jacobian() for effect in self.effects)], -1)
        return (root[..., 0, :, None] * whole[:, :, :, None]).flatten(2, 3)

    def _pull(self, cotangent: Tensor, power: int) -> Tensor:
        common = cotangent @ self.design**power
        return torch.cat([common, *(effect.pull_back(cotangent, power) for effect in self.effects)], -1)


class Hierarchical(OutputModel):
    """y ~ family(intercept + a_g + x·(weights + b_g)) for a row of group g (Gelman & Hill 2007, chapters 12 and 13).

    The group's intercept is a_g = group_scale * group_offsets[g], and its slopes, where they vary, are
    b_g = slope_scale * slope_offsets[g], entry by entry. Offsets are N(0, 1) and scales half-normal(1) by default:
    not centred, so that the prior is nearly normal in every parameter and there is no funnel a priori
    (Papaspiliopoulos, Roberts & Sköld 2007).

    The first column of x is ``group``, a whole number from 0 to groups - 1; then come the family's extra columns, then
    the features. Groups without rows keep their prior. Eight schools is the family "gaussian" with noise="column"
    (a column ``noise`` of standard deviations), groups=8, and one masked feature, as a line needs one.

    Args:
        family: a key of :data:`posteria.models.families.FAMILIES` with one output (not "categorical").
        groups: number of groups G, 2 or more.
        varying_slopes: slopes vary between groups too.
        priors: distributions per parameter name, in place of the defaults.
        options: the family's own, see :func:`posteria.models.families.build_head`.

    Raises:
        InputError: an unknown family or option, a family of several outputs, fewer than two groups.

    Examples:
        >>> Hierarchical(groups=2).layout(2).scalar_names
        ('weights[0]', 'intercept', 'group_scale', 'group_offsets[0]', 'group_offsets[1]', 'noise_scale')
    """

    name = "hierarchical"
    independent_axis, separate_entries = _GROUPS, True

    def __init__(self, family: str = "gaussian", groups: int = 8, varying_slopes: bool = False,
                 priors: Mapping[str, Distribution] | None = None, **options: Any):
        if not isinstance(groups, int) or groups < 2:
            raise InputError.of("groups", repr(groups), "a number of groups, 2 or more")
        head = build_head(family, **options)
        if head.num_outputs != 1:
            raise InputError.of("family", repr(family), "a family with one output per row")
        self.num_groups, self.varying_slopes = groups, varying_slopes
        self._options = {"family": family, "groups": groups, "varying_slopes": varying_slopes, **options}
        group = whole_column("group", 0, groups - 1, constraints.integer_interval(0, groups - 1), filling=0.0)
        super().__init__(head, _blocks(varying_slopes), {_GROUPS: groups}, priors, (group,))
        scales = ("group_scale", "slope_scale") if varying_slopes else ("group_scale",)
        self.hyperparameters = (*scales, *(parameter.name for parameter in head.parameters))
        self.normal_given_hyperparameters = isinstance(head, GaussianHead)

    @torch.no_grad()
    def likelihood_blocks(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Score, and the information of the line and the offsets given scales: a row sees the line and one group."""
        line, extra = self.linearize(theta, dataset), self._extra(theta, dataset)
        information = self.head.root(line.outputs, extra)[..., 0, :].square().sum(-1)
        whole, grouped = self._sums(torch.where(dataset.observed[:, None], information, 0.0), dataset)
        scale = self._scales(theta, dataset)[:, :, None, :, None]
        cross = grouped * scale
        _, score = self._score_along(line, theta, dataset)  # type: ignore[arg-type]
        return score, (whole, cross, cross[..., self._varying(whole)] * scale.mT)

    @torch.no_grad()
    def likelihood_by_entry(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return in_blocks(self._summed_by_group, theta, dataset)[0]

    def _summed_by_group(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor]:
        rows = torch.where(dataset.observed[:, None], self.row_log_prob(theta, dataset), 0.0)
        return (self._groups(dataset).sums(rows.mT.contiguous()).mT,)

    def _sums(self, weights: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        """Sums of weights (B, S, N) times the design of M = D + 1 columns twice.

        Over all rows (B, S, M, M); and over those of each group (B, S, G, E, M), once only the varying columns.
        """
        design, groups = self._design(dataset), self._groups(dataset)
        pairs = design[..., None] * design[..., None, :]  # (B, N, M, M)
        whole = (weights @ pairs.flatten(2)).unflatten(-1, pairs.shape[2:])
        last = weights.mT.contiguous()[:, :, None]
        grouped = [groups.sums(pairs[:, :, column, :, None] * last) for column in self._varying(whole)]
        return whole, torch.stack(grouped, 2).permute(0, 4, 1, 2, 3)

    def _varying(self, like: Tensor) -> list[int]:
        """Columns of the design with effects of the groups, in their order: the ones, then for slopes the features."""
        ones = like.shape[-1] - 1
        return [ones, *range(ones)] if self.varying_slopes else [ones]

    def _scales(self, theta: Tensor, dataset: Dataset) -> Tensor:
        """(B, S, E) of the effects."""
        layout = self.layout_of(dataset)
        scale = layout["group_scale"].constrained(theta)[..., None]
        return torch.cat([scale, layout["slope_scale"].constrained(theta)], -1) if self.varying_slopes else scale

    def _design(self, dataset: Dataset) -> Tensor:
        """(B, N, D + 1) the features and ones."""
        features = self._features(dataset)
        return torch.cat([features, torch.ones_like(features[..., :1])], -1)

    def _groups(self, dataset: Dataset) -> _Groups:
        return _Groups.of(self.column_values(dataset)["group"][:, 0].long(), self.num_groups)

    def linearize(self, theta: Tensor, dataset: Dataset) -> _HierarchicalLine:
        layout, features, design = self.layout_of(dataset), self._features(dataset), self._design(dataset)
        groups, ones = self._groups(dataset), torch.ones_like(features[..., :1])
        offsets = layout["group_offsets"].take(theta)[..., None]
        effects = (_Effects(layout["group_scale"].constrained(theta)[..., None], offsets, ones, groups),)
        if self.varying_slopes:
            slopes, scale = layout["slope_offsets"].take(theta), layout["slope_scale"].constrained(theta)
            effects += (_Effects(scale, slopes, features, groups),)
        values = theta[..., :design.shape[-1]] @ design.mT  # weights and intercept come first
        for effect in effects:
            values = values + effect.outputs()
        return _HierarchicalLine(values[..., None], design, effects)


def _blocks(varying_slopes: bool) -> tuple[Parameter, ...]:
    scale = HalfNormal(1.0, validate_args=False)
    common = (Parameter("weights", (FEATURES,)), Parameter("intercept"),
              Parameter("group_scale", (), constraints.positive, scale), Parameter("group_offsets", (_GROUPS,)))
    slopes = (Parameter("slope_scale", (FEATURES,), constraints.positive, scale),
              Parameter("slope_offsets", (_GROUPS, FEATURES)))
    return (*common, *slopes) if varying_slopes else common
