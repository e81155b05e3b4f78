"""Two questions that the paper leaves open, asked of models whose posterior is known.

``positions``: what does it cost a Transformer to be told the order of rows that have none?
``pooling``: why can a GRU, which sees an order, beat a DeepSets network, which sees a set? Candidates are what it pools
(a mean of features has no products of them), whether it can count (a mean over rows is the same for more rows, and
the width of a posterior is not), and how its networks are trained (normalisation, dropout).

Two models, Gaussian mean 2D and linear regression 2D, with the paper's diagonal Gaussian. A network that does not know
the number of rows, 64 to 128, cannot come below a symmetric KL of 0.0100 per parameter on the first, even with the
exact mean; no diagonal Gaussian comes below 0.0058 on the second. Both questions go on beyond the sizes of training.

The design of ``pooling`` is not a full factorial: pooling × sizes is complete, and normalisation, dropout and the GRU
vary one factor at a time around the mean with sizes. Forward KL is run for the mean and the GRU alone, with and without
sizes. Networks have about 50,000 weights each (those with moments 66,000), the Transformers 100,000; on one setup, all
variants of an ablation take as many steps. Sums over rows start a hundred times too large for this recipe, and
extrapolate in proportion: compare their medians over seeds, or orders of magnitude, since a few datasets make the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posteria.bench.cases import draw_cases
from posteria.bench.measure import PerDatasetFigures, summarise
from posteria.bench.runner import Figures
from posteria.bench.scales import Scale
from posteria.bench.setups import ROWS, SETUPS, Setup
from posteria.bench.store import key_of
from posteria.bench.workspace import Workspace, training_record
from posteria.densities.gaussian import GaussianTheta
from posteria.errors import InputError, UnsupportedError
from posteria.estimator import Estimator
from posteria.metrics import gaussian_symmetric_kl
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.training import TrainConfig
from posteria.types import Dataset, ThetaDistribution

BENCH = "ablations"
SEEDS = 5
# (least, most) rows: those of training, then two, four and eight times the most.
SIZES = (ROWS, (256, 256), (512, 512), (1024, 1024))
_REVERSE: tuple[str, ...] = ("reverse_kl",)
_BOTH: tuple[str, ...] = ("reverse_kl", "forward_kl")
_SHUFFLES, _SHUFFLE_SEED = 100, 61_803
# Steps in units of the ablation's own.
_STEPS = {"smoke": 0.005, "laptop": 1.0, "paper": 20.0}
# Part of every cell's identity: count it up when figures change their meaning.
_VERSION = 1


# -- what is compared -------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One encoder of an ablation.

    Attributes:
        name: unique within its ablation.
        encoder: name and options.
        objectives: those it is trained with.
    """

    name: str
    encoder: Mapping[str, Any]
    objectives: tuple[str, ...] = _REVERSE


@dataclass(frozen=True)
class Ablation:
    """Variants that differ in what is studied, and the recipe that they share.

    Attributes:
        name: its key.
        variants: the first is the one that the others are compared with.
        steps: of training on each setup (by key), at the scale "laptop".
        recipe: further fields of the training configuration.
    """

    name: str
    variants: tuple[Variant, ...]
    steps: Mapping[str, int]
    recipe: Mapping[str, Any]

    def config(self, variant: Variant, setup: Setup, objective: str, seed: int, scale: Scale) -> TrainConfig:
        """The configuration of one training run."""
        task = {"rows": list(ROWS), "columns": list(setup.columns)}
        return TrainConfig.of(model=setup.model, encoder=dict(variant.encoder), density="gaussian",
                              objective=objective, task={"name": "simulated", "options": task}, seed=seed,
                              steps=max(1, round(self.steps[setup.key] * _STEPS[scale.name])), **self.recipe)


def _transformer(**options: Any) -> dict[str, Any]:
    return {"name": "transformer", "options": {"layers": 2, "width": 64, **options}}


def _deepsets(**options: Any) -> dict[str, Any]:
    return {"name": "deepsets", "options": {"layers": 2, "width": 128, **options}}


def _gru(**options: Any) -> dict[str, Any]:
    return {"name": "gru", "options": {"layers": 1, "width": 128, **options}}


_POOLING = (
    Variant("mean", _deepsets(), _BOTH),
    Variant("mean_no_sizes", _deepsets(sizes=False), _BOTH),
    Variant("sum", _deepsets(pooling="sum")),
    Variant("sum_no_sizes", _deepsets(pooling="sum", sizes=False)),
    Variant("max", _deepsets(pooling="max")),
    Variant("max_no_sizes", _deepsets(pooling="max", sizes=False)),
    Variant("moments", _deepsets(pooling="moments")),
    Variant("moments_no_sizes", _deepsets(pooling="moments", sizes=False)),
    Variant("mean_normalised", _deepsets(normalise=True)),
    Variant("mean_dropout", _deepsets(dropout=0.1)),
    Variant("gru", _gru(), _BOTH),
    Variant("gru_no_sizes", _gru(sizes=False), _BOTH),
)
_POSITIONS = (Variant("none", _transformer()), Variant("sinusoidal", _transformer(positions="sinusoidal")))

ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation for ablation in (
        Ablation("positions", _POSITIONS, {"gm_2d": 1000, "lr_2d": 2000}, {"batch_size": 32, "learning_rate": 1e-3}),
        Ablation("pooling", _POOLING, {"gm_2d": 800, "lr_2d": 1600}, {"batch_size": 32, "learning_rate": 3e-3}),
    )
}


# -- cells ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AblationCell:
    """A variant, trained with one objective and seed on one setup; see :class:`posteria.bench.runner.Cell`."""

    ablation: Ablation
    variant: Variant
    setup: Setup
    objective: str
    scale: Scale
    seed: int

    @property
    def bench(self) -> str:
        return BENCH

    @property
    def setup_key(self) -> str:
        return self.setup.key

    @property
    def method_key(self) -> str:
        return f"{self.ablation.name}/{self.variant.name}/{self.objective}"

    @property
    def scale_name(self) -> str:
        return self.scale.name

    @property
    def config(self) -> TrainConfig:
        """Of the training run."""
        return self.ablation.config(self.variant, self.setup, self.objective, self.seed, self.scale)

    @property
    def identity(self) -> Mapping[str, Any]:
        evaluation = {"sizes": [list(size) for size in SIZES], "num_datasets": self.scale.num_datasets,
                      "num_shuffles": _SHUFFLES, "version": _VERSION}
        return {"bench": BENCH, "setup": self.setup.key, "evaluation": evaluation,
                "config": self.config.model_dump(mode="json")}

    @property
    def group(self) -> str:
        return key_of(self.identity["config"])

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        estimator = workspace.trained(self.config)
        return ablation_figures(estimator, self.scale.num_datasets), training_record(estimator)


def ablation_cells(name: str, scale: Scale, seeds: int = SEEDS) -> list[AblationCell]:
    """The cells of an ablation, seed by seed.

    Args:
        name: "positions" or "pooling".
        scale: budget and number of test datasets.
        seeds: how many.

    Raises:
        InputError: an ablation that does not exist, no seed.
    """
    if name not in ABLATIONS:
        raise InputError.of("ablation", repr(name), f"one of {sorted(ABLATIONS)}")
    if seeds < 1:
        raise InputError.of("seeds", seeds, "1 or more")
    ablation = ABLATIONS[name]
    return [AblationCell(ablation, variant, SETUPS[key], objective, scale, seed)
            for seed in range(seeds) for key in ablation.steps for variant in ablation.variants
            for objective in variant.objectives]


# -- figures ----------------------------------------------------------------------------------


def ablation_figures(estimator: Estimator, num_datasets: int) -> Figures:
    """How far a trained estimator is from the exact posterior at every size, and how far order moves it.

    Names are those of :func:`distance_figures`, followed by "_256" and so on beyond the sizes of training, and
    ``shuffle_spread``. All estimators see the same datasets and the same shuffles.

    Args:
        estimator: with a Gaussian density and a model that has an exact posterior.
        num_datasets: at each size.
    """
    figures: dict[str, dict[str, float | None]] = {}
    for least, most in SIZES:
        suffix = "" if (least, most) == ROWS else f"_{most}"
        batches = [distance_figures(estimator, d) for d in _datasets(estimator, num_datasets, (least, most))]
        figures |= {name + suffix: value for name, value in summarise(batches).items()}
    spreads = [shuffle_spread(estimator, d, _SHUFFLES, generator_for(_SHUFFLE_SEED, number, d.device))
               for number, d in enumerate(_datasets(estimator, num_datasets, ROWS))]
    return figures | summarise({"shuffle_spread": spread} for spread in spreads)


def distance_figures(estimator: Estimator, dataset: Dataset) -> PerDatasetFigures:
    """Figures (B,) of a Gaussian posterior against the exact one.

    - ``symmetric_kl``: half the sum of both divergences per parameter, in closed form (arXiv 2502.06601, appendix on
      metrics).
    - ``mean_error``: root mean square over parameters of the error of the mean, in exact posterior sds.
    - ``sd_error``: root mean square over parameters of log (sd / exact sd).
    - ``log_sd_ratio``: mean over parameters of log (sd / exact sd); above zero is too wide.

    Raises:
        UnsupportedError: another density, or a model without an exact posterior.
    """
    posterior = estimator.posterior(dataset)
    q, active = _gaussian(posterior.distribution), posterior.active
    exact = estimator.model.exact_posterior(posterior.dataset)
    mean, covariance = q.mean.double(), q.covariance.double()
    off = (mean - exact.mean) / exact.stddev
    log_ratio = 0.5 * covariance.diagonal(dim1=-2, dim2=-1).log() - exact.stddev.log()
    return {"symmetric_kl": gaussian_symmetric_kl(mean, covariance, exact.mean, exact.covariance_matrix, active),
            "mean_error": _mean(off.square(), active).sqrt(), "sd_error": _mean(log_ratio.square(), active).sqrt(),
            "log_sd_ratio": _mean(log_ratio, active)}


def shuffle_spread(estimator: Estimator, dataset: Dataset, num_shuffles: int = 100,
                   generator: torch.Generator | None = None) -> Tensor:
    """(B,) how far the order of rows moves the posterior mean, in posterior sds.

    For parameter p, s_p² = Var_shuffles[mean_p] / E_shuffles[variance_p]; the figure is the s_p of the parameter that
    moves most. Zero, up to rounding, for an encoder that does not see the order; 0.1 means that the order adds 1% to
    the variance of the posterior averaged over orders, which is what exchangeable rows call for.

    Args:
        estimator: with a Gaussian density.
        dataset: B datasets; every one is shuffled anew each time.
        num_shuffles: of each; at least 2.
        generator: of the shuffles, on the dataset's device; default a fixed seed.

    Raises:
        InputError: fewer than 2 shuffles.
        UnsupportedError: a density that is not Gaussian.
    """
    if num_shuffles < 2:
        raise InputError.of("num_shuffles", num_shuffles, "2 or more")
    generator = generator or generator_for(_SHUFFLE_SEED, device=dataset.device)
    posteriors = [estimator.posterior(_shuffled(dataset, generator)) for _ in range(num_shuffles)]
    shuffled = [_gaussian(posterior.distribution) for posterior in posteriors]
    means = torch.stack([q.mean.double() for q in shuffled])
    variances = torch.stack([q.variance.double() for q in shuffled])
    ratio = (means.var(0) / variances.mean(0)).sqrt()
    return torch.where(posteriors[0].active, ratio, 0.0).amax(-1)


def _shuffled(dataset: Dataset, generator: torch.Generator) -> Dataset:
    """Every dataset's rows, padding among them, in an order of its own."""
    keys = torch.rand(dataset.observed.shape, generator=generator, device=dataset.device)
    order = keys.argsort(1)
    x = dataset.x.gather(1, order[..., None].expand_as(dataset.x))
    y = None if dataset.y is None else dataset.y.gather(1, order)
    return Dataset(x, y, dataset.observed.gather(1, order), dataset.features)


def _datasets(estimator: Estimator, count: int, rows: tuple[int, int]) -> Iterator[Dataset]:
    """Test datasets in batches of one size, on the estimator's device."""
    task = SimulatedTask(estimator.model, rows, estimator.info.columns)
    return (case.dataset.to(estimator.device) for case in draw_cases(task, count))


def _gaussian(distribution: ThetaDistribution) -> GaussianTheta:
    if not isinstance(distribution, GaussianTheta):
        raise UnsupportedError.of("density", type(distribution).__name__, "a Gaussian one, whose moments are known")
    return distribution


def _mean(values: Tensor, active: Tensor) -> Tensor:
    """(B,) means over active parameters."""
    return torch.where(active, values, 0.0).sum(-1) / active.sum(-1)
