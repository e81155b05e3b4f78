"""One network for every model: a posterior of any model and prior, without training."""

from __future__ import annotations

import math
from pathlib import Path

from posteria.errors import InputError
from posteria.estimator import Estimator
from posteria.models import Model
from posteria.models.priors import Priors
from posteria.models.repriored import repriored
from posteria.models.whitened import prior_is_log_concave
from posteria.parts import is_whitened, known_exactly
from posteria.posterior import Posterior
from posteria.shipped import load
from posteria.types import Dataset

NAME = "universal"
# Looks of the search where the network is used: fewer observations than parameters take more than training can afford.
WIDENINGS = 64
# Searches where parameters can be swapped: relabellings are modes.
_MODES_OF_SYMMETRIC = 2
# Steps of optimization where there are more relabellings than this, as hidden units have: the search takes such a
# posterior for that of a linear model.
_MANY_LABELLINGS, _POLISH_OF_MANY = 120, 400


def serves_every_model(estimator: Estimator) -> bool:
    """Its tokens do not know which model they belong to."""
    return bool(getattr(estimator.encoder, "shared", False))


def trained_on_many_models(estimator: Estimator) -> bool:
    """The model it was made with is only a name; false after special training for one."""
    return estimator.info.training.get("task", {}).get("name") == "many_models"


class Universal:
    """Posteriors of models that the network may never have seen.

    Its encoder sees the log joint's values, gradients and curvatures in prior-whitened parameters, and nothing that
    names a model. Whether an answer can be trusted, ``posterior.diagnose()`` says, and ``posterior.refine()`` mends it.

    Args:
        estimator: a trained one, whose encoder has the option ``shared``.

    Raises:
        InputError: an estimator of one model.

    Examples:
        >>> from posteria.models import build_model
        >>> posteria.universal().posterior(build_model("linear_regression"), dataset).summary()  # doctest: +SKIP
    """

    def __init__(self, estimator: Estimator):
        if not serves_every_model(estimator):
            raise InputError.of("estimator", f"one of {estimator.model.name!r} alone",
                                "one with the iterative encoder and its option shared=True")
        self.network = estimator.looking(widenings=WIDENINGS)

    def estimator(self, model: Model, priors: Priors | None = None, prior_scale: float | None = None,
                  modes: int | None = None, polish: int | None = None) -> Estimator:
        """The estimator of one model: shares the network's weights.

        Where all parameters but at most one can be integrated out (a line with normal priors, its noise known or
        inferred), posteriors are exact, and the network is not asked. Where a prior has heavy tails, posteriors are
        mixtures of two searches, see :meth:`posteria.Estimator.in_both_units`.

        Args:
            model: any model with a likelihood, a user's own included.
            priors, prior_scale: in place of the model's, see :func:`posteria.models.repriored.repriored`.
            modes: number of searches, from starts of their own; posteriors are mixtures of what they find. For
                posteriors with several modes, at so many times the cost. By default 2 where components or hidden
                units can be swapped, else 1.
            polish: steps of optimization, dataset by dataset, from the network's answer, see
                :meth:`posteria.Estimator.polished`. By default 400 where hidden units (or more than five components)
                can be swapped, else 0.
        """
        changed = priors is not None or prior_scale is not None
        model = repriored(model, priors, prior_scale) if changed else model
        found = self.network.for_model(model, exact=known_exactly(model))
        if is_whitened(found.density_part) and not found.exact and not prior_is_log_concave(model):
            found = found.in_both_units()
        if modes is None:
            modes = _MODES_OF_SYMMETRIC if model.exchangeable_axes else 1
        if polish is None:
            labellings = math.prod(math.factorial(model.axes.get(axis, 1)) for axis in model.exchangeable_axes)
            polish = _POLISH_OF_MANY if labellings > _MANY_LABELLINGS else 0
        found = found if modes == 1 else found.with_modes(modes)
        return (found.polished(polish) if polish else found).with_exact_terms()

    def posterior(self, model: Model, dataset: Dataset, priors: Priors | None = None,
                  prior_scale: float | None = None, modes: int | None = None,
                  polish: int | None = None) -> Posterior:
        """The posterior of one or many datasets under a model.

        Args:
            model, priors, prior_scale, modes, polish: see :meth:`estimator`.
            dataset: B datasets.

        Raises:
            DataError: data that the model cannot have produced.
            UnsupportedError: a model that can only be simulated.
        """
        return self.estimator(model, priors, prior_scale, modes, polish).posterior(dataset)


def universal(path: str | Path = NAME) -> Universal:
    """The network that comes with the package, or one of your own by its folder.

    Args:
        path: a folder that training wrote.
    """
    return Universal(load(path))
