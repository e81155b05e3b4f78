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
    current = np.empty((8, units))
    for c in range(len(lines.slope)):
        for h in range(units):
            _put(lines, c, h, chains.place[c, h], current)
        for j in order:
            for k in range(places):
                sizes[k], pull = _products(lines, c, j, k, current, across[k])
                pulls[k] = chains.prior[c, j] + pull
            _choose(c, j, across, sizes, pulls, solved, chains)
            _put(lines, c, j, chains.picked[c, j], current)


@_compiled
def products_of_lines(lines: Lines, picked: np.ndarray, products: np.ndarray, pulls: np.ndarray) -> None:
    """Fills in products (C, H, H) of the picked (C, H) lines with each other, and (C, H) with y."""
    units = picked.shape[1]
    current = np.empty((8, units))
    for c in range(len(picked)):
        for h in range(units):
            _put(lines, c, h, picked[c, h], current)
        for h in range(units):
            _, pulls[c, h] = _products(lines, c, h, picked[c, h], current, products[c, h])


@_compiled
def _put(lines: Lines, c: int, h: int, k: int, current: np.ndarray) -> None:
    """Unit h is at place k now: its slope, offset, and sums of 1, x and x squared before its rows and with them."""
    current[0, h], current[1, h] = lines.slope[c, h, k], lines.offset[c, h, k]
    first, last = lines.first[c, h, k], lines.last[c, h, k]
    for i in range(3):
        current[2 + i, h], current[5 + i, h] = lines.sums[first, i], lines.sums[last, i]


@_compiled
def _products(lines: Lines, c: int, j: int, k: int, current: np.ndarray, products: np.ndarray) -> tuple[float, float]:
    """Of a unit's line with all units' (H,); returns that with itself and with y.

    Rows are numbered by their sum of ones, and of two rows' sums the right one is chosen: looking them up takes longer.
    """
    sums, slope, offset = lines.sums, lines.slope[c, j, k], lines.offset[c, j, k]
    first, last = lines.first[c, j, k], lines.last[c, j, k]
    zero, one, two = sums[first, 0], sums[first, 1], sums[first, 2]
    zero_last, one_last, two_last = sums[last, 0], sums[last, 1], sums[last, 2]
    for h in range(len(products)):
        later, sooner = current[2, h] > zero, current[5, h] < zero_last
        count = (current[5, h] if sooner else zero_last) - (current[2, h] if later else zero)
        linear = (current[6, h] if sooner else one_last) - (current[3, h] if later else one)
        square = (current[7, h] if sooner else two_last) - (current[4, h] if later else two)
        product = (slope * current[0, h] * square + (slope * current[1, h] + offset * current[0, h]) * linear
                   + offset * current[1, h] * count)
        products[h] = product if count > 0.0 else 0.0
    size = (slope * slope * (two_last - two) + 2.0 * slope * offset * (one_last - one)
            + offset * offset * (zero_last - zero))
    return size, lines.root[c] * (slope * (sums[last, 4] - sums[first, 4]) + offset * (sums[last, 3] - sums[first, 3]))


@_compiled
def _choose(c: int, j: int, across: np.ndarray, sizes: np.ndarray, pulls: np.ndarray, solved: np.ndarray,
            chains: Chains) -> None:
    """Unit j's choice, by products (K, H) of its columns with the units', with themselves (K,), and with y (K,).

    Args:
        solved: (K, H) to work in.
    """
    inverse, pulled, luck = chains.inverse[c], chains.pulled[c], chains.luck[c, j]
    own, before = 1.0 / inverse[j, j], chains.place[c, j]
    chosen, highest, left, chosen_height, height_before = before, -np.inf, 1.0, 0.0, 0.0
    np.dot(across, inverse, solved)
    known = own * _dot(inverse[j], pulled)
    for k in range(len(across)):
        # With the inverse of the other units' precision, in which this unit's row and column are zero.
        explained = _dot(solved[k], across[k]) - own * solved[k, j] ** 2
        expected = _dot(solved[k], pulled) - known * solved[k, j]
        rest = 1.0 + sizes[k] - explained
        height = 0.5 * ((pulls[k] - expected) ** 2 / rest - np.log(rest))
        if k == before:
            height_before = height
        if height + luck[k] > highest:
            chosen, highest, left, chosen_height = k, height + luck[k], rest, height
    chains.gained[c] += chosen_height - height_before
    chains.picked[c, j], pulled[j] = chosen, pulls[chosen]
    _exchange(inverse, j, solved[chosen], 1.0 / left)


@_compiled
def _dot(one: np.ndarray, other: np.ndarray) -> float:
    total = 0.0
    for h in range(len(one)):
        total += one[h] * other[h]
    return total


@_compiled
def _exchange(inverse: np.ndarray, j: int, new: np.ndarray, share: float) -> None:
    """Unit j's column goes, and another comes.

    Args:
        new: (H,) the other column's products with the inverse. To work in.
        share: of the other column's precision, one over what the other units leave of it.
    """
    own, column = 1.0 / inverse[j, j], inverse[j].copy()
    known = own * new[j]
    for h in range(len(new)):
        new[h] -= known * column[h]
    new[j] = -1.0
    for i in range(len(inverse)):
        up, down = share * new[i], own * column[i]
        for h in range(len(inverse)):
            inverse[i, h] += up * new[h] - down * column[h]
