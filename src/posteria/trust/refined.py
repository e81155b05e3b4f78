"""Refined: posteriors that carry a label, after the ladder."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posteria.ascent import climb
from posteria.errors import InputError, UnsupportedError
from posteria.models.base import Model
from posteria.randomness import generator_for
from posteria.refinement import METHODS, STATUSES, Accuracy, Outcome, Problem, Source, climb_ladder
from posteria.trust.diagnosis import Diagnosis, diagnosis_of
from posteria.trust.posing import MOST_ROUNDING, given_source, problem_of, source_of, symmetric, to_theta
from posteria.types import Dataset, ThetaDistribution

if TYPE_CHECKING:
    import pandas as pd

    from posteria.posterior import Posterior

MAP = "map"
_LEAST_SAMPLES = 100
_NUM_SAMPLES, _NUM_DRAWS = 1000, 2000
_SALT = 15_485_863
_CLIMBS, _DENSE_UP_TO = 100, 512
_STRANGE = 0.01
_AFTER: tuple[str, ...] = ("pareto_k", "ess", "r_hat", "log_evidence")


class Answered:
    """q where it was good enough, draws elsewhere; implements :class:`posteria.types.ThetaDistribution`.

    Args:
        theta: (B, S, P) draws.
        own: q, or None where there is none.
        keeps: (B,) bool, the datasets for which q answers.
        active: (B, P) bool.
    """

    def __init__(self, theta: Tensor, own: ThetaDistribution | None, keeps: Tensor, active: Tensor):
        self.theta, self.own, self.keeps, self.active = theta, own, keeps, active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, num_samples, P): different draws, each as often as the next one when there are fewer than asked for."""
        available = self.theta.shape[1]
        order = [torch.randperm(available, generator=generator, device=self.theta.device)
                 for _ in range(-(-num_samples // available))]
        drawn = self.theta[:, torch.cat(order)[:num_samples]]
        if self.own is None or not self.keeps.any():
            return drawn
        return torch.where(self.keeps[:, None, None], self.own.rsample(num_samples, generator).to(drawn), drawn)

    def log_prob(self, theta: Tensor) -> Tensor:
        """q's, where it answers for all datasets.

        Raises:
            UnsupportedError: some answers are draws.
        """
        return self._density().log_prob(theta)

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`rsample` and :meth:`log_prob`."""
        return self._density().rsample_and_log_prob(num_samples, generator)

    def detach(self) -> Answered:
        """Itself: there is no gradient."""
        return self

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> Tensor | None:
        """None: draws have no density."""
        return None

    def _density(self) -> ThetaDistribution:
        if self.own is None or not self.keeps.all():
            raise UnsupportedError(f"log_prob: {int((~self.keeps).sum())} of {len(self.keeps)} refined posteriors are "
                                   "draws, which have no density; takes model.log_joint up to a constant")
        return self.own


FAILED_WORDS = "this posterior failed its checks and should not be used"


@dataclass(frozen=True, eq=False)
class Refined:
    """The answers of B datasets, with their labels.

    Attributes:
        posterior: everything but densities works, and those too where all answers are amortized.
        status: per dataset one of "amortized", "reweighted", "refined", "mcmc", "failed".
        reason: per dataset, the figures that led there.
        trusted: (B,) bool: not failed, and checked against the likelihood. False for points and for simulators.
        seconds, evaluations: (B,) cost; a rung's time is shared evenly by the datasets on it.
        diagnosis: of q, before.
        after: figures of the answer, (B,) each: pareto_k, ess, r_hat, log_evidence; NaN where its rung has none.
        method: what was asked for.
    """

    posterior: Posterior
    status: tuple[str, ...]
    reason: tuple[str, ...]
    trusted: Tensor
    seconds: Tensor
    evaluations: Tensor
    diagnosis: Diagnosis
    after: dict[str, Tensor]
    method: str = "auto"

    def __len__(self) -> int:
        return len(self.status)

    @property
    def failed(self) -> Tensor:
        """(B,) bool."""
        return torch.tensor([status == "failed" for status in self.status])

    def to_frame(self) -> pd.DataFrame:
        """A row per dataset: status, reason, cost and figures before and after."""
        import pandas as pd

        columns: dict[str, Any] = {"status": self.status, "trusted": self.trusted.numpy(), "reason": self.reason,
                                   "seconds": self.seconds.numpy(), "evaluations": self.evaluations.numpy()}
        columns |= {f"{name}_after": value.numpy() for name, value in self.after.items()}
        return pd.DataFrame(columns).rename_axis("dataset").join(self.diagnosis.to_frame())

    def summary(self, **options: Any) -> pd.DataFrame:
        """:meth:`posteria.Posterior.summary` with a column ``status``."""
        table = self.posterior.summary(**options)
        if len(self) == 1:
            return table.assign(status=self.status[0])
        return table.assign(status=[self.status[i] for i in table.index.get_level_values("dataset")])

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on the answers; how many ended where, and what failed."""
        counts = Counter(self.status)
        ends = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        notes = (f"trust: {ends}, of {len(self)} datasets",) if len(self) > 1 else (
            f"trust: {self.status[0]} ({self.reason[0]})",)
        return notes + self.diagnosis.notes


def refine(posterior: Posterior, method: str = "auto", target: Accuracy | None = None,
           num_samples: int = _NUM_SAMPLES, num_draws: int = _NUM_DRAWS, seed: int = 0) -> Refined:
    """See :meth:`posteria.Posterior.refine`."""
    _check(method, num_samples, num_draws)
    model, dataset = posterior.model, posterior.dataset
    if not model.has_likelihood:
        return _simulator(posterior, method, seed)
    problem = problem_of(model, dataset, whiten=method != MAP)
    own = symmetric(posterior.distribution, problem)
    source = source_of(problem, own, num_samples, seed)
    if method == MAP:
        return _points(posterior, problem, source, seed)
    return _climbed(posterior, own, problem, source, method, target or Accuracy(), num_draws, seed)


def refine_draws(model: Model, dataset: Dataset, theta: Tensor, log_prob: Tensor | None = None, *,
                 method: str = "auto", target: Accuracy | None = None, num_draws: int = _NUM_DRAWS,
                 seed: int = 0) -> Refined:
    """Put posteriors obtained elsewhere through the ladder.

    Args:
        model: with a likelihood.
        dataset: B datasets.
        theta: (B, S, P) independent draws of unconstrained theta (``model.layout_of(dataset).unconstrain`` makes them
            of named values); 100 or more.
        log_prob: (B, S) their log density, in unconstrained space; without it the first two rungs are left out.
        method, target, num_draws, seed: as for :meth:`posteria.Posterior.refine`.

    Raises:
        InputError: shapes that do not fit, draws that are not finite, or too few of them.
        UnsupportedError: a model without a likelihood.

    Examples:
        >>> from posteria.models import GaussianMean
        >>> data = Dataset.of(torch.zeros(8, 1))
        >>> theta = torch.randn(1, 500, 1, generator=generator_for(0)) / 3.0
        >>> log_prob = torch.distributions.Normal(0.0, 1 / 3).log_prob(theta)[..., 0]
        >>> refine_draws(GaussianMean(), data, theta, log_prob).status
        ('amortized',)
    """
    from posteria.posterior import Posterior

    _check(method, theta.shape[1] if theta.ndim == 3 else 0, num_draws)
    model.check(dataset)
    problem = problem_of(model, dataset, whiten=method != MAP)
    source = given_source(problem, theta, log_prob)
    keeps = torch.ones(len(dataset), dtype=torch.bool)
    posterior = Posterior(model, dataset, Answered(theta, None, keeps, problem.active))
    if method == MAP:
        return _points(posterior, problem, source, seed)
    return _climbed(posterior, None, problem, source, method, target or Accuracy(), num_draws, seed)


def _check(method: str, num_samples: int, num_draws: int) -> None:
    if method not in METHODS and method != MAP:
        raise InputError.of("method", repr(method), f"one of {sorted([*METHODS, MAP])}")
    if num_samples < _LEAST_SAMPLES:
        raise InputError.of("draws", num_samples, f"{_LEAST_SAMPLES} or more")
    if num_draws < _LEAST_SAMPLES:
        raise InputError.of("num_draws", num_draws, f"{_LEAST_SAMPLES} or more")


def _climbed(posterior: Posterior, own: ThetaDistribution | None, problem: Problem, source: Source, method: str,
             target: Accuracy, num_draws: int, seed: int) -> Refined:
    generator = generator_for(seed + _SALT)
    outcome = climb_ladder(problem, source, target, METHODS[method], generator, num_draws)
    status = tuple(STATUSES[i] for i in outcome.status.tolist())
    keeps = torch.tensor([name == "amortized" for name in status])
    theta = _as_fine_as_needed(to_theta(problem, outcome.z), posterior.dataset.x.dtype)
    answer = posterior.with_distribution(Answered(theta, own, keeps, problem.active))
    diagnosis = diagnosis_of(posterior, outcome.weights, seed)
    trusted = torch.tensor([name != "failed" for name in status])
    return _labelled(answer, status, outcome, trusted, diagnosis, method)


def _as_fine_as_needed(theta: Tensor, dtype: torch.dtype) -> Tensor:
    """Draws (B, S, P) in the data's precision, unless that would round away how far apart some are.

    Data without noise leave posteriors that are narrower than the distance between two numbers in single precision.
    """
    rounded = theta.to(dtype)
    lost = (rounded - theta).square().mean(1).sqrt() > MOST_ROUNDING * theta.std(1)
    return theta if lost.any() else rounded


def _labelled(answer: Posterior, status: tuple[str, ...], outcome: Outcome, trusted: Tensor, diagnosis: Diagnosis,
              method: str) -> Refined:
    after = {name: getattr(outcome, name) for name in _AFTER}
    refined = Refined(answer, status, tuple(outcome.reason), trusted, outcome.seconds, outcome.evaluations, diagnosis,
                      after, method)
    return replace(refined, posterior=answer.with_label(status, refined.reason))


def _points(posterior: Posterior, problem: Problem, source: Source, seed: int) -> Refined:
    """The modes uphill of q's means: points without uncertainty, never trusted as posteriors."""
    began = time.perf_counter()
    start = torch.where(source.z.isfinite(), source.z, 0.0).mean(1)
    guess = climb(problem.joint, start, _CLIMBS, 1.0, _DENSE_UP_TO)
    found = guess.z.isfinite().all(-1) & (guess.score * guess.step).sum(-1).lt(1e-3)
    outcome = Outcome.of(source, 1)
    outcome.settle(torch.arange(len(problem)), 2, z=guess.z[:, None])
    outcome.seconds += (time.perf_counter() - began) / len(problem)
    outcome.evaluations += _CLIMBS
    outcome.reason = ["points only: a mode, without uncertainty" if ok else "points only, and no mode was reached"
                      for ok in found.tolist()]
    theta = to_theta(problem, outcome.z).to(posterior.dataset.x.dtype)
    nowhere = torch.zeros(len(problem), dtype=torch.bool)
    answer = posterior.with_distribution(Answered(theta, None, nowhere, problem.active))
    status = tuple("refined" if ok else "failed" for ok in found.tolist())
    return _labelled(answer, status, outcome, nowhere, diagnosis_of(posterior, None, seed), MAP)


def _simulator(posterior: Posterior, method: str, seed: int) -> Refined:
    """No likelihood: the label says so, and only a dataset unlike the training data fails."""
    if method != "auto":
        raise UnsupportedError.of("method", f"{method!r} for {posterior.model.name!r}, which can only be simulated",
                                  "'auto', or a model with a likelihood")
    diagnosis = diagnosis_of(posterior, None, seed)
    strange = (diagnosis.ood_summary < _STRANGE).tolist()
    seen = ("not checked against a likelihood; out of distribution " if "out of distribution" in diagnosis.checked else
            "not checked against a likelihood, nor for being out of distribution ")
    reason = tuple(f"{seen.strip()}{': p ' + format(p, '.2g') if p == p else ''}"
                   for p in diagnosis.ood_summary.tolist())
    status = tuple("failed" if bad else "amortized" for bad in strange)
    nowhere = torch.full((len(posterior),), torch.nan, dtype=torch.double)
    after = dict.fromkeys(_AFTER, nowhere)
    return Refined(posterior.with_label(status, reason), status, reason, torch.zeros(len(posterior), dtype=torch.bool),
                   torch.zeros_like(nowhere), torch.zeros(len(posterior), dtype=torch.long), diagnosis, after, method)
