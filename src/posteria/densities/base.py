"""Density: context -> distribution over theta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from posteria.types import Context, ContextSpec, ThetaDistribution


class Density(nn.Module, ABC):
    """Base class of all densities. Constructors take ``(spec, **options)``, options being JSON values.

    A density with ``free_size`` serves any number of parameters when the context has tokens; one that is
    ``correlated`` can use a context's curvature factor.
    """

    free_size: ClassVar[bool] = True
    correlated: ClassVar[bool] = True

    def __init__(self, spec: ContextSpec):
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, context: Context) -> ThetaDistribution:
        """The distribution over theta, one per dataset of the context."""
