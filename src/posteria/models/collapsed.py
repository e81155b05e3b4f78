"""The log joint of some of a model's parameters, the others integrated out exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from posteria.curvature import DenseCurvature, DiagonalCurvature, cholesky
from posteria.errors import UnsupportedError
from posteria.models.base import Model
from posteria.models.log_joint import ModelLogJoint
from posteria.types import Curvature, Dataset, Geometry

_LOG_2PI = math.log(2.0 * math.pi)


class CollapsedLogJoint:
    """Implements :class:`posteria.types.LogJoint` for log p(rest) + log p(D | rest).

    The parameters w that :meth:`Model.conjugate` names have a normal posterior given the rest, so that (Chib 1995)
    p(D, rest) = p(D, rest, w) / p(w | rest, D) at any w; here at the conditional mean, where it is best conditioned.
    As few parameters are left as possible, and their posterior is wider and smoother than together with w: the hidden
    weights of a network with few features hardly leave their prior, whatever the data.

    Raises:
        UnsupportedError: the model has no such parameters.
    """

    def __init__(self, model: Model, dataset: Dataset):
        self.model, self.dataset = model, dataset
        self.whole = ModelLogJoint(model, dataset)
        self.places = conjugate_places(model, dataset.x.shape[-1]).to(dataset.device)
        self.rest = (~self.places).nonzero()[:, 0]
        self.location, self.scale = self.whole.location[self.rest], self.whole.scale[self.rest]
        self.active, self.roles = self.whole.active[:, self.rest], self.whole.roles[self.rest]
        groups = {axis: index[self.rest] for axis, index in self.whole.groups.items()}
        self.groups: Mapping[str, Tensor] = {axis: index for axis, index in groups.items() if (index >= 0).any()}

    def __getitem__(self, index: Tensor) -> CollapsedLogJoint:
        return type(self)(self.model, self.dataset[index])

    def score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            density = self.density(point)
            (score,) = torch.autograd.grad(density.sum(), point)
        return density.detach(), torch.where(self.active[:, None], score.nan_to_num(0.0), 0.0)

    def geometry(self, z: Tensor) -> Geometry:
        diagonal = self.whole.geometry(self._completed(z)).curvature[..., self.rest]
        return Geometry(*self.score(z), diagonal)

    def curvature(self, z: Tensor, dense_up_to: int) -> Curvature:
        if z.shape[-1] > dense_up_to:
            return DiagonalCurvature(self.geometry(z).curvature.mean(1))
        batch, num = z.shape[:2]
        each = torch.arange(batch, device=z.device).repeat_interleave(num)
        joint = self.whole[each].curvature(self._completed(z).flatten(0, 1)[:, None], self.places.numel())
        assert isinstance(joint, DenseCurvature)  # who asks for that many gets it
        return DenseCurvature(self._schur(joint.matrix).unflatten(0, (batch, num)).mean(1))

    def expectation(self, z: Tensor, spread: Tensor, factor: Tensor | None, dense_up_to: int) -> None:
        return None

    def fixed_noise(self, num: int, seed: int) -> Tensor:
        return self.whole.fixed_noise(num, seed)[:, self.rest]

    def density(self, z: Tensor) -> Tensor:
        """(B, C) log density of z (B, C, Q), up to the constant that whitening makes."""
        return self.density_and_conditional(z)[0]

    def density_and_conditional(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same; theta (B, C, P), the others at their conditional mean; and the factor of their precision there."""
        theta = self._embedded(self.location + self.scale * z)
        mean, factor = self.model.conditional(theta, self.dataset)
        theta = theta.index_add(-1, self.places.nonzero()[:, 0], mean)
        size = self.whole.active[:, self.places].sum(-1)[:, None]
        log_conditional = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * _LOG_2PI * size
        return self.model.log_joint(theta, self.dataset) - log_conditional, theta, factor

    @torch.no_grad()
    def _completed(self, z: Tensor) -> Tensor:
        """(B, C, P) in the whole model's whitened parameters, the others at their conditional mean."""
        theta = self._embedded(self.location + self.scale * z)
        theta[..., self.places] = self.model.conditional(theta, self.dataset)[0]
        return (theta - self.whole.location) / self.whole.scale

    def _embedded(self, rest: Tensor) -> Tensor:
        zeros = rest.new_zeros(*rest.shape[:-1], self.places.numel())
        return zeros.index_copy(-1, self.rest, torch.where(self.active[:, None], rest, 0.0))

    def _schur(self, matrix: Tensor) -> Tensor:
        """(M, Q, Q) what is left of precisions (M, P, P) of all parameters once the others are integrated out."""
        across = matrix[:, self.places][:, :, self.rest]
        half = torch.linalg.solve_triangular(cholesky(matrix[:, self.places][:, :, self.places]), across, upper=False)
        return matrix[:, self.rest][:, :, self.rest] - half.mT @ half


def conjugate_places(model: Model, columns: int) -> Tensor:
    """(P,) bool: what :meth:`Model.conjugate` says.

    Raises:
        UnsupportedError: no parameter is.
    """
    places = model.conjugate(model.layout(columns))
    if places.all() or not places.any():
        raise UnsupportedError(f"collapse: {model.name or type(model).__name__} has no part that can be integrated out "
                               "and leaves another; takes regression networks and regression with the noise inferred, "
                               "with normal priors and normal noise")
    return places
