"""Symmetrised density: averages a density over permutations that leave the posterior unchanged.

For a group G of permutations of theta (the labels of a mixture's components, say)

    q_sym(theta) = 1/|G| sum_{pi in G} q(pi theta),

so a base density that finds one labelling gives all of them, in equal shares. A draw is a base draw put
through a permutation chosen at random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.densities.base import Density
from posteria.densities.flow import FlowTheta
from posteria.errors import InputError
from posteria.types import Context, ThetaDistribution

# Every density evaluation costs one base evaluation per permutation: 5! is where that stays affordable.
_MOST_PERMUTATIONS = 120


def permutations_of_axis(roles: Tensor, group: Tensor) -> Tensor:
    """All permutations of theta that permute the entries of one exchangeable axis.

    Args:
        roles: (P,) long, block of each parameter.
        group: (P,) long, position of each parameter along the axis, -1 where it has none.

    Returns:
        (k!, P) long for an axis of length k; theta[..., result[g]] is theta with the axis permuted.
        The first row is the identity. Parameters with equal other coordinates trade places, which
        relies on the row-major order inside blocks.

    Raises:
        InputError: an axis longer than 5, or a block in which positions have different numbers of parameters.

    Examples:
        >>> permutations_of_axis(torch.tensor([0, 0, 1]), torch.tensor([0, 1, -1]))
        tensor([[0, 1, 2],
                [1, 0, 2]])
    """
    length = int(group.max()) + 1 if group.numel() else 0
    if math.factorial(max(length, 0)) > _MOST_PERMUTATIONS:
        raise InputError.of("group", f"an axis of length {length}", "an exchangeable axis of length at most 5")
    members = [_members(roles, group, role, length) for role in roles[group >= 0].unique().tolist()]
    result = []
    for order in itertools.permutations(range(length)):
        index = torch.arange(len(roles))
        for member in members:
            index[member] = member[list(order)]
        result.append(index)
    return torch.stack(result)


def _members(roles: Tensor, group: Tensor, role: int, length: int) -> Tensor:
    """(k, n) parameters of one block by position along the axis."""
    places = [((roles == role) & (group == i)).nonzero().squeeze(-1) for i in range(length)]
    if len({len(place) for place in places}) > 1:
        raise InputError.of("group", f"{[len(place) for place in places]} parameters along the axis in block {role}",
                            "as many at every position")
    return torch.stack(places)


@dataclass(frozen=True)
class SymmetrisedTheta:
    """Equal mixture of a distribution's images under a group of permutations (G, P)."""

    base: ThetaDistribution
    permutations: Tensor

    @property
    def active(self) -> Tensor:
        """(B, P) bool."""
        return self.base.active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, S, P) reparametrised draws; zero at inactive parameters."""
        theta = self.base.rsample(num_samples, generator)
        chosen = self._labels(len(theta), num_samples, theta.device, generator)
        return theta.gather(-1, self.permutations[chosen])

    def log_prob(self, theta: Tensor) -> Tensor:
        """(B, S) log density of theta (B, S, P) over the active parameters."""
        return self._at_images(theta, self.permutations).logsumexp(-1) - math.log(len(self.permutations))

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (B, S, P) and their log density (B, S)."""
        theta, own = self.base.rsample_and_log_prob(num_samples, generator)
        return self._with_images(theta, own, self._labels(len(theta), num_samples, theta.device, generator))

    def draws_of(
        self, index: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws (b, S, P) and their log density (b, S) of some datasets (b,) alone, the same as among all."""
        if not isinstance(self.base, FlowTheta):
            theta, log_prob = self.rsample_and_log_prob(num_samples, generator)
            return theta[index], log_prob[index]
        theta, own = self.base.draws_of(index, num_samples, generator)
        chosen = self._labels(len(self.active), num_samples, theta.device, generator)[index]
        return replace(self, base=self.base[index])._with_images(theta, own, chosen)

    def _with_images(self, theta: Tensor, own: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Relabelled draws and their density, from draws (B, S, P) and that of the base (B, S)."""
        # All images of a draw have one density, and the draw's own share of it is known.
        moved = (self.permutations != torch.arange(theta.shape[-1], device=theta.device)).any(-1)
        each = torch.cat([own[..., None], self._at_images(theta, self.permutations[moved])], -1)
        log_prob = each.logsumexp(-1) - math.log(len(self.permutations))
        return theta.gather(-1, self.permutations[chosen]), log_prob

    def _labels(self, batch: int, num_samples: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """(B, S) permutations chosen at random."""
        return torch.randint(len(self.permutations), (batch, num_samples), generator=generator, device=device)

    def _at_images(self, theta: Tensor, permutations: Tensor) -> Tensor:
        """(B, S, K) log density of the base at K images of theta (B, S, P)."""
        images = theta[..., permutations].flatten(1, 2)
        return self.base.log_prob(images).unflatten(1, (theta.shape[1], len(permutations)))

    def detach(self) -> SymmetrisedTheta:
        """The same with all its parameters cut from the graph."""
        return SymmetrisedTheta(self.base.detach(), self.permutations)

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> None:
        """None: there is no closed form."""
        return None


class Symmetrised(Density):
    """Wraps a density so that it does not change under permutations of exchangeable parameters.

    Args:
        density: the density to average.
        permutations_of: number of parameters P -> (G, P) long, a group of permutations that maps active
            parameters to active ones (as :func:`permutations_of_axis` gives it).

    Examples:
        >>> from posteria.densities.gaussian import DiagonalGaussian
        >>> from posteria.types import ContextSpec
        >>> base = DiagonalGaussian(ContextSpec(summary_dim=4, token_dim=None, num_parameters=2))
        >>> density = Symmetrised(base, lambda size: torch.tensor([[0, 1], [1, 0]]))
        >>> density(Context(torch.zeros(1, 4), torch.ones(1, 2, dtype=torch.bool))).rsample(5).shape
        torch.Size([1, 5, 2])
    """

    def __init__(self, density: Density, permutations_of: Callable[[int], Tensor]):
        super().__init__(density.spec)
        self.density = density
        self.permutations_of = permutations_of

    def forward(self, context: Context) -> SymmetrisedTheta:
        """The symmetrised distribution.

        Raises:
            InputError: the permutations are not (G, P) permutations of the context's parameters.
        """
        size = context.active.shape[1]
        permutations = self.permutations_of(size).to(context.active.device)
        _check(permutations, size)
        return SymmetrisedTheta(self.density(context), permutations)


def _check(permutations: Tensor, size: int) -> None:
    if permutations.ndim != 2 or permutations.shape[1] != size:
        raise InputError.of("permutations_of", f"shape {tuple(permutations.shape)}", f"shape (permutations, {size})")
    if not 1 <= len(permutations) <= _MOST_PERMUTATIONS:
        raise InputError.of("permutations_of", f"{len(permutations)} permutations", f"1 to {_MOST_PERMUTATIONS}")
    if (permutations.sort(-1).values != torch.arange(size, device=permutations.device)).any():
        raise InputError.of("permutations_of", "rows that are not permutations", f"permutations of 0..{size - 1}")
    identities = int((permutations == torch.arange(size, device=permutations.device)).all(-1).sum())
    if identities != 1:
        raise InputError.of("permutations_of", f"{identities} rows that change nothing", "a group: one of them")
