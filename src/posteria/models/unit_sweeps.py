"""The inner loops of :mod:`posteria.models.unit_columns`, compiled: unit after unit, and places one beside the other.

Every step is a few products of 32 numbers, for which calls of a library for each would take several times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

# Compiled at the first call, in a second or two: a cache on disk would want a place where it may write.
_compiled = numba.njit(nogil=True, error_model="numpy")


class Chains(NamedTuple):
    """C chains in a sweep. A unit's choice is the place whose height and luck add up to most.

    Attributes:
        luck: (C, H, K).
        place: (C, H) where units are at first.
        prior: (C, H) what the output weights' prior adds to their pull.
        inverse: (C, H, H) of the output weights' precision, kept up to date; and so are
        pulled: (C, H) the precision times their mean, and
        gained: (C,) how much more evidence than at first.
        picked: (C, H) the choices.
    """

    luck: np.ndarray
    place: np.ndarray
    prior: np.ndarray
    inverse: np.ndarray
    pulled: np.ndarray
    gained: np.ndarray
    picked: np.ndarray


class Lines(NamedTuple):
    """H units at K places of C chains, rectified lines of sorted x.

    Attributes:
        slope, offset: (C, H, K).
        first, last: (C, H, K) the rows first <= i < last are those where the line is above zero.
        sums: (5, N + 1) sums of 1, x, x squared, y and x y over the first rows.
        root: (C,) one over the noise, whose units lines are in and y is not.
    """

    slope: np.ndarray
    offset: np.ndarray
    first: np.ndarray
    last: np.ndarray
    sums: np.ndarray
    root: np.ndarray


@_compiled
def sweep_columns(columns: np.ndarray, target: np.ndarray, order: np.ndarray, chains: Chains) -> None:
    """Of columns (C, K, H, N) for targets (C, N), in an order (H,) of units."""
    places, units, rows = columns.shape[1:]
    across, solved = np.empty((places, units)), np.empty((places, units))
    current = np.empty((rows, units))
    for c in range(len(columns)):
        for h in range(units):
            current[:, h] = columns[c, chains.place[c, h], h]
        for j in order:
            across[:] = 0.0
            sizes, pulls = np.zeros(places), np.full(places, chains.prior[c, j])
            for n in range(rows):
                for k in range(places):
                    value = columns[c, k, j, n]
                    if value != 0.0:  # half of the rectified ones are
                        sizes[k] += value * value
                        pulls[k] += value * target[c, n]
                        for h in range(units):
                            across[k, h] += value * current[n, h]
            _choose(c, j, across, sizes, pulls, solved, chains)
            current[:, j] = columns[c, chains.picked[c, j], j]


@_compiled
def sweep_lines(lines: Lines, order: np.ndarray, chains: Chains) -> None:
    """The same of rectified lines, whose products are differences of sums, however many rows there are."""
    units, places = lines.slope.shape[1:]
    across, solved = np.empty((places, units)), np.empty((places, units))
    sizes, pulls = np.empty(places), np.empty(places)
    for c in range(len(lines.slope)):
        now = chains.place[c].copy()
        for j in order:
            for k in range(places):
                sizes[k] = _product(lines, c, j, k, j, k)
                pulls[k] = chains.prior[c, j] + _pull(lines, c, j, k)
                for h in range(units):
                    across[k, h] = _product(lines, c, j, k, h, now[h])
            _choose(c, j, across, sizes, pulls, solved, chains)
            now[j] = chains.picked[c, j]


@_compiled
def products_of_lines(lines: Lines, picked: np.ndarray, gram: np.ndarray, pulls: np.ndarray) -> None:
    """Fills in products (C, H, H) of the picked (C, H) lines with each other, and (C, H) with y."""
    for c in range(len(picked)):
        for j in range(picked.shape[1]):
            pulls[c, j] = _pull(lines, c, j, picked[c, j])
            for h in range(picked.shape[1]):
                gram[c, j, h] = _product(lines, c, j, picked[c, j], h, picked[c, h])


@_compiled
def _product(lines: Lines, c: int, j: int, k: int, h: int, l: int) -> float:  # noqa: E741
    first = max(lines.first[c, j, k], lines.first[c, h, l])
    last = min(lines.last[c, j, k], lines.last[c, h, l])
    if last <= first:
        return 0.0
    a, b, sums = lines.slope[c, j, k], lines.offset[c, j, k], lines.sums
    u, v = lines.slope[c, h, l], lines.offset[c, h, l]
    return (a * u * (sums[2, last] - sums[2, first]) + (a * v + b * u) * (sums[1, last] - sums[1, first])
            + b * v * (sums[0, last] - sums[0, first]))


@_compiled
def _pull(lines: Lines, c: int, j: int, k: int) -> float:
    first, last, sums = lines.first[c, j, k], lines.last[c, j, k], lines.sums
    if last <= first:
        return 0.0
    return lines.root[c] * (lines.slope[c, j, k] * (sums[4, last] - sums[4, first])
                            + lines.offset[c, j, k] * (sums[3, last] - sums[3, first]))


@_compiled
def _choose(c: int, j: int, across: np.ndarray, sizes: np.ndarray, pulls: np.ndarray, solved: np.ndarray,
            chains: Chains) -> None:
    """Unit j's choice, by products (K, H) of its columns with the units', with themselves (K,), and with y (K,).

    Args:
        solved: (K, H) to work in.
    """
    places, units = across.shape
    inverse, pulled, luck = chains.inverse[c], chains.pulled[c], chains.luck[c, j]
    column, own = inverse[j].copy(), inverse[j, j]
    left, height = np.empty(places), np.empty(places)
    chosen, highest = chains.place[c, j], -np.inf
    for k in range(places):
        # Products with the inverse of the other units' precision, in which this unit's row and column are zero.
        solved[k] = 0.0
        for i in range(units):
            for h in range(units):
                solved[k, h] += across[k, i] * inverse[i, h]
        share = solved[k, j] / own
        explained, expected = 0.0, 0.0
        for h in range(units):
            solved[k, h] = 0.0 if h == j else solved[k, h] - share * column[h]
            explained += solved[k, h] * across[k, h]
            expected += solved[k, h] * pulled[h]
        left[k] = 1.0 + sizes[k] - explained
        height[k] = 0.5 * ((pulls[k] - expected) ** 2 / left[k] - np.log(left[k]))
        if height[k] + luck[k] > highest:
            chosen, highest = k, height[k] + luck[k]
    chains.gained[c] += height[chosen] - height[chains.place[c, j]]
    chains.picked[c, j], pulled[j] = chosen, pulls[chosen]
    row = -solved[chosen]
    row[j] = 1.0
    for i in range(units):
        for h in range(units):
            inverse[i, h] += row[i] * row[h] / left[chosen] - column[i] * column[h] / own
