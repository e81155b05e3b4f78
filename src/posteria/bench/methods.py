"""Methods: what estimates a posterior; the rows of the paper's tables and ours beside them."""

from __future__ import annotations

from dataclasses import dataclass

OBJECTIVES = ("forward_kl", "reverse_kl")
DENSITIES = ("gaussian", "flow")
ENCODERS = ("gru", "deepsets", "transformer", "iterative")
# The density that we would choose for the setup, in place of the paper's two.
OWN = "own"


@dataclass(frozen=True)
class Trained:
    """An estimator: objective × density × encoder."""

    objective: str
    density: str
    encoder: str

    @property
    def key(self) -> str:
        """Short name."""
        return f"{self.objective}/{self.density}/{self.encoder}"


@dataclass(frozen=True)
class PerDataset:
    """A baseline, run on every dataset anew.

    Attributes:
        name: as the paper has it, or ours.
        baseline: the registered baseline.
        ours: not in the paper's tables.
    """

    name: str
    baseline: str
    ours: bool = False

    @property
    def key(self) -> str:
        """Short name."""
        return self.name


Method = Trained | PerDataset

PER_DATASET = (
    PerDataset("random", "prior"),
    PerDataset("optimization", "optimization"),
    PerDataset("langevin", "paper_langevin"),
    PerDataset("hmc", "paper_hmc"),
    PerDataset("exact", "exact", ours=True),
    PerDataset("laplace", "laplace", ours=True),
    PerDataset("converged_hmc", "hmc", ours=True),
)
TRAINED = tuple(
    [Trained(objective, density, encoder) for objective in OBJECTIVES for density in DENSITIES for encoder in ENCODERS]
    + [Trained(objective, OWN, "iterative") for objective in OBJECTIVES]
)
METHODS: dict[str, Method] = {method.key: method for method in (*PER_DATASET, *TRAINED)}
