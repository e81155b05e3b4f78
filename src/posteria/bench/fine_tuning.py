"""MAP fine-tuning on real tables: how far the start decides how soon the test error is where it ends.

For every table, fold and family of models, 25 draws of a start (an estimator's posterior given the training fold, the
prior, or Xavier's initialisation of networks) are each trained by full-batch Adam, at a learning rate of 1e-3 for 2,500
steps, as in arXiv 2502.06601 (Figures 2 and 7 to 14). The paper's "weight decay 1" is read as the prior: what is
minimised is the negative log joint, the negative log likelihood summed over the training rows and -log N(theta; 0, I),
whose gradient is theta, which is what a weight decay of 1 adds. (Beside a mean over the rows it would be a prior as
strong as all the data together, and no MAP of the model.) Adam's steps do not depend on the scale of a loss.

The test error is squared error per draw in the units of Table 3 (targets standardised, times sqrt(d)), or the share of
rows misclassified per draw, in percent; its mean over folds and draws is taken every 10 steps. ``first_step`` is the
first of them at which it is within 1% of what it is at the end; ``settled_step`` the first from which on it stays so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from posteria.bench.methods import METHODS, Trained
from posteria.bench.real_tables import WHOLE_FOLD, TableCases, names_of_kind, real_tables, table_cases
from posteria.bench.runner import Figures
from posteria.bench.scales import Scale
from posteria.bench.setups import Setup
from posteria.bench.store import Result, key_of
from posteria.bench.tabular import FAMILIES, kind_of
from posteria.bench.workspace import Workspace, training_record
from posteria.errors import InputError
from posteria.estimator import Estimator
from posteria.metrics import accuracy_per_draw, l2_per_draw
from posteria.models import Model
from posteria.randomness import generator_for, randn
from posteria.types import Dataset

if TYPE_CHECKING:
    import pandas as pd

BENCH = "fine_tuning"
# Part of every cell's identity: count it up when figures change their meaning.
VERSION = 1
RATE = 1e-3
# What counts as having arrived: within this share of the error at the end.
TOLERANCE = 0.01
# The goal: an estimator's draws arrive in a tenth of the steps that the prior's take.
GOAL = 0.1
_SEED = 2_502_066_014


@dataclass(frozen=True)
class Sizes:
    """How much is fine-tuned at a scale.

    Attributes:
        folds: of the five, how many are held out.
        draws: of each start.
        steps: of Adam.
        every: steps between test errors.
        tables: at most so many of each kind.
    """

    folds: int = 5
    draws: int = 25
    steps: int = 2500
    every: int = 10
    tables: int = 13


SIZES: dict[str, Sizes] = {"smoke": Sizes(folds=2, draws=5, steps=100, tables=2), "laptop": Sizes(), "paper": Sizes()}


# -- starts -----------------------------------------------------------------------------------
def prior_start(model: Model, dataset: Dataset, count: int, generator: torch.Generator) -> Tensor:
    """(B, count, P) draws of the prior."""
    return model.sample_prior(dataset, count, generator)


def xavier_start(model: Model, dataset: Dataset, count: int, generator: torch.Generator) -> Tensor:
    """(B, count, P) weights N(0, 2 / (fan in + fan out)), biases and intercepts zero (Glorot & Bengio 2010, eq. 16)."""
    layout = model.layout_of(dataset)
    theta = torch.zeros(len(dataset), count, layout.size, device=dataset.device)
    for block in layout.blocks:
        if block.name.endswith("weights"):
            fans = block.shape[-1] + math.prod(block.shape[:-1])
            noise = randn(len(dataset), count, block.size, like=theta, generator=generator)
            theta[..., block.span] = math.sqrt(2 / fans) * noise
    return theta


Start = Callable[[Model, Dataset, int, torch.Generator], Tensor]
PRIOR, XAVIER = "prior", "xavier"
STARTS: dict[str, Start] = {PRIOR: prior_start, XAVIER: xavier_start}


def estimator_start(estimator: Estimator, dataset: Dataset, count: int, generator: torch.Generator) -> Tensor:
    """(B, count, P) draws of an estimator's posteriors, laid out for the dataset's own columns.

    The datasets have all their columns in common.
    """
    posterior = estimator.posterior(dataset)
    theta = posterior.sample_theta(count, generator)
    return theta[:, :, posterior.distribution.active[0]]


# -- training ---------------------------------------------------------------------------------
def fine_tune(model: Model, cases: TableCases, theta: Tensor, steps: int, every: int) -> Tensor:
    """Descend the negative log joint of B training folds from theta (B, S, P), all folds and draws at once.

    Args:
        model: with the prior N(0, I), which is the weight decay.
        cases: the folds.
        theta: where to start.
        steps: of full-batch Adam.
        every: steps between test errors.

    Returns:
        (B, 1 + steps // every) mean test error of the draws: before the first step, and after every so many.
    """
    point = theta.clone()
    adam = torch.optim.Adam([point], lr=RATE, weight_decay=1.0)
    errors = [held_out_error(model, point, cases.held_out)]
    for step in range(1, steps + 1):
        point.grad = -model.likelihood_score(point, cases.dataset)[1]
        adam.step()
        if step % every == 0:
            errors.append(held_out_error(model, point, cases.held_out))
    return torch.stack(errors, 1)


@torch.no_grad()
def held_out_error(model: Model, theta: Tensor, held_out: Dataset) -> Tensor:
    """(B,) mean over draws theta (B, S, P) of their squared error, or of the percentage of rows misclassified."""
    assert held_out.y is not None
    distribution = model.predict(theta, held_out)
    if isinstance(distribution, Categorical):
        return 100 - 100 * accuracy_per_draw(distribution.probs, held_out.y, held_out.observed)
    return l2_per_draw(distribution.mean[..., None], held_out.y[..., None], held_out.observed)


def first_within(errors: Tensor, every: int) -> int:
    """The first step at which the error (T,) is within 1% of the last one."""
    return every * int(_near_the_end(errors).long().argmax())


def settled_within(errors: Tensor, every: int) -> int:
    """The first step from which on the error (T,) stays within 1% of the last one."""
    away = (~_near_the_end(errors)).nonzero()
    return every * (int(away.max()) + 1 if len(away) else 0)


def _near_the_end(errors: Tensor) -> Tensor:
    return (errors - errors[-1]).abs() <= TOLERANCE * errors[-1].abs()


# -- cells ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class FineTuningCell:
    """A table, a family of models and a start; see :class:`posteria.bench.runner.Cell`.

    Attributes:
        table: its name.
        family: a key of :data:`posteria.bench.tabular.FAMILIES`, of the table's kind.
        start: a key of :data:`STARTS`, or of a trained method.
        scale, seed: as in the tables.
    """

    table: str
    family: str
    start: str
    scale: Scale
    seed: int = 0

    @property
    def bench(self) -> str:
        return BENCH

    @property
    def setup(self) -> Setup:
        """The model."""
        return FAMILIES[self.family]

    @property
    def setup_key(self) -> str:
        return f"{self.family}|{self.table}"

    @property
    def method_key(self) -> str:
        return self.start

    @property
    def scale_name(self) -> str:
        return self.scale.name

    @property
    def sizes(self) -> Sizes:
        """How much is fine-tuned."""
        return SIZES[self.scale.name]

    @property
    def identity(self) -> Mapping[str, Any]:
        sizes = {name: value for name, value in asdict(self.sizes).items() if name != "tables"}
        how = {"start": self.start} if self._method is None else {"config": self._config.model_dump(mode="json")}
        evaluation = {**sizes, "table": self.table, "rate": RATE, "version": VERSION}
        return {"bench": BENCH, "family": self.family, "evaluation": evaluation, "seed": self.seed, **how}

    @property
    def group(self) -> str:
        identity = self.identity
        return key_of(identity.get("config", identity))

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        cases = table_cases(next(real_tables([self.table])), WHOLE_FOLD, folds=self.sizes.folds).to(workspace.device)
        theta, record = self._theta(cases.dataset, workspace)
        errors = fine_tune(self.setup.build_model(), cases, theta, self.sizes.steps, self.sizes.every)
        return curve_figures(errors.double().cpu(), self.sizes.every), record

    def _theta(self, dataset: Dataset, workspace: Workspace) -> tuple[Tensor, Mapping[str, Any]]:
        """(B, S, P) where to start, and how the estimator that says so was trained."""
        generator = generator_for(_SEED, self.seed, dataset.device)
        if self._method is None:
            return STARTS[self.start](self.setup.build_model(), dataset, self.sizes.draws, generator), {}
        estimator = workspace.trained(self._config)
        return estimator_start(estimator, dataset, self.sizes.draws, generator), training_record(estimator)

    @property
    def _method(self) -> Trained | None:
        method = METHODS.get(self.start)
        return method if isinstance(method, Trained) else None

    @property
    def _config(self) -> Any:
        assert self._method is not None
        return self.scale.config(self.setup, self._method, self.seed)


def curve_figures(errors: Tensor, every: int) -> Figures:
    """``error@<step>``, with its standard error over folds, ``first_step`` and ``settled_step``, of errors (B, T)."""
    mean = errors.mean(0)
    spread = errors.std(0) / math.sqrt(len(errors)) if len(errors) > 1 else torch.full_like(mean, math.nan)
    curve = {f"error@{every * place}": {"mean": _finite(value), "standard_error": _finite(error)}
             for place, (value, error) in enumerate(zip(mean.tolist(), spread.tolist(), strict=True))}
    steps = {"first_step": first_within(mean, every), "settled_step": settled_within(mean, every)}
    return {**curve, **{name: {"mean": float(step), "standard_error": None} for name, step in steps.items()}}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def tables_of(family: str, scale: Scale) -> tuple[str, ...]:
    """Names of a family's tables at a scale."""
    return names_of_kind(kind_of(FAMILIES[family]))[:SIZES[scale.name].tables]


def fine_tuning_cells(family: str, scale: Scale, starts: Sequence[str], tables: Sequence[str] = (),
                      seed: int = 0) -> list[FineTuningCell]:
    """The cells of a family of models.

    Args:
        family: a key of :data:`posteria.bench.tabular.FAMILIES`.
        scale: budget and sizes.
        starts: keys of :data:`STARTS` and of trained methods.
        tables: names; default all of the family's kind.
        seed: of training and of the draws.

    Raises:
        InputError: a family, start or table that does not exist.
    """
    _check("family", [family], FAMILIES)
    trained = [name for name, method in METHODS.items() if isinstance(method, Trained)]
    _check("starts", starts, [*STARTS, *trained])
    known = tables_of(family, scale)
    _check("tables", tables, known)
    return [FineTuningCell(table, family, start, scale, seed) for start in starts for table in tables or known]


def _check(argument: str, names: Sequence[str], known: Any) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError.of(argument, str(unknown), f"names among {list(known)}")


# -- what came out ----------------------------------------------------------------------------
def merit_frame(results: Sequence[Result]) -> pd.DataFrame:
    """A row per family, table and start: errors at both ends, steps until it is within 1% of the end, ratios.

    ``ratio`` and ``settled_ratio`` are those steps over the prior's; missing where the prior's are not there or 0.
    """
    import pandas as pd

    rows = pd.DataFrame(list(_merits(results)), columns=["family", "table", "start", "first_error", "last_error",
                                                         "first_step", "settled_step"])
    prior = rows[rows.start == PRIOR].set_index(["family", "table"])
    keys = pd.MultiIndex.from_arrays([rows.family, rows.table])
    for name, ratio in (("first_step", "ratio"), ("settled_step", "settled_ratio")):
        of_prior = prior[name].reindex(keys).to_numpy(dtype="float64")
        rows[ratio] = (rows[name] / of_prior).where(of_prior > 0)
    return rows


def _merits(results: Sequence[Result]) -> Iterator[tuple[Any, ...]]:
    for result in results:
        family, table = result.setup.split("|")
        ends = [result.figures[f"error@{step}"]["mean"] for step in (0, result.identity["evaluation"]["steps"])]
        steps = [result.figures[name]["mean"] for name in ("first_step", "settled_step")]
        yield family, table, result.method, *ends, *steps


def curve_of(result: Result) -> tuple[list[int], list[float], list[float]]:
    """Steps, mean test errors and their standard errors of a cell; numbers that were not finite are NaN."""
    points = {int(name.removeprefix("error@")): values for name, values in result.figures.items()
              if name.startswith("error@")}
    steps = sorted(points)
    mean, error = ([_number(points[step][part]) for step in steps] for part in ("mean", "standard_error"))
    return steps, mean, error


def _number(value: float | None) -> float:
    return math.nan if value is None else value
