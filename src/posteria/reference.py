"""Reference posteriors: run a per-dataset baseline on a model, and say whether it can be trusted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posteria.baselines import BASELINES, Baseline, Budget, Sampler, run
from posteria.baselines.base import at_least
from posteria.errors import InputError, UnsupportedError
from posteria.metrics.convergence import Convergence
from posteria.models import Model
from posteria.models.log_joint import ModelLogJoint
from posteria.models.parameters import FEATURES, Layout
from posteria.posterior import Posterior
from posteria.randomness import generator_for, randn
from posteria.types import Dataset

if TYPE_CHECKING:
    import pandas as pd

NUTS = "nuts"
# Chains times rows that go through a processor together: fewer take longer, more take memory.
_BLOCK_ROWS = 2**16
_BUDGET = tuple(f.name for f in fields(Budget) if f.name != "num_samples")


class Empirical:
    """Draws theta (B, S, P) as a distribution; implements :class:`posteria.types.ThetaDistribution` but for densities.

    Args:
        theta: (B, S, P) draws.
        active: (B, P) bool.
    """

    def __init__(self, theta: Tensor, active: Tensor):
        self.theta, self.active = theta, active

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, num_samples, P) different draws, each as often as the next one when more are asked for than there are."""
        available = self.theta.shape[1]
        repeats = -(-num_samples // available)
        order = [torch.randperm(available, generator=generator, device=self.theta.device) for _ in range(repeats)]
        return self.theta[:, torch.cat(order)[:num_samples]]

    def log_prob(self, theta: Tensor) -> Tensor:
        """Raise an UnsupportedError: draws have no density."""
        raise UnsupportedError("log_prob: this posterior consists of draws, which have no density; "
                               "takes an estimator's posterior, or model.log_joint up to a constant")

    def rsample_and_log_prob(
        self, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Raise an UnsupportedError, as :meth:`log_prob`."""
        return self.rsample(num_samples, generator), self.log_prob(self.theta)

    def detach(self) -> Empirical:
        """Itself: draws carry no gradient."""
        return self

    def kl_to_normal(self, location: Tensor, scale: Tensor) -> Tensor | None:
        """None: draws have no density."""
        return None


@dataclass(frozen=True, eq=False)
class BaselineRun:
    """What a baseline found for B datasets.

    Attributes:
        model, dataset, method, settings: what was run, on what.
        theta: (B, C, S, P) draws in double precision: chains, draws, parameters; zero where inactive.
        seconds: wall time.
        convergence: diagnostics of the chains, or None for a method without chains.
        converged: (B,) bool; for a method without chains, True throughout.
        divergences: (B,) long, divergent transitions while sampling.
        accept: (B,) mean acceptance probability while sampling; NaN where the method does not say.
    """

    model: Model
    dataset: Dataset
    method: str
    theta: Tensor
    seconds: float
    convergence: Convergence | None
    converged: Tensor
    divergences: Tensor
    accept: Tensor
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def posterior(self) -> Posterior:
        """The draws as a posterior, in the dataset's precision: everything but densities works."""
        theta = self.theta.flatten(1, 2).to(self.dataset.x.dtype)
        return Posterior(self.model, self.dataset, Empirical(theta, self.model.active(self.dataset)))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what is wrong with the draws; empty when nothing is known to be."""
        notes = ()
        if self.convergence is not None and not self.converged.all():
            worst = {name: value[~self.converged] for name, value in self.convergence.worst.items()}
            notes += (f"{self.method}: {int((~self.converged).sum())} of {len(self.converged)} datasets have not "
                      f"converged (R-hat up to {worst['r_hat'].max():.3g}, bulk ESS down to "
                      f"{worst['ess_bulk'].min():.0f}); their draws are not a reference",)
        if self.divergences.any():
            share = self.divergences.double().mean() / self.theta.shape[1:3].numel()
            notes += (f"{self.method}: divergent transitions in {int((self.divergences > 0).sum())} of "
                      f"{len(self.divergences)} datasets, {int(self.divergences.max())} at most, {share:.2g} per draw; "
                      "sharp corners of the posterior may be missing",)
        return notes

    def summary(self, **options: Any) -> pd.DataFrame:
        """:meth:`posteria.Posterior.summary` of the draws; for chains, with a column ``converged`` per dataset."""
        table = self.posterior.summary(**options)
        if self.convergence is None:
            return table
        marks = self.converged.tolist()
        if len(marks) == 1:
            return table.assign(converged=marks[0])
        return table.assign(converged=[marks[i] for i in table.index.get_level_values("dataset")])


def run_baseline(model: Model, dataset: Dataset, method: str = "hmc", *, num_chains: int | None = None,
                 num_samples: int | None = None, seed: int = 0, **settings: Any) -> BaselineRun:
    """Run a per-dataset method on B datasets at once.

    Args:
        model: any model with a likelihood.
        dataset: B datasets; everything is computed in double precision, but for gradients that lead trajectories of
            "hmc": those are in the dataset's own, and its accept step makes draws right whatever they are.
        method: one of :data:`posteria.baselines.BASELINES`, or "nuts" (NumPyro's, one dataset after the other; needs
            the extra ``numpyro``).
        num_chains, num_samples: C chains of S draws; default the method's own.
        seed: of all randomness.
        settings: ``thin``, ``rounds``, ``max_r_hat``, ``min_ess`` (see :class:`posteria.baselines.Budget`); ``start``,
            where chains start: "prior" (the default), "zeros" or "xavier"; for "optimization", ``objective``: "map" or
            "mle"; and the arguments of the method's ``build``.

    Raises:
        InputError: an unknown method or setting, or a number out of its range.
        UnsupportedError: a model without likelihood, or "nuts" without NumPyro.

    Examples:
        >>> from posteria.models import GaussianMean
        >>> done = run_baseline(GaussianMean(), Dataset.of([[0.5], [1.5]]), num_chains=4)
        >>> done.theta.shape, bool(done.converged.all())
        (torch.Size([1, 4, 500, 1]), True)
    """
    if method == NUTS:
        return _run_nuts(model, dataset, num_chains, num_samples, seed, settings)
    if method not in BASELINES:
        raise InputError.of("method", repr(method), f"one of {sorted([*BASELINES, NUTS])}")
    model.check(dataset)
    plan = _Plan.of(method, num_chains, num_samples, settings)
    wide, generator = dataset.double(), generator_for(seed, device=dataset.device)
    joint = OBJECTIVES[plan.objective](model, wide)
    theta = STARTS[plan.start](model, wide, plan.num_chains, generator)
    draws = run(_rebuild(plan, model, dataset), (theta - joint.location) / joint.scale, joint.active, generator,
                plan.budget, plan.spec.chains, _block(wide, plan.num_chains))
    theta = torch.where(joint.active[:, None, None], joint.location + joint.scale * draws.z, 0.0)
    return BaselineRun(model, dataset, method, theta, draws.seconds, draws.convergence, draws.converged,
                       draws.divergences, draws.accept, plan.settings)


@dataclass(frozen=True)
class _Plan:
    """Checked settings of a run."""

    spec: Baseline
    num_chains: int
    budget: Budget
    start: str
    objective: str
    building: Mapping[str, Any]

    @classmethod
    def of(cls, method: str, num_chains: int | None, num_samples: int | None, settings: Mapping[str, Any]) -> _Plan:
        spec = BASELINES[method]
        num_chains = at_least("num_chains", spec.num_chains if num_chains is None else num_chains, 1)
        num_samples = spec.num_samples if num_samples is None else num_samples
        if not spec.several and num_samples != 1:
            raise InputError.of("num_samples", num_samples, f"1 for {method}: num_chains says how many draws there are")
        chosen = {"thin": spec.thin, "rounds": spec.rounds, "start": "prior", "objective": "map"} | dict(settings)
        building = {k: v for k, v in chosen.items() if k not in (*_BUDGET, "start", "objective")}
        _check_settings(method, spec, building, settings)
        budget = Budget(num_samples, **{k: v for k, v in chosen.items() if k in _BUDGET})
        return cls(spec, num_chains, budget, _among("start", chosen["start"], STARTS),
                   _among("objective", chosen["objective"], OBJECTIVES), building)

    @property
    def settings(self) -> dict[str, Any]:
        """All of them, for the record."""
        budget = {f.name: getattr(self.budget, f.name) for f in fields(Budget)}
        return {"num_chains": self.num_chains, **budget, "start": self.start, "objective": self.objective,
                **self.building}


def _check_settings(method: str, spec: Baseline, building: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(spec.build).parameters if name not in ("log_joint", "steer")]
    unknown = sorted(set(building) - set(known))
    if unknown:
        raise InputError.of("settings", str(unknown), f"for {method}: {[*known, *_BUDGET, 'start']}")
    if "objective" in settings and method != "optimization":
        raise InputError.of("objective", repr(settings["objective"]), 'this setting with method="optimization" only')


def _among(name: str, value: object, known: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or value not in known:
        raise InputError.of(name, repr(value), f"one of {sorted(known)}")
    return value


def _rebuild(plan: _Plan, model: Model, dataset: Dataset) -> Callable[[Tensor, int], Sampler]:
    """Samplers for some of the datasets; with a longer warm-up where they run again."""
    def build(index: Tensor, longer: int) -> Sampler:
        target = OBJECTIVES[plan.objective](model, dataset[index].double())
        led = {"steer": ModelLogJoint(model, dataset[index]).steer} if plan.spec.steered else {}
        settings = {**plan.building, **led}
        sampler = plan.spec.build(target, **settings)
        if longer == 1:
            return sampler
        return plan.spec.build(target, **{**settings, "num_warmup": longer * sampler.num_warmup})

    return build


def _block(dataset: Dataset, num_chains: int) -> int | None:
    """How many datasets go through a processor together; all of them through an accelerator."""
    if dataset.device.type != "cpu":
        return None
    return max(1, _BLOCK_ROWS // (num_chains * dataset.x.shape[1]))


# -- what is climbed or sampled, and from where ------------------------------------------------


class LogLikelihood(ModelLogJoint):
    """The log likelihood alone, as if the prior were flat: what maximum likelihood climbs."""

    @torch.no_grad()
    def score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self._require_likelihood()
        log_likelihood, score = self.model.likelihood_score(self.theta(z), self.dataset)
        return log_likelihood, self._bounded(score * self.scale)


OBJECTIVES: dict[str, type[ModelLogJoint]] = {"map": ModelLogJoint, "mle": LogLikelihood}


def _from_prior(model: Model, dataset: Dataset, num: int, generator: torch.Generator) -> Tensor:
    return model.sample_prior(dataset, num, generator).to(dataset.x.dtype)


def _zeros(model: Model, dataset: Dataset, num: int, generator: torch.Generator) -> Tensor:
    return dataset.x.new_zeros(len(dataset), num, model.layout_of(dataset).size)


def _xavier(model: Model, dataset: Dataset, num: int, generator: torch.Generator) -> Tensor:
    like = _zeros(model, dataset, num, generator)
    features = dataset.features[:, len(model.extra_columns):].sum(-1)
    scale = xavier_scale(model.layout_of(dataset), features)
    return randn(*like.shape, like=like, generator=generator) * scale[:, None]


STARTS: dict[str, Callable[[Model, Dataset, int, torch.Generator], Tensor]] = {
    "prior": _from_prior, "zeros": _zeros, "xavier": _xavier}


def xavier_scale(layout: Layout, num_features: Tensor) -> Tensor:
    """(B, P) standard deviations sqrt(2 / (inputs + outputs)) of weights, zero for all else (Glorot & Bengio 2010).

    Args:
        layout: of the parameters; blocks whose names end in "weights" are weights, (outputs, inputs) or (inputs,).
        num_features: (B,) long, real features of each dataset: the inputs of the first layer.
    """
    scales = []
    for block in layout.blocks:
        inputs = torch.ones_like(num_features) * (block.shape[-1] if block.shape else 1)
        if FEATURES in block.parameter.shape:
            inputs = num_features
        outputs = block.shape[-2] if len(block.shape) > 1 else 1
        scale = (2.0 / (inputs + outputs)).sqrt() * block.name.endswith("weights")
        scales.append(scale[:, None].expand(-1, block.size))
    return torch.cat(scales, -1)


# -- NUTS ----------------------------------------------------------------------------------------


def _run_nuts(model: Model, dataset: Dataset, num_chains: int | None, num_samples: int | None, seed: int,
              settings: Mapping[str, Any]) -> BaselineRun:
    """NumPyro's NUTS behind the same door; the referee says what is missing where NumPyro is."""
    from posteria.referee import run_nuts

    limits = {name: settings[name] for name in ("max_r_hat", "min_ess") if name in settings}
    sizes = {name: value for name, value in (("num_chains", num_chains), ("num_samples", num_samples))
             if value is not None}
    rest = {name: value for name, value in settings.items() if name not in limits}
    done = run_nuts(model, dataset, seed=seed, **sizes, **rest)
    theta = torch.where(model.active(dataset)[:, None, None], done.theta, 0.0)
    nowhere = torch.full((len(dataset),), torch.nan, dtype=theta.dtype)
    return BaselineRun(model, dataset, NUTS, theta, float(done.seconds.sum()) + done.compile_seconds,
                       done.convergence, done.convergence.converged(**limits), done.divergences, nowhere,
                       {**sizes, **rest, **limits})
