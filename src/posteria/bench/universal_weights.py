"""Importance weights of the universal network's answers, as its bench counts them."""

from __future__ import annotations

import torch
from torch import Tensor

from posteria.posterior import Posterior
from posteria.refinement.weights import MAX_PARETO_K
from posteria.trust.diagnosis import Diagnosis


def checked(posterior: Posterior, seed: int) -> dict[str, Tensor]:
    """Those of q, and where they are no good, of a proposal of the dataset's own (the cheap rung)."""
    found = posterior.diagnose()
    if bool((found.pareto_k < MAX_PARETO_K).all()):
        return weights_of(found, torch.ones_like(found.pareto_k, dtype=torch.bool))
    return weights_of(found, ~posterior.refine("laplace", seed=seed).failed)


def weights_of(found: Diagnosis, refined: Tensor) -> dict[str, Tensor]:
    """(B,) each: k-hat is below 0.7; that, or the own proposal passed; effective draws; k-hat is not known."""
    passed = found.pareto_k < MAX_PARETO_K
    return {"passed": passed.double(), "passed_cheaply": (passed | refined).double(), "ess": found.ess.double(),
            "unfit": (~found.pareto_k.isfinite()).double()}
