"""What the ladder knows of the posteriors of B datasets. Everything is in prior-whitened parameters z."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posteria.refinement.arrow import Arrow
from posteria.refinement.units import NormalUnits
from posteria.types import Curvature, Dataset, Geometry, LogJoint


class Counted:
    """A log joint that counts its evaluations; implements :class:`posteria.types.LogJoint`.

    Attributes:
        evaluations: points per dataset at which density, score or curvature were asked for; those of some of the
            datasets count as if they were of all.
    """

    def __init__(self, joint: LogJoint, whole: Counted | None = None):
        self._joint, self._whole, self._own = joint, whole, 0
        self.location, self.scale, self.active = joint.location, joint.scale, joint.active
        self.roles: Tensor = joint.roles
        self.groups: Mapping[str, Tensor] = joint.groups
        self.dataset: Dataset = joint.dataset

    def __getitem__(self, index: Tensor) -> Counted:
        """That of the chosen datasets; what it is asked counts here."""
        return Counted(self._joint[index], self._whole or self)

    @property
    def evaluations(self) -> int:
        return self._own if self._whole is None else self._whole.evaluations

    @evaluations.setter
    def evaluations(self, number: int) -> None:
        if self._whole is None:
            self._own = number
        else:
            self._whole.evaluations = number

    def score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`posteria.types.LogJoint.score`."""
        self.evaluations += z.shape[1]
        return self._joint.score(z)

    def counting(self, steer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A function of z (B, C, P) whose calls count here, too."""
        def counted(z: Tensor) -> Tensor:
            self.evaluations += z.shape[1]
            return steer(z)

        return counted

    def geometry(self, z: Tensor) -> Geometry:
        """See :meth:`posteria.types.LogJoint.geometry`."""
        self.evaluations += z.shape[1]
        return self._joint.geometry(z)

    def curvature(self, z: Tensor, dense_up_to: int) -> Curvature:
        """See :meth:`posteria.types.LogJoint.curvature`."""
        self.evaluations += z.shape[1]
        return self._joint.curvature(z, dense_up_to)

    def expectation(self, z: Tensor, spread: Tensor, factor: Tensor | None, dense_up_to: int) -> (
            tuple[Tensor, Curvature] | None):
        """See :meth:`posteria.types.LogJoint.expectation`."""
        self.evaluations += 1
        return self._joint.expectation(z, spread, factor, dense_up_to)

    def fixed_noise(self, num: int, seed: int) -> Tensor:
        """See :meth:`posteria.types.LogJoint.fixed_noise`."""
        return self._joint.fixed_noise(num, seed)


class Moves(Protocol):
    """A Markov kernel that leaves the posteriors of B datasets as they are, with nothing to adapt.

    Attributes:
        cost: (B,) how many evaluations of the log joint a move of one chain is worth, by the time it takes.
    """

    @property
    def cost(self) -> Tensor: ...

    def __call__(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """The next z (B, C, P) of every chain."""
        ...


@dataclass(frozen=True)
class Nesting:
    """Which parameters are nearly normal given a few others, and the two factors of their density.

    The rest r of the parameters, R = K + G E of them, is in the order of ``rest``: K that are common, then E for each
    of G independent entries.

    Attributes:
        hyper: (H,) long, places in z of the few.
        units: of the few, in which their priors are normal.
        common: (K,) long.
        own: (G, E) long.
        likelihood: (B, S, P) -> the log likelihood's score in r, (B, S, R), and its curvature in r, at each z.
        prior: z (B, S, P) and standard deviations (B, S, R) -> score and curvature of the log prior, (B, S, R) each,
            averaged over normals around r: the posterior does not see a prior's kinks and tails as points do.
        entries: (B, S, P) -> (B, S, G) what of the log joint density depends on each entry's own parameters, up to what
            they do not change; None where that is not known.
        smooth: the prior of r is not normal, so that those averages depend on the standard deviations.
        exact: given the few, r is normal, and ``likelihood`` has its curvature.
    """

    hyper: Tensor
    units: NormalUnits
    common: Tensor
    own: Tensor
    likelihood: Callable[[Tensor], tuple[Tensor, Arrow]]
    prior: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    entries: Callable[[Tensor], Tensor] | None
    smooth: bool
    exact: bool

    @property
    def rest(self) -> Tensor:
        """(R,) long, places in z of all but the few."""
        return torch.cat([self.common, self.own.flatten()])


@dataclass(frozen=True)
class Problem:
    """The posteriors of B datasets, up to their evidence.

    Attributes:
        joint: density, gradient and curvature of the log joint, in double precision.
        density: (B, S, P) -> (B, S) the log joint density of z, with all its constants, so that its integral is the
            evidence.
        quantities: (B, S, P) -> (B, S, Q) what an answer must get right: the parameters, or functions of them that
            no relabelling changes.
        counted: (B, Q) bool, the quantities that exist.
        pick: the problem of some of the datasets (b,), which may repeat.
        permutations: (G, P) long, relabellings that leave the density unchanged, where they are few enough to list.
        single_mode: other modes may be looked for; False where relabellings cannot be listed, since each is a mode.
        steer: (B, S, P) -> (B, S, P) gradients of the log joint, cheaper and less exact than its own: what leads the
            trajectories of chains.
        moves: what chains take in place of Hamiltonian trajectories, or None.
        row_block: how many datasets go through a processor together in chains.
        nesting: for models that declare hyperparameters, or None.
        far: () -> (B, M, P) points from which modes are looked for, beside draws of the prior; None for none.
    """

    joint: LogJoint
    density: Callable[[Tensor], Tensor]
    quantities: Callable[[Tensor], Tensor]
    counted: Tensor
    pick: Callable[[Tensor], Problem]
    permutations: Tensor | None = None
    single_mode: bool = True
    steer: Callable[[Tensor], Tensor] | None = None
    moves: Moves | None = None
    row_block: int = 32
    nesting: Nesting | None = None
    far: Callable[[], Tensor] | None = None

    @property
    def active(self) -> Tensor:
        """(B, P) bool."""
        return self.joint.active

    def __len__(self) -> int:
        return len(self.active)

    def __getitem__(self, index: Tensor) -> Problem:
        """The problem of the datasets (b,), which may repeat."""
        return self.pick(index)

    def values(self, z: Tensor) -> Tensor:
        """(B, S, Q) quantities; zero where there is none."""
        return torch.where(self.counted[:, None], self.quantities(z), 0.0)
