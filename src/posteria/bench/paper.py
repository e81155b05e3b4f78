"""The numbers of arXiv 2502.06601, Tables 1 to 24, as data.

``paper.csv`` holds one row per printed number (mean, and the number after its plus/minus sign). Readings where the
print is ambiguous:

- linear regression "2D" (Tables 8, 16) is compared with 1D: the prior's row fits 2 (d + 1) + 0.25 at d = 1 only;
- Table 6 says squared 2-Wasserstein, but its prior's row fits the root, so it is compared with the root.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_TEXT = ("setup", "task", "activation", "data", "objective", "density", "encoder", "metric")
# The paper's metric -> our figure.
FIGURES = {"l2": "l2_per_draw", "accuracy": "accuracy_per_draw", "symmetric_kl_per_dim": "symmetric_kl",
           "w2_squared": "w2"}


@cache
def paper_numbers() -> pd.DataFrame:
    """All numbers, a row each: table, setup, task, activation, layers, dim, classes, data, objective, density,
    encoder, metric, mean, std, and ``figure``, the name of ours to compare with.

    Sizes that do not apply are 0, and names that do not apply are empty.
    """
    import pandas as pd

    with files("posteria.bench").joinpath("paper.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file, dtype=dict.fromkeys(_TEXT, "string"))
    for name in _TEXT:
        table[name] = table[name].fillna("").astype(object)
    for name in ("layers", "dim", "classes"):
        table[name] = table[name].fillna(0).astype(int)
    one_dimensional = (table.task == "linear_regression") & (table.dim == 2)
    table.loc[one_dimensional, "dim"] = 1
    return table.assign(figure=table.metric.map(FIGURES))
