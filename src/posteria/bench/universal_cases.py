"""The families and conditions of `posteria bench universal`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posteria.bench.trust_accuracy import MOST_MEAN_ERROR
from posteria.models import Model, build_model
from posteria.tasks.many_models import FAMILIES, LOG_LINK, LOGIT, Family, VariedInputsTask, generalized_linear, pose
from posteria.types import Dataset

_ROWS, _COLUMNS, _MOST_CELLS = (4, 2000), (1, 64), 20_000
TRAINED, BEYOND, WIDE, NARROW, HELD_OUT, NUTS_TOO = (
    "trained", "beyond", "wide_priors", "narrow_priors", "held_out", "beside_nuts")
# Standard errors of eight coaching programmes (Rubin 1981, J. Educ. Stat. 6), over 10.
_SCHOOLS = (1.5, 1.0, 1.6, 1.1, 0.9, 1.1, 1.0, 1.8)
# A radon survey's size: homes, counties, and the share measured on the first floor (Gelman & Hill 2007, section 12.2).
_HOMES, _COUNTIES, _FIRST_FLOOR = 919, 85, 0.17
# Batches of large datasets that make a thousand.
_MANY = 200


@dataclass(frozen=True)
class UniversalCase:
    """Models of a family under a condition.

    Attributes:
        family: what is drawn from.
        rows, columns, most_cells: as for :class:`posteria.tasks.ManyModelsTask`.
        large: datasets take much time and memory, so that a cell has a tenth of them.
        laptop_batches: at that scale, where large ones take little time.
        dear: the log joint takes long, so that fewer datasets are optimised.
        log_concave: of its likelihood; what a Gaussian may lose is judged by it.
        beside_nuts: datasets of every batch that are compared with NUTS.
        mean_error: what means are asked to be within there, in sds.
    """

    family: Family
    rows: tuple[int, int] = _ROWS
    columns: tuple[int, int] = _COLUMNS
    most_cells: int = _MOST_CELLS
    large: bool = False
    laptop_batches: int | None = None
    dear: bool = False
    log_concave: bool = True
    beside_nuts: int = 0
    mean_error: float = MOST_MEAN_ERROR

    def task(self, generator: torch.Generator) -> VariedInputsTask:
        """The task of one model, drawn anew."""
        return pose(self.family, self.rows, self.columns, self.most_cells, generator)


@dataclass(frozen=True)
class DesignedTask:
    """Datasets simulated from a model, all at the same inputs (a batch of one, without y)."""

    model: Model
    inputs: Dataset

    def draw(self, num_datasets: int, generator: torch.Generator) -> tuple[Dataset, Tensor]:
        """B datasets and their theta (B, P)."""
        inputs = self.inputs[torch.zeros(num_datasets, dtype=torch.long)]
        theta = self.model.sample_prior(inputs, 1, generator)[:, 0]
        return self.model.simulate(theta, inputs, generator), theta


@dataclass(frozen=True)
class DesignedCase:
    """A model that is not drawn, at inputs that are; the answers are compared with NUTS, too.

    Attributes:
        model: of all datasets.
        inputs: drawn anew for every batch.
        large, laptop_batches, dear, log_concave: see :class:`UniversalCase`.
        beside_nuts: datasets of every batch that are compared.
        mean_error: what means are asked to be within, in sds; half of what they are judged by, since NUTS errs, too.
    """

    model: Model
    inputs: Callable[[torch.Generator], Dataset]
    large: bool = True
    laptop_batches: int | None = None
    dear: bool = False
    log_concave: bool = False
    beside_nuts: int = 2
    mean_error: float = 0.5 * MOST_MEAN_ERROR

    def task(self, generator: torch.Generator) -> DesignedTask:
        """The task at inputs drawn anew."""
        return DesignedTask(self.model, self.inputs(generator))


def _inputs(*columns: Tensor, features: tuple[bool, ...]) -> Dataset:
    x = torch.stack(columns, -1)[None]
    return Dataset(x, None, torch.ones(x.shape[:2], dtype=torch.bool), torch.tensor([features]))


def schools(generator: torch.Generator) -> Dataset:
    """A row per school: its number, its standard error, and a feature that is not there."""
    error = torch.tensor(_SCHOOLS)
    return _inputs(torch.arange(len(error)).float(), error, torch.zeros_like(error), features=(True, True, False))


def homes(generator: torch.Generator) -> Dataset:
    """A row per home: its county, of very different sizes, and whether it was measured on the first floor."""
    sizes = torch.randn(_COUNTIES, generator=generator).exp()
    county = torch.multinomial(sizes, _HOMES, replacement=True, generator=generator)
    first = torch.rand(_HOMES, generator=generator) < _FIRST_FLOOR
    return _inputs(county.float(), first.float(), features=(True, True))


def _radon(varying_slopes: bool) -> DesignedCase:
    model = build_model("hierarchical", family="gaussian", groups=_COUNTIES, varying_slopes=varying_slopes)
    return DesignedCase(model, homes, beside_nuts=1 if varying_slopes else 2)  # NUTS takes minutes there


# Log-concave in the coefficients for normal and Laplace priors; noise scales and Student-t priors apart.
_LOG_CONCAVE = ("gaussian_mean", "linear", "logistic", "categorical", "poisson")
_BEYOND = ("linear", "logistic", "poisson")
_DEAR = ("negative_binomial", "hierarchical", "neural", "neural_classes", "beta_binomial")
_PRIORS = ("linear_noise", "logistic", "poisson", "gamma")
_UNSEEN = {name: generalized_linear(name, scales) for name, scales in (
    ("probit", LOGIT), ("beta_binomial", LOGIT), ("survival", LOG_LINK))}


def _conditions(name: str, family: Family) -> dict[str, UniversalCase]:
    concave = name in _LOG_CONCAVE
    found = {TRAINED: UniversalCase(family, dear=name in _DEAR, log_concave=concave)}
    if name in _BEYOND:
        wide = replace(family, columns=(200, 200))
        found[BEYOND] = UniversalCase(wide, (5000, 5000), (200, 200), 1_000_000, large=True, laptop_batches=_MANY,
                                      log_concave=concave)
    if name in _PRIORS:
        low, high = family.scales
        found[WIDE] = UniversalCase(replace(family, scales=(high, 2 * high)), log_concave=concave)
        found[NARROW] = UniversalCase(replace(family, scales=(low / 2, low)), log_concave=concave)
    return found


def _alone(case: DesignedCase) -> DesignedCase:
    """Without NUTS, so that there can be a thousand datasets."""
    return replace(case, beside_nuts=0, laptop_batches=_MANY)


_EIGHT_SCHOOLS = DesignedCase(
    build_model("hierarchical", family="gaussian", noise="column", groups=len(_SCHOOLS)), schools)
_MANY_GROUPS = UniversalCase(
    Family("hierarchical", {"groups": [25, 50, 100], "varying_slopes": [False, True], "family": ["gaussian"]},
           (0.3, 3.0), (1, 3)), (500, 2000), most_cells=8000, large=True, log_concave=False)
CASES: Mapping[str, Mapping[str, UniversalCase | DesignedCase]] = {
    **{name: _conditions(name, family) for name, family in FAMILIES.items()},
    **{name: {HELD_OUT: UniversalCase(family, dear=name in _DEAR)} for name, family in _UNSEEN.items()},
    "many_groups": {HELD_OUT: replace(_MANY_GROUPS, laptop_batches=_MANY),
                    NUTS_TOO: replace(_MANY_GROUPS, beside_nuts=1)},
    "eight_schools": {HELD_OUT: _alone(_EIGHT_SCHOOLS), NUTS_TOO: _EIGHT_SCHOOLS},
    "radon": {HELD_OUT: _alone(_radon(False)), NUTS_TOO: _radon(False)},
    "radon_slopes": {NUTS_TOO: _radon(True)},
}
