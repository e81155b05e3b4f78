"""Diagnosis: what is known of an amortized posterior without sampling anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.refinement import Weights
from posteria.trust.posing import problem_of, source_of, symmetric
from posteria.trust.predictive import predictive_p

if TYPE_CHECKING:
    import pandas as pd

    from posteria.posterior import Posterior

_LEAST_SAMPLES = 100
_SURPRISING = 0.01


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What is known of the posteriors of B datasets; every tensor is (B,), NaN where it could not be computed.

    Attributes:
        pareto_k: k-hat of the importance weights; above 0.7 they cannot be relied on, and q is far off.
        ess, relative_ess: effective sample size of the smoothed weights, absolute and as a share of the draws.
        consistency_variance: variance over q of log p(theta) + log p(D | theta) - log q(theta): 0 for the posterior.
        log_evidence, log_evidence_error: log p(D) by importance sampling, and its standard error. Where a model has
            labels that its likelihood does not know, and too many to list, q covers one labelling and the evidence is
            that of one.
        bad: draws at which a log density was no number, or too large for double precision to tell apart from others.
        ood_distance, ood_summary: Mahalanobis distance of the encoder's summary from those of training datasets, and
            its p-value.
        ood_traits: p-values of rows, features, and location, scale, tails and correlation of x and y.
        check_predictions: gives :attr:`predictive_p`, which few ask for and all would wait for.
        checked, unchecked: what was looked at; what was not, with the reason.
    """

    pareto_k: Tensor
    ess: Tensor
    relative_ess: Tensor
    consistency_variance: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    bad: Tensor
    ood_distance: Tensor
    ood_summary: Tensor
    ood_traits: Mapping[str, Tensor] = field(default_factory=dict)
    check_predictions: Callable[[], Mapping[str, Tensor]] = field(default=dict, repr=False)
    checked: tuple[str, ...] = ()
    unchecked: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pareto_k)

    @cached_property
    def predictive_p(self) -> Mapping[str, Tensor]:
        """p-values (B,) of posterior predictive checks, by statistic; computed when first asked for."""
        return self.check_predictions()

    def to_frame(self) -> pd.DataFrame:
        """A row per dataset, a column per figure."""
        import pandas as pd

        named = {name: getattr(self, name) for name in self.__dataclass_fields__
                 if isinstance(getattr(self, name), Tensor)}
        named |= {f"ood_{name.replace(' ', '_')}": value for name, value in self.ood_traits.items()}
        named |= {f"predictive_{name}": value for name, value in self.predictive_p.items()}
        return pd.DataFrame({name: value.cpu().numpy() for name, value in named.items()}).rename_axis("dataset")

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences a person should read: what is out of the ordinary, and what was not checked."""
        return tuple(f"{name}: not checked, {why}" for name, why in self.unchecked.items()) + self.surprises

    @property
    def surprises(self) -> tuple[str, ...]:
        """Sentences on what is out of the ordinary alone."""
        unlike = {"the encoder's summary": self.ood_summary, **self.ood_traits}
        notes = [f"out of distribution: {name} of {_count(p)} is unlike training (p < {_SURPRISING})"
                 for name, p in unlike.items() if bool((p < _SURPRISING).any())]
        notes += [f"model: the data's {name} is unlike what the model predicts for {_count(p)} (p < {_SURPRISING})"
                  for name, p in self.predictive_p.items() if bool((p < _SURPRISING).any())]
        if bool((self.bad > 0).any()):
            notes.append(f"log densities: {int(self.bad.nansum())} are not finite or beyond rounding, in "
                         f"{int((self.bad > 0).sum())} of {len(self)} datasets")
        return tuple(notes)


def _count(p_values: Tensor) -> str:
    return f"{int((p_values < _SURPRISING).sum())} of {len(p_values)} datasets"


def diagnose(posterior: Posterior, num_samples: int = 1000, seed: int = 0) -> Diagnosis:
    """See :meth:`posteria.Posterior.diagnose`."""
    if num_samples < _LEAST_SAMPLES:
        raise InputError.of("num_samples", num_samples, f"{_LEAST_SAMPLES} or more")
    weights = None
    if posterior.model.has_likelihood:
        problem = problem_of(posterior.model, posterior.dataset)
        source = source_of(problem, symmetric(posterior.distribution, problem), num_samples, seed)
        weights = None if source.log_q is None else Weights.of(problem.density(source.z), source.log_q)
    return diagnosis_of(posterior, weights, seed)


def diagnosis_of(posterior: Posterior, weights: Weights | None, seed: int) -> Diagnosis:
    """The diagnosis, given importance weights that were computed already (or could not be)."""
    nowhere = torch.full((len(posterior),), torch.nan, dtype=torch.double)
    figures = dict.fromkeys(("pareto_k", "ess", "relative_ess", "consistency_variance", "log_evidence",
                             "log_evidence_error", "bad", "ood_distance", "ood_summary"), nowhere)
    checked, unchecked = ["posterior predictive"], {}
    if weights is None:
        unchecked["importance weights"] = ("the posterior has no density" if posterior.model.has_likelihood
                                           else "the model can only be simulated")
    else:
        figures |= {name: getattr(weights, name) for name in figures if hasattr(weights, name)}
        figures["bad"] = weights.bad.double()
        checked.append("importance weights")
    traits, encoding = {}, posterior.encoding
    if encoding is None or encoding.familiarity is None:
        unchecked["out of distribution"] = ("the posterior does not come from an estimator" if encoding is None else
                                            "the estimator does not know its training datasets")
    else:
        figures["ood_distance"] = encoding.familiarity.distance(encoding.summary)
        figures["ood_summary"] = encoding.familiarity.p_value(encoding.summary)
        traits = encoding.familiarity.p_values(posterior.dataset)
        checked.append("out of distribution")
    return Diagnosis(**figures, ood_traits=traits, check_predictions=partial(predictive_p, posterior, seed),
                     checked=tuple(checked), unchecked=unchecked)
