"""The log joint of a model whose observations see single numbers, term by term."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from posteria.models.base import Model
from posteria.models.outputs import OutputModel
from posteria.models.parameters import layout_of_one_entry
from posteria.types import Dataset

# The normal share of a prior that is not normal, so that precisions stay positive: its term makes up for it.
_LEAST_PULL = 0.01


def terms_of(model: Model, dataset: Dataset) -> LinearTerms | None:
    """The terms of a model's log joint; None where it is no such sum.

    It is one where outputs are linear in theta, the likelihood of an observation depends on one combination of them and
    on no other parameter, and priors are over one entry at a time.
    """
    if not isinstance(model, OutputModel) or not model.linear_outputs or model.head.contrast is None:
        return None
    return None if model.layout_of(dataset).longest_event > 1 else LinearTerms(model, dataset)


class LinearTerms:
    """Implements :class:`posteria.types.Terms`; see :func:`terms_of`, which makes it."""

    def __init__(self, model: OutputModel, dataset: Dataset):
        assert model.head.contrast is not None  # as terms_of has seen
        self.model, self.dataset = model, dataset
        self.layout = model.layout_of(dataset)
        like = dataset.x
        self.location, self.scale = (moment.to(like) for moment in self.layout.prior_moments)
        self.active = model.active(dataset)
        self.contrast = torch.tensor(model.head.contrast).to(like)
        normal = self.layout.normal.to(like.device)
        self.pull = torch.where(normal, 1.0, _LEAST_PULL).to(like)
        self.priors = (~normal).nonzero()[:, 0]
        self.real = torch.cat([dataset.observed, self.active[:, self.priors]], 1)
        self.num_terms, self.num_parameters = self.real.shape[1], len(normal)

    def __getitem__(self, index: Tensor) -> LinearTerms:
        return type(self)(self.model, self.dataset[index])

    def double(self) -> LinearTerms:
        """The same in double precision."""
        return type(self)(self.model, self.dataset.double())

    @property
    def directions(self) -> Tensor:
        return self._numbers[0]

    @property
    def offsets(self) -> Tensor:
        return self._numbers[1]

    @cached_property
    def _numbers(self) -> tuple[Tensor, Tensor]:
        """Directions (B, M, P) and offsets (B, M): those of observations, then the entries of z itself."""
        with torch.no_grad():
            line = self.model.linearize(self.location.expand(len(self.dataset), 1, -1), self.dataset)
            rows = line.jacobian(self.contrast[:, None].expand(*line.outputs.shape, 1))[:, 0] * self.scale
        offsets = (line.outputs[:, 0] * self.contrast).sum(-1)
        entries = torch.eye(self.num_parameters).to(rows)[self.priors].expand(len(rows), -1, -1)
        directions = torch.where(self.active[:, None], torch.cat([rows, entries], 1), 0.0)
        return directions, torch.cat([offsets, torch.zeros_like(entries[..., 0])], 1)

    @torch.no_grad()
    def values(self, at: Tensor, places: Tensor | None = None) -> Tensor:
        rows = self.dataset.x.shape[1]
        if places is None:
            places = torch.arange(self.num_terms, device=at.device).expand(len(at), -1)
        if not len(self.priors):
            return self._row_values(at, places)
        of_row = self._row_values(at, places.clamp(max=rows - 1))
        of_prior = self._prior_values(at, (places - rows).clamp(min=0))
        return torch.where((places < rows)[..., None], of_row, of_prior)

    def _row_values(self, at: Tensor, places: Tensor) -> Tensor:
        assert self.dataset.y is not None  # models of outputs have a target
        outputs = at.mT[..., None] * (self.contrast / self.contrast.square().sum())
        observed = torch.where(self.dataset.observed, self.dataset.y, 1.0)
        extra = {name: column[:, 0].gather(1, places)[:, None]
                 for name, column in self.model.column_values(self.dataset).items()}
        return self.model.head.log_prob(outputs, observed.gather(1, places)[:, None], extra).mT

    def _prior_values(self, at: Tensor, places: Tensor) -> Tensor:
        """Log priors at z_j = at, without their normal share."""
        entries = self.priors[places]
        theta = self.location[entries][..., None] + self.scale[entries][..., None] * at
        roles, density = self.layout.roles.to(entries.device)[entries], torch.zeros_like(at)
        for role in roles.unique().tolist():
            alone = layout_of_one_entry(self.model.parameters[role]).log_prior(theta[..., None])
            density = torch.where((roles == role)[..., None], alone, density)
        return density + 0.5 * _LEAST_PULL * at.square()
