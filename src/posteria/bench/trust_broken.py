"""Posteriors that are wrong on purpose, and whether the ladder catches them: a part of `posteria bench trust`.

Linear regression, where the posterior is known, with q too narrow by two and moved by one sd; and y ~ N(root², 0.5²),
which has two modes of which q covers one: as a density, as draws with theirs alone, and on the many-chain rung.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal

from posteria.bench.samplers import Moments, parameters
from posteria.bench.trust_accuracy import Reference, errors_of, reference_of
from posteria.densities.gaussian import GaussianTheta
from posteria.models import CustomModel, LinearRegression, Model, Parameter
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.trust import Refined, refine_draws
from posteria.types import Dataset

_SEED = 2_502_066_013
_ROWS, _COLUMNS, _NOISE = 64, 2, 0.5
_DRAWS, _ANSWER_DRAWS = 1000, 4000
# The second mode has a little less mass than the first.
_TILT, _PRIOR_SD = 0.02, 2.0
_GRID = 8001


@dataclass(frozen=True)
class Broken:
    """Wrong posteriors q of B datasets, and the right ones.

    Attributes:
        model: assumed.
        dataset: B datasets.
        q: the wrong posterior.
        reference: the right one.
    """

    model: Model
    dataset: Dataset
    q: GaussianTheta
    reference: Reference

    @property
    def posterior(self) -> Posterior:
        """q as an estimator would return it."""
        return Posterior(self.model, self.dataset, self.q)


def _regression(count: int, shift: float, width: float) -> Broken:
    """q is the exact posterior, moved by ``shift`` sds in every parameter and ``width`` times as wide."""
    model = LinearRegression(noise=_NOISE)
    dataset = SimulatedTask(model, (_ROWS, _ROWS), (_COLUMNS, _COLUMNS)).draw(count, generator_for(_SEED))[0]
    exact = model.exact_posterior(dataset)
    sd = exact.stddev
    factor = torch.linalg.cholesky(torch.linalg.inv(exact.covariance_matrix / (sd[:, :, None] * sd[:, None])))
    q = GaussianTheta((exact.mean + shift * sd).float(), (width * sd).float(), model.active(dataset), factor.float())
    return Broken(model, dataset, q, reference_of(model, dataset, parameters, {}, 0.0))


def _root(params: dict[str, Tensor], x: Tensor) -> Normal:
    return Normal((params["root"]**2 + _TILT * params["root"]).expand(x.shape[0]), _NOISE)


def _one_mode(count: int) -> Broken:
    model = CustomModel([Parameter("root", prior=Normal(0.0, _PRIOR_SD))], predict=_root)
    y = 4.0 + _NOISE * torch.randn(count, _ROWS, generator=generator_for(_SEED, 1))
    dataset = Dataset.of(torch.zeros(count, _ROWS, 1), y)
    location = y.mean(1, keepdim=True).sqrt() - _TILT / 2
    sd = torch.full_like(location, 1.05 * _NOISE / _ROWS**0.5 / 4.0)  # the slope of root² at 2 is 4
    return Broken(model, dataset, GaussianTheta(location, sd, model.active(dataset)), _by_quadrature(model, dataset))


def _by_quadrature(model: Model, dataset: Dataset) -> Reference:
    grid = torch.linspace(-4.0, 4.0, _GRID, dtype=torch.double)
    wide = Dataset(dataset.x.double(), None if dataset.y is None else dataset.y.double(), dataset.observed,
                   dataset.features)
    with torch.no_grad():
        mass = torch.cat([model.log_joint(grid[None, :, None], wide[i:i + 1]).softmax(-1) for i in range(len(wide))])
    mean = (mass * grid).sum(-1, keepdim=True)
    sd = (mass * (grid - mean).square()).sum(-1, keepdim=True).sqrt()
    nothing = torch.zeros_like(mean)
    return Reference(Moments(mean, sd, nothing, nothing), torch.ones(len(mean), dtype=torch.bool), True)


def _as_posterior(broken: Broken) -> Refined:
    return broken.posterior.refine(num_draws=_ANSWER_DRAWS)


def _as_draws(method: str) -> Callable[[Broken], Refined]:
    def refined(broken: Broken) -> Refined:
        theta, log_q = broken.q.rsample_and_log_prob(_DRAWS, generator_for(_SEED, 2))
        return refine_draws(broken.model, broken.dataset, theta, log_q, method=method, num_draws=_ANSWER_DRAWS)
    return refined


@dataclass(frozen=True)
class Fault:
    """A way of being wrong.

    Attributes:
        title: readable.
        make: number of datasets -> wrong posteriors.
        refine: how they go through the ladder.
    """

    title: str
    make: Callable[[int], Broken]
    refine: Callable[[Broken], Refined] = _as_posterior


FAULTS: Mapping[str, Fault] = {
    "too_narrow": Fault("too narrow by two", lambda count: _regression(count, 0.0, 0.5)),
    "shifted": Fault("moved by one sd", lambda count: _regression(count, 1.0, 1.0)),
    "one_mode": Fault("one mode of two", _one_mode),
    "one_mode_draws": Fault("draws of one mode of two, without q", _one_mode, _as_draws("auto")),
    "one_mode_chains": Fault("draws of one mode of two, many chains", _one_mode, _as_draws("mcmc")),
}


def caught(name: str, count: int) -> dict[str, float]:
    """Shares over ``count`` datasets: caught (not answered by q as it is, weighted or not, and trusted), failed,
    trusted, and accurate and wrong answers among the trusted.
    """
    fault = FAULTS[name]
    broken = fault.make(count)
    refined = fault.refine(broken)
    errors = errors_of(refined.posterior, broken.reference, parameters, _ANSWER_DRAWS)
    through = refined.trusted & errors.wrong
    accurate = (errors.accurate_up_to_chance & refined.trusted).double().sum() / refined.trusted.sum()
    kept = torch.tensor([status == "amortized" for status in refined.status])
    return {"caught": float((~kept & ~through).double().mean()), "failed": float(refined.failed.double().mean()),
            "trusted": float(refined.trusted.double().mean()), "trusted_accurate": float(accurate),
            "trusted_wrong": float(through.double().mean())}
