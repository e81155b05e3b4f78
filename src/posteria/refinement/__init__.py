"""The trust ladder on tensors: importance weights, a better proposal, many short chains.

The room sees a posterior through a :class:`Problem` (a log density and a :class:`posteria.types.LogJoint`) and never a
model. :mod:`posteria.trust` puts models and posteriors on it.
"""

from posteria.refinement.accuracy import Accuracy, Change, Moments
from posteria.refinement.chains import nested_r_hat, run_chains
from posteria.refinement.ladder import METHODS, STATUSES, Outcome, Source, climb_ladder
from posteria.refinement.modes import missed_modes, unvisited_modes
from posteria.refinement.problem import Problem
from posteria.refinement.proposal import Proposal
from posteria.refinement.weights import Weights

__all__ = [
    "METHODS",
    "STATUSES",
    "Accuracy",
    "Change",
    "Moments",
    "Outcome",
    "Problem",
    "Proposal",
    "Source",
    "Weights",
    "climb_ladder",
    "missed_modes",
    "nested_r_hat",
    "run_chains",
    "unvisited_modes",
]
