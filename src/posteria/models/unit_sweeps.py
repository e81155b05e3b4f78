"""The inner loops of :mod:`posteria.models.unit_columns`, compiled: unit after unit, and places one beside the other.

Every step is a few products of small matrices, for which tensor operations would take several times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

# Compiled at the first call, in a second or two: a cache on disk would want a place where it may write. The order of
# sums is left to the compiler.
_compiled = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})


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
        sums: (N + 1, 5) sums of 1, x, x squared, y and x y over the first rows.
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
    sizes, pulls = np.empty(places), np.empty(places)
    current, mine = np.empty((rows, units)), np.empty((places, rows))
    for c in range(len(columns)):
        for h in range(units):
            current[:, h] = columns[c, chains.place[c, h], h]
        for j in order:
            for k in range(places):
                mine[k] = columns[c, k, j]
                sizes[k] = np.dot(mine[k], mine[k])
                pulls[k] = chains.prior[c, j] + np.dot(mine[k], target[c])
            np.dot(mine, current, across)
            _choose(c, j, across, sizes, pulls, solved, chains)
            current[:, j] = mine[chains.picked[c, j]]


@_compiled
def sweep_lines(lines: Lines, order: np.ndarray, chains: Chains) -> None:
    """The same of rectified lines, whose products are differences of sums, however many rows there are."""
    units, places = lines.slope.shape[1:]
    across, solved = np.empty((places, units)), np.empty((places, units))
    sizes, pulls = np.empty(places), np.empty(places)
    weights, span = np.empty((2, units)), np.empty((2, units), np.int64)
    for c in range(len(lines.slope)):
        for h in range(units):
            _put(lines, c, h, chains.place[c, h], weights, span)
        for j in order:
            for k in range(places):
                slope, offset = lines.slope[c, j, k], lines.offset[c, j, k]
                first, last = lines.first[c, j, k], lines.last[c, j, k]
                _products(lines.sums, slope, offset, first, last, weights, span, across[k])
                sizes[k] = _product(lines.sums, slope, offset, slope, offset, first, last)
                pulls[k] = chains.prior[c, j] + lines.root[c] * _pull(lines.sums, slope, offset, first, last)
            _choose(c, j, across, sizes, pulls, solved, chains)
            _put(lines, c, j, chains.picked[c, j], weights, span)


@_compiled
def products_of_lines(lines: Lines, picked: np.ndarray, products: np.ndarray, pulls: np.ndarray) -> None:
    """Fills in products (C, H, H) of the picked (C, H) lines with each other, and (C, H) with y."""
    units = picked.shape[1]
    weights, span = np.empty((2, units)), np.empty((2, units), np.int64)
    for c in range(len(picked)):
        for h in range(units):
            _put(lines, c, h, picked[c, h], weights, span)
        for h in range(units):
            slope, offset, first, last = weights[0, h], weights[1, h], span[0, h], span[1, h]
            _products(lines.sums, slope, offset, first, last, weights, span, products[c, h])
            pulls[c, h] = lines.root[c] * _pull(lines.sums, slope, offset, first, last)


@_compiled
def _put(lines: Lines, c: int, h: int, k: int, weights: np.ndarray, span: np.ndarray) -> None:
    """Unit h is at place k now."""
    weights[0, h], weights[1, h] = lines.slope[c, h, k], lines.offset[c, h, k]
    span[0, h], span[1, h] = lines.first[c, h, k], lines.last[c, h, k]


@_compiled
def _products(sums: np.ndarray, slope: float, offset: float, first: int, last: int, weights: np.ndarray,
              span: np.ndarray, products: np.ndarray) -> None:
    """Of a line with all units' (H,)."""
    for h in range(len(products)):
        begin = max(first, span[0, h])
        end = max(begin, min(last, span[1, h]))
        products[h] = _product(sums, slope, offset, weights[0, h], weights[1, h], begin, end)


@_compiled
def _product(sums: np.ndarray, slope: float, offset: float, other: float, its_offset: float, first: int,
             last: int) -> float:
    return (slope * other * (sums[last, 2] - sums[first, 2])
            + (slope * its_offset + offset * other) * (sums[last, 1] - sums[first, 1])
            + offset * its_offset * (sums[last, 0] - sums[first, 0]))


@_compiled
def _pull(sums: np.ndarray, slope: float, offset: float, first: int, last: int) -> float:
    return slope * (sums[last, 4] - sums[first, 4]) + offset * (sums[last, 3] - sums[first, 3])


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
    _solve(across, inverse, solved)
    for k in range(places):
        # Products with the inverse of the other units' precision, in which this unit's row and column are zero.
        share, explained, expected = solved[k, j] / own, 0.0, 0.0
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
    solved[chosen, j] = -1.0
    _exchange(inverse, column, own, solved[chosen], left[chosen])


@_compiled
def _solve(across: np.ndarray, inverse: np.ndarray, solved: np.ndarray) -> None:
    """across (K, H) times the inverse (H, H)."""
    solved[:] = 0.0
    for i in range(len(inverse)):
        for k in range(len(across)):
            for h in range(len(inverse)):
                solved[k, h] += across[k, i] * inverse[i, h]


@_compiled
def _exchange(inverse: np.ndarray, column: np.ndarray, own: float, new: np.ndarray, left: float) -> None:
    """A unit's column goes, of which ``column`` is the inverse's, and another comes."""
    for i in range(len(inverse)):
        up, down = new[i] / left, column[i] / own
        for h in range(len(inverse)):
            inverse[i, h] += up * new[h] - down * column[h]
