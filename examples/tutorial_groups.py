"""Tutorial: one posterior for each of 2,000 stores, in one call. Run: python examples/tutorial_groups.py [stores]"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd
import torch

import posteria
from posteria.tables import TableCodec, in_units

GROUP, TARGET = "store", "log_sales"


# --8<-- [start:data]
def sales(num_stores: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Weeks of sales per store, and each store's true price elasticity and effect of promotions."""
    rng = np.random.default_rng(seed)
    truth = pd.DataFrame(rng.normal([-1.5, 0.4], [0.5, 0.2], (num_stores, 2)), columns=["log_price", "promotion"])
    weeks = rng.integers(40, 105, num_stores)
    store = np.repeat(np.arange(num_stores), weeks)
    log_price, promotion = rng.normal(1.0, 0.3, len(store)), rng.binomial(1, 0.3, len(store))
    log_sales = (rng.normal(6.0, 0.5, num_stores)[store] + truth.log_price.to_numpy()[store] * log_price
                 + truth.promotion.to_numpy()[store] * promotion + rng.normal(0, 0.3, len(store)))
    table = pd.DataFrame({GROUP: store, "log_price": log_price, "promotion": promotion, TARGET: log_sales})
    return table, truth
# --8<-- [end:data]


# --8<-- [start:batch]
def batch_of(table: pd.DataFrame, codec: TableCodec) -> posteria.Dataset:
    """One padded dataset per group: rows of group g fill the first places of line g, the mask says which are real."""
    group = torch.tensor(table[GROUP].to_numpy())
    week = torch.tensor(table.groupby(GROUP).cumcount().to_numpy())
    whole = codec.dataset(table.drop(columns=GROUP))  # standardised, all groups in one
    assert whole.y is not None
    size = (int(group.max()) + 1, int(week.max()) + 1)
    x, y = torch.zeros(*size, whole.x.shape[-1]), torch.zeros(size)
    observed = torch.zeros(size, dtype=torch.bool)
    x[group, week], y[group, week], observed[group, week] = whole.x[0], whole.y[0], True
    return posteria.Dataset.of(x, y, observed)
# --8<-- [end:batch]


# --8<-- [start:tidy]
def tidy(units: dict[str, torch.Tensor], features: tuple[str, ...]) -> pd.DataFrame:
    """A row per group and feature: mean, sd and 90% interval of the weight, in the table's units."""
    weights = units["weights"]  # (groups, draws, features)
    low, high = torch.quantile(weights, torch.tensor([0.05, 0.95], dtype=weights.dtype), dim=1)
    index = pd.MultiIndex.from_product([range(len(weights)), features], names=[GROUP, "feature"])
    columns = {"mean": weights.mean(1), "sd": weights.std(1), "5%": low, "95%": high}
    return pd.DataFrame({name: value.flatten().numpy() for name, value in columns.items()}, index=index)
# --8<-- [end:tidy]


def main(num_stores: int = 2000) -> pd.DataFrame:
    table, truth = sales(num_stores)
    # --8<-- [start:infer]
    estimator = posteria.load("linear_regression")
    codec = TableCodec.for_model(estimator.model, table.drop(columns=GROUP), TARGET)

    start = time.perf_counter()
    posterior = codec.name(estimator.posterior(batch_of(table, codec)))  # all stores at once
    draws = posterior.sample(1000, seed=0)
    seconds = time.perf_counter() - start
    print(f"{len(posterior):,} posteriors, 1,000 draws each, from {len(table):,} rows: {seconds:.1f} s")

    units = in_units(estimator.model, draws, codec.scaling)
    assert units is not None
    result = tidy(units, codec.features)
    print(result.head(6).round(3).to_string())
    # --8<-- [end:infer]
    # --8<-- [start:check]
    true = truth[list(codec.features)].to_numpy().ravel()
    inside = (result["5%"] <= true) & (true <= result["95%"])
    print(f"true values inside their 90% interval: {inside.mean():.1%}")
    # --8<-- [end:check]
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
