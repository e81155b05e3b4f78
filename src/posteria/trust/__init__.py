"""A posterior that says whether to trust it, and mends itself: diagnosis, and the ladder of answers.

:meth:`posteria.Posterior.diagnose` and :meth:`posteria.Posterior.refine` are the usual doors; :func:`refine_draws` is
the one for a posterior obtained elsewhere.
"""

from posteria.trust.diagnosis import Diagnosis, diagnose
from posteria.trust.familiarity import LEAST_FAMILIAR, Familiarity, learn_familiarity
from posteria.trust.refined import FAILED_WORDS, Refined, refine, refine_draws

__all__ = ["FAILED_WORDS", "LEAST_FAMILIAR", "Diagnosis", "Familiarity", "Refined", "diagnose", "learn_familiarity",
           "refine", "refine_draws"]
