"""The families and conditions of `posteria bench universal`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from posteria.tasks.many_models import FAMILIES, LOG_LINK, LOGIT, Family, VariedInputsTask, generalized_linear, pose

_ROWS, _COLUMNS, _MOST_CELLS = (4, 2000), (1, 64), 20_000
TRAINED, BEYOND, WIDE, NARROW, HELD_OUT = (
    "trained", "beyond", "wide_priors", "narrow_priors", "held_out")


@dataclass(frozen=True)
class UniversalCase:
    """Models of a family under a condition.

    Attributes:
        family: what is drawn from.
        rows, columns, most_cells: as for :class:`posteria.tasks.ManyModelsTask`.
        large: datasets take much time and memory, so that a cell has a tenth of them.
        log_concave: of its likelihood; what a Gaussian may lose is judged by it.
    """

    family: Family
    rows: tuple[int, int] = _ROWS
    columns: tuple[int, int] = _COLUMNS
    most_cells: int = _MOST_CELLS
    large: bool = False
    log_concave: bool = True

    def task(self, generator: torch.Generator) -> VariedInputsTask:
        """The task of one model, drawn anew."""
        return pose(self.family, self.rows, self.columns, self.most_cells, generator)


# Log-concave in the coefficients for normal and Laplace priors; noise scales and Student-t priors apart.
_LOG_CONCAVE = ("gaussian_mean", "linear", "logistic", "categorical", "poisson")
_BEYOND = ("linear", "logistic", "poisson")
_PRIORS = ("linear_noise", "logistic", "poisson", "gamma")
_UNSEEN = {name: generalized_linear(name, scales) for name, scales in (
    ("probit", LOGIT), ("beta_binomial", LOGIT), ("survival", LOG_LINK))}


def _conditions(name: str, family: Family) -> dict[str, UniversalCase]:
    concave = name in _LOG_CONCAVE
    found = {TRAINED: UniversalCase(family, log_concave=concave)}
    if name in _BEYOND:
        wide = replace(family, columns=(200, 200))
        found[BEYOND] = UniversalCase(wide, (5000, 5000), (200, 200), 1_000_000, True, concave)
    if name in _PRIORS:
        low, high = family.scales
        found[WIDE] = UniversalCase(replace(family, scales=(high, 2 * high)), log_concave=concave)
        found[NARROW] = UniversalCase(replace(family, scales=(low / 2, low)), log_concave=concave)
    return found


CASES: Mapping[str, Mapping[str, UniversalCase]] = {
    **{name: _conditions(name, family) for name, family in FAMILIES.items()},
    **{name: {HELD_OUT: UniversalCase(family)} for name, family in _UNSEEN.items()},
    "many_groups": {HELD_OUT: UniversalCase(
        Family("hierarchical", {"groups": [25, 50, 100], "varying_slopes": [False, True], "family": ["gaussian"]},
               (0.3, 3.0), (1, 3)), (500, 2000), most_cells=8000, large=True, log_concave=False)},
}
