"""How far the answers of the ladder are from the posterior: references, errors, what counts as accurate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posteria.bench.samplers import Moments, Quantities, moments_of, parameters
from posteria.bench.trust_chains import usable_chains
from posteria.bench.trust_importance import importance_moments
from posteria.bench.trust_mixtures import mixture_moments
from posteria.bench.trust_units import unit_moments
from posteria.errors import UnsupportedError
from posteria.models import Model
from posteria.posterior import Posterior
from posteria.reference import run_baseline
from posteria.trust.posing import problem_of, to_z
from posteria.types import Dataset

MOST_MEAN_ERROR, LEAST_SD_RATIO, MOST_SD_RATIO = 0.1, 0.9, 1.1
WRONG = 0.25
# Standard errors of the measurement itself that the lenient figure allows for.
_ALLOWED_ERRORS = 3.0
# Datasets whose reference chains run together: bounds memory.
_TOGETHER = 64
# Nats by which the highest of an answer's draws may be above the highest of a reference's.
_MOST_ABOVE = 3.0
# What may come before Hamiltonian chains: weighted draws, and chains of a model's own moves; see the modules for what
# they take.
WEIGHTED = {"importance": importance_moments, "mixtures": mixture_moments, "units": unit_moments}
# Of these, what takes so long that it is left out where there is no trusted answer to compare.
DEAR = ("units",)


@dataclass(frozen=True)
class Reference:
    """The posterior that answers are compared with.

    Attributes:
        moments: means and sds (B, Q) with their Monte Carlo errors.
        usable: (B,) bool: exact, or chains that converged.
        exact: not from chains.
        highest: (B,) log density of the highest of weighted draws, in prior-whitened parameters; infinite where no mode
            can be left out, None for references of other kinds.
    """

    moments: Moments
    usable: Tensor
    exact: bool
    highest: Tensor | None = None

    def beside(self, answer: Posterior, num_draws: int) -> Reference:
        """The same, but for datasets where some draw of the answer is far higher: it has left a mode out there."""
        if self.highest is None:
            return self
        problem = problem_of(answer.model, answer.dataset)
        height = problem.density(to_z(problem, answer.sample_theta(num_draws, 0)))
        return replace(self, usable=self.usable & (height.amax(-1) <= self.highest + _MOST_ABOVE))


def reference_of(model: Model, dataset: Dataset, quantities: Quantities, chains: Mapping[str, Any],
                 min_ess: float, seed: int = 0, weighted: str | None = None) -> Reference:
    """The exact posterior where there is one, else long chains of Hamiltonian Monte Carlo.

    Args:
        model: the assumed model.
        dataset: B datasets.
        quantities: what is compared.
        chains: settings of :func:`posteria.reference.run_baseline`.
        min_ess: bulk and tail effective draws of every quantity below which chains are no reference.
        seed: of the draws or the chains.
        weighted: a name of :data:`WEIGHTED`: weighted draws come before chains.
    """
    if quantities is parameters:
        try:
            exact = model.exact_posterior(dataset)
        except UnsupportedError:
            pass
        else:
            nothing = torch.zeros_like(exact.mean)
            everywhere = torch.ones(len(dataset), dtype=torch.bool)
            return Reference(Moments(exact.mean, exact.stddev, nothing, nothing), everywhere, True)
    if weighted is not None:
        return _from_weighted(model, dataset, quantities, chains, min_ess, seed, weighted)
    parts = [_from_chains(model, dataset[part], quantities, chains, min_ess, seed)
             for part in torch.arange(len(dataset)).split(_TOGETHER)]
    moments = Moments(*(torch.cat([getattr(part.moments, name) for part in parts])
                        for name in Moments.__dataclass_fields__))
    return Reference(moments, torch.cat([part.usable for part in parts]), False)


def reference_of_some(wanted: Tensor, model: Model, dataset: Dataset, *how: Any) -> Reference:
    """:func:`reference_of`, for the datasets wanted (B,) alone; the others have none."""
    if wanted.all():
        return reference_of(model, dataset, *how)
    usable, highest = torch.zeros_like(wanted), torch.full(wanted.shape, torch.nan, dtype=torch.double)
    if not wanted.any():
        nothing = torch.full((len(dataset), 1), torch.nan, dtype=torch.double)
        return Reference(Moments(nothing, nothing, nothing, nothing), usable, False, highest)
    found = reference_of(model, dataset[wanted], *how)
    place = (wanted.cumsum(0) - 1).clamp(min=0)
    moments = Moments(*(getattr(found.moments, name)[place] for name in Moments.__dataclass_fields__))
    highest = None if found.highest is None else torch.where(wanted, found.highest[place], highest)
    return Reference(moments, wanted & found.usable[place], found.exact, highest)


def _from_weighted(model: Model, dataset: Dataset, quantities: Quantities, chains: Mapping[str, Any], min_ess: float,
                   seed: int, weighted: str) -> Reference:
    """By weighted draws, and by chains where too few of those are effective, unless they look for modes themselves.

    Chains that sit in one mode of several, all of them, would pass for a reference.
    """
    moments, usable, highest = WEIGHTED[weighted](model, dataset, quantities, min_ess, seed)
    rest = (~usable & highest.isinf()).nonzero()[:, 0]
    if len(rest):
        other = reference_of(model, dataset[rest], quantities, chains, min_ess, seed)
        usable[rest] = other.usable
        for name in Moments.__dataclass_fields__:
            getattr(moments, name)[rest] = getattr(other.moments, name)
    return Reference(moments, usable, False, highest)


def _from_chains(model: Model, dataset: Dataset, quantities: Quantities, chains: Mapping[str, Any], min_ess: float,
                 seed: int) -> Reference:
    # Chains go on until they are long enough to be a reference. Those that keep to one labelling never converge in
    # theta: more rounds of them would be in vain.
    settings = {"min_ess": min_ess, **chains, **({"rounds": 1} if model.exchangeable_axes else {})}
    theta = run_baseline(model, dataset, "hmc", seed=seed, **settings).theta
    with torch.no_grad():
        values = quantities(model, dataset.double(), theta)
    return Reference(moments_of(values), usable_chains(values, min_ess), False)


@dataclass(frozen=True)
class Errors:
    """Of an answer, (B,) each, over the quantities of a dataset; NaN where the reference is not usable.

    Attributes:
        mean: largest error of a mean, in reference sds.
        narrowest, widest: smallest and largest ratio of sds.
        allowance: what chance alone may add to an error of a mean: three standard errors of draws and reference.
    """

    mean: Tensor
    narrowest: Tensor
    widest: Tensor
    allowance: Tensor

    @property
    def accurate(self) -> Tensor:
        """(B,) bool: means within 0.1 sd and sds within 10%, nothing allowed for chance."""
        return ((self.mean <= MOST_MEAN_ERROR) & (self.narrowest >= LEAST_SD_RATIO) & (self.widest <= MOST_SD_RATIO))

    @property
    def accurate_up_to_chance(self) -> Tensor:
        """(B,) bool: the same with the allowance; the error of a log sd is that of a mean over the root of two."""
        chance = (self.allowance / 2**0.5).exp()
        return ((self.mean <= MOST_MEAN_ERROR + self.allowance) & (self.narrowest >= LEAST_SD_RATIO / chance)
                & (self.widest <= MOST_SD_RATIO * chance))

    @property
    def wrong(self) -> Tensor:
        """(B,) bool: some mean is off by more than 0.25 sd."""
        return self.mean > WRONG


def errors_of(answer: Posterior, reference: Reference, quantities: Quantities, num_draws: int, seed: int = 0) -> Errors:
    """Compare an answer's draws with a reference."""
    with torch.no_grad():
        theta = answer.sample_theta(num_draws, seed).double()
        values = quantities(answer.model, answer.dataset.double(), theta[:, None])[:, 0]
    known, ok = reference.moments, reference.usable
    mean = ((values.mean(1) - known.mean) / known.sd).abs().amax(-1)
    ratio = values.std(1) / known.sd
    doubt = (1.0 / num_draws + (known.mean_error / known.sd).square().amax(-1)).sqrt()
    figures = (mean.nan_to_num(torch.inf), ratio.amin(-1).nan_to_num(0.0), ratio.amax(-1).nan_to_num(torch.inf),
               _ALLOWED_ERRORS * doubt)
    return Errors(*(torch.where(ok, figure, torch.nan) for figure in figures))
