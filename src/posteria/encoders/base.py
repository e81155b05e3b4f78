"""Encoder: dataset (and log joint) -> context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from posteria.errors import UnsupportedError
from posteria.types import Context, Dataset, LogJoint


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder must know to build itself.

    Attributes:
        num_columns: the most columns of x it will see (datasets arrive padded to it);
            encoders without a maximum ignore it.
        has_y: datasets carry a target.
        num_classes: number of classes when y is a class index, else 0.
        num_blocks: number of named parameter blocks of the model.
        exchangeable: the model has an axis whose permutation leaves the likelihood unchanged
            (hidden units, mixture components), so that zero is a saddle of the log joint.
        full_covariance: the density that reads the context models correlations.
    """

    num_columns: int
    has_y: bool = True
    num_classes: int = 0
    num_blocks: int = 1
    exchangeable: bool = False
    full_covariance: bool = True

    @property
    def row_dim(self) -> int:
        """Width of one row as :func:`rows_of` gives it."""
        return self.num_columns + (max(1, self.num_classes) if self.has_y else 0)


class Encoder(nn.Module, ABC):
    """Base class of all encoders. Constructors take ``(spec, **options)``, options being JSON values.

    Attributes:
        summary_dim: width E of ``Context.summary``.
        token_dim: width T of ``Context.tokens``, or None.
        located: the context carries a location and a scale.
        free_size: any number of features is accepted at inference; else datasets must be
            padded to ``spec.num_columns``.
        order_invariant: permuting rows does not change the context; a class's answer, or an instance's where an
            option decides.
        needs_likelihood: uses ``log_joint.geometry``.
    """

    free_size: ClassVar[bool] = False
    needs_likelihood: ClassVar[bool] = False
    located: ClassVar[bool] = False
    order_invariant: bool = True
    summary_dim: int
    token_dim: int | None = None

    def for_spec(self, spec: EncoderSpec) -> Encoder:
        """The same weights for another model.

        Raises:
            UnsupportedError: they are made for one model.
        """
        raise UnsupportedError(f"encoder: {type(self).__name__} is made for one model; takes the iterative encoder "
                               "with the option shared=True")

    def looking(self, **search: int) -> Encoder:
        """The same weights with another length of search.

        Raises:
            UnsupportedError: it does not search.
        """
        raise UnsupportedError(f"encoder: {type(self).__name__} does not search; takes the iterative encoder")

    @abstractmethod
    def forward(self, dataset: Dataset, log_joint: LogJoint) -> Context:
        """Context of B datasets; ``context.active`` is ``log_joint.active``."""


def rows_of(dataset: Dataset, spec: EncoderSpec) -> Tensor:
    """(B, N, row_dim): x beside y (one-hot for classes); zero at padding."""
    parts = [dataset.x * dataset.features[:, None]]
    if spec.has_y and dataset.y is not None:
        y = dataset.y
        classes = spec.num_classes
        parts.append(nn.functional.one_hot(y.long(), classes).to(y.dtype) if classes else y[..., None])
    return torch.cat(parts, -1) * dataset.observed[..., None]


def sizes_of(dataset: Dataset, visible: bool = True) -> Tensor:
    """(B, 2): log n and log of the number of features, centred on typical values, so that size is visible.

    Args:
        dataset: B datasets.
        visible: False gives every dataset the typical values, zero: for ablations only, since a summary without
            the size cannot say how narrow a posterior is.
    """
    if not visible:
        return dataset.x.new_zeros(len(dataset), 2)
    n = dataset.num_observations.clamp(min=1)
    d = dataset.num_features.to(n.dtype).clamp(min=1)
    return torch.stack([torch.log(n / 96.0), torch.log(d / 10.0)], -1)
