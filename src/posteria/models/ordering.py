"""A canonical order of what can change places: the components of a mixture, hidden units.

Posteriors of parameters that the likelihood does not tell apart are the same under every relabelling; means and
standard deviations say something about them in an order that no relabelling changes. Components are ordered along the
data's widest direction, not along a coordinate, where two may be tied and would change places from draw to draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.errors import UnsupportedError
from posteria.models.base import Model
from posteria.models.parameters import FEATURES, Block
from posteria.types import Dataset, ThetaDistribution


def in_order(model: Model, dataset: Dataset, theta: Tensor) -> Tensor:
    """Theta (B, ..., P) with the entries of exchangeable axes in order along the data's widest direction.

    All parameters of an entry move together. Where no parameter of an entry is a vector over the features, its first
    number decides.

    Args:
        model: what is not exchangeable stays where it is.
        dataset: B datasets.
        theta: unconstrained.
    """
    ordered, direction = theta.clone(), widest_direction(dataset).to(theta)
    for axis in model.exchangeable_axes:
        blocks = [block for block in model.layout_of(dataset).blocks if axis in block.parameter.shape]
        entries = [_entries(block, axis, ordered) for block in blocks]
        along = [i for i, block in enumerate(blocks) if FEATURES in block.parameter.shape
                 and entries[i].shape[-1] == direction.shape[-1]]
        if along:
            key = (entries[along[0]] * direction.view(len(theta), *[1] * (theta.ndim - 1), -1)).sum(-1)
        else:
            key = entries[0][..., 0]
        order = key.argsort(-1)[..., None]
        for block, values in zip(blocks, entries, strict=True):
            moved = values.gather(-2, order.expand_as(values))
            shape = block.take(theta).movedim(_place(block, axis), theta.ndim - 1).shape
            ordered[..., block.span] = moved.view(shape).movedim(theta.ndim - 1, _place(block, axis)).flatten(
                theta.ndim - 1)
    return ordered


class InOrder:
    """A distribution whose draws are put in order; implements :class:`posteria.types.ThetaDistribution` but densities.

    Args:
        distribution: over theta (B, P).
        model: says what is exchangeable.
        dataset: B datasets.
    """

    def __init__(self, distribution: ThetaDistribution, model: Model, dataset: Dataset):
        self.distribution, self.model, self.dataset = distribution, model, dataset
        self.active = distribution.active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, num_samples, P): the distribution's own draws, in order."""
        return in_order(self.model, self.dataset, self.distribution.rsample(num_samples, generator))

    def log_prob(self, theta: Tensor) -> Tensor:
        """Raise an UnsupportedError."""
        raise UnsupportedError("log_prob: this posterior's components are in order, its density is that of all orders; "
                               "takes the posterior that in_order() was asked of")

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Raise an UnsupportedError, as :meth:`log_prob`."""
        theta = self.rsample(num_samples, generator)
        return theta, self.log_prob(theta)

    def detach(self) -> InOrder:
        """The same with all its parameters cut from the graph."""
        return InOrder(self.distribution.detach(), self.model, self.dataset)

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> Tensor | None:
        """None: there is no closed form."""
        return None


def widest_direction(dataset: Dataset) -> Tensor:
    """(B, D) of unit length: the first eigenvector of the spatial sign covariance, which outliers do not turn.

    Visuri, Koivunen & Oja 2000. Its largest number is positive.
    """
    x = torch.where(dataset.observed[..., None], dataset.x.double(), torch.nan)
    away = (x - x.nanmedian(1, keepdim=True).values).nan_to_num(0.0)
    sign = torch.nn.functional.normalize(away, dim=-1)
    direction = torch.linalg.eigh(sign.mT @ sign).eigenvectors[..., -1]
    return direction * direction.gather(-1, direction.abs().argmax(-1, keepdim=True)).sign()


def _place(block: Block, axis: str) -> int:
    return block.parameter.shape.index(axis) - len(block.shape)


def _entries(block: Block, axis: str, theta: Tensor) -> Tensor:
    """(B, ..., K, R) the numbers of every entry along an axis."""
    values = block.take(theta).movedim(_place(block, axis), theta.ndim - 1)
    return values.reshape(*values.shape[:theta.ndim], -1)
