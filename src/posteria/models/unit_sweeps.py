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
        white: (C, H) normal noise, of which the output weights are made.
        picked: (C, H) the choices, filled in; and so are
        weights: (C, H) a draw of the output weights given those, in the prior's sds, and
        rounding: (C,) what the evidence of the choices differs by from that at first and what every choice gained.
    """

    luck: np.ndarray
    place: np.ndarray
    prior: np.ndarray
    white: np.ndarray
    picked: np.ndarray
    weights: np.ndarray
    rounding: np.ndarray


class Lines(NamedTuple):
    """H units at K places of C chains, rectified lines of sorted x.

    Attributes:
        slope, offset: (C, K, H).
        x: (N,) ascending.
        sums: (N + 1, 5) sums of 1, x, x squared, y and x y over the first rows.
        root: (C,) one over the noise, whose units lines are in and y is not.
    """

    slope: np.ndarray
    offset: np.ndarray
    x: np.ndarray
    sums: np.ndarray
    root: np.ndarray


@_compiled
def turn(z: np.ndarray, noise: np.ndarray, apart: np.ndarray, place: np.ndarray, units: np.ndarray,
         choices: np.ndarray) -> None:
    """Fills in choices (C, K, P): points on the ellipses of z and noise (C, P).

    Args:
        apart: (C, H) angles between one point of a unit and the next.
        place: (C, H) which of them are at z.
        units: (P,) of every parameter, or -1, which stays at z.
    """
    for c in range(len(choices)):
        cos, sin = np.empty(apart.shape[1]), np.empty(apart.shape[1])
        for k in range(choices.shape[1]):
            for h in range(len(cos)):
                angle = (k - place[c, h]) * apart[c, h]
                cos[h], sin[h] = np.cos(angle), np.sin(angle)
            for i in range(len(units)):
                h = units[i]
                choices[c, k, i] = z[c, i] if h < 0 else cos[h] * z[c, i] + sin[h] * noise[c, i]


@_compiled
def sweep_columns(columns: np.ndarray, target: np.ndarray, order: np.ndarray, chains: Chains) -> None:
    """Of columns (C, K, H, N) for targets (C, N), in an order (H,) of units."""
    others, units, rows = columns.shape[1] - 1, columns.shape[2], columns.shape[3]
    across, solved = np.empty((others, units)), np.empty((others, units))
    sizes, pulls = np.empty(others), np.empty(others)
    current, mine = np.empty((rows, units)), np.empty((others, rows))
    square, pulled = np.empty((units, units)), np.empty(units)
    for c in range(len(columns)):
        for h in range(units):
            current[:, h] = columns[c, chains.place[c, h], h]
        np.dot(current.T, current, square)
        np.dot(target[c], current, pulled)
        evidence = _start(c, square, pulled, chains)
        for j in order:
            for i in range(others):
                mine[i] = columns[c, _other(i, chains.place[c, j]), j]
                sizes[i] = np.dot(mine[i], mine[i])
                pulls[i] = chains.prior[c, j] + np.dot(mine[i], target[c])
            np.dot(mine, current, across)
            gained, chosen = _choose(c, j, across, sizes, pulls, solved, square, pulled, chains)
            evidence += gained
            if chosen >= 0:
                current[:, j] = mine[chosen]
        np.dot(current.T, current, square)
        _end(c, square, pulled, evidence, chains)


@_compiled
def sweep_lines(lines: Lines, order: np.ndarray, chains: Chains) -> None:
    """The same of rectified lines, whose products are differences of sums, however many rows there are."""
    others, units = lines.slope.shape[1] - 1, lines.slope.shape[2]
    across, solved = np.empty((others, units)), np.empty((others, units))
    sizes, pulls = np.empty(others), np.empty(others)
    current, mine = np.empty((8, units)), np.empty((8, others))
    square, pulled = np.empty((units, units)), np.empty(units)
    for c in range(len(lines.slope)):
        for h in range(units):
            pulled[h] = _find(lines, c, chains.place[c, h], h, current, h)
        _products_of_all(current, square)
        evidence = _start(c, square, pulled, chains)
        for j in order:
            for i in range(others):
                pulls[i] = chains.prior[c, j] + _find(lines, c, _other(i, chains.place[c, j]), j, mine, i)
                sizes[i] = _products(mine, i, current, across[i])
            gained, chosen = _choose(c, j, across, sizes, pulls, solved, square, pulled, chains)
            evidence += gained
            if chosen >= 0:
                current[:, j] = mine[:, chosen]
        _products_of_all(current, square)
        _end(c, square, pulled, evidence, chains)


@_compiled
def products_of_lines(lines: Lines, products: np.ndarray, pulls: np.ndarray) -> None:
    """Fills in products (C, H, H) of the lines at the first place with each other, and (C, H) with y."""
    current = np.empty((8, pulls.shape[1]))
    for c in range(len(pulls)):
        for h in range(pulls.shape[1]):
            pulls[c, h] = _find(lines, c, 0, h, current, h)
        _products_of_all(current, products[c])


@_compiled
def _find(lines: Lines, c: int, k: int, h: int, found: np.ndarray, column: int) -> float:
    """Fills in a column of found (8, ·): a line's slope and offset, and sums of 1, x and x squared before the rows
    where it is above zero and with them; returns its product with y.
    """
    slope, offset, rows = lines.slope[c, k, h], lines.offset[c, k, h], len(lines.x)
    first, last = 0, rows
    if slope == 0.0:
        first = 0 if offset > 0.0 else rows
    elif slope < 0.0:
        last = _below(lines.x, -offset / slope)
    else:
        first = _below(lines.x, -offset / slope)
    before, after = lines.sums[first], lines.sums[last]
    found[0, column], found[1, column] = slope, offset
    for i in range(3):
        found[2 + i, column], found[5 + i, column] = before[i], after[i]
    return lines.root[c] * (slope * (after[4] - before[4]) + offset * (after[3] - before[3]))


@_compiled
def _below(x: np.ndarray, bound: float) -> int:
    """How many of ascending x (N,) are below a bound."""
    first, left = 0, len(x)
    while left > 0:
        half = (left + 1) // 2
        first += half if x[first + half - 1] < bound else 0
        left -= half
    return first


@_compiled
def _products_of_all(current: np.ndarray, products: np.ndarray) -> None:
    """(H, H) of all units' lines, as found (8, H), with each other."""
    for h in range(len(products)):
        _products(current, h, current, products[h])


@_compiled
def _products(mine: np.ndarray, k: int, current: np.ndarray, products: np.ndarray) -> float:
    """Of a unit's line, in column k as found, with all units' (H,); returns that with itself.

    Rows are numbered by their sum of ones, and of two rows' sums the right one is chosen: looking them up takes longer.
    """
    slope, offset, zero, one, two, zero_last, one_last, two_last = mine[:, k]
    for h in range(len(products)):
        later, sooner = current[2, h] > zero, current[5, h] < zero_last
        count = (current[5, h] if sooner else zero_last) - (current[2, h] if later else zero)
        linear = (current[6, h] if sooner else one_last) - (current[3, h] if later else one)
        square = (current[7, h] if sooner else two_last) - (current[4, h] if later else two)
        product = (slope * current[0, h] * square + (slope * current[1, h] + offset * current[0, h]) * linear
                   + offset * current[1, h] * count)
        products[h] = product if count > 0.0 else 0.0
    return (slope * slope * (two_last - two) + 2.0 * slope * offset * (one_last - one)
            + offset * offset * (zero_last - zero))


@_compiled
def _start(c: int, square: np.ndarray, pulled: np.ndarray, chains: Chains) -> float:
    """The evidence at first, but for a constant.

    Args:
        square: (H, H) products of the columns with each other, in whose place the inverse of the output weights'
            precision comes, by Gauss and Jordan's steps; those take no other pivots, for none is less than one.
        pulled: (H,) with y; the precision times their mean afterwards.
    """
    evidence, row = 0.0, np.empty(len(square))
    for p in range(len(square)):
        square[p, p] += 1.0
        pulled[p] += chains.prior[c, p]
    for p in range(len(square)):
        own = 1.0 / square[p, p]
        evidence += 0.5 * np.log(own)
        row[:] = square[p]  # a copy, for compilers vectorise no loop that may write into what it reads
        row[p] = -1.0
        square[p], square[:, p] = 0.0, 0.0
        for i in range(len(square)):
            share = own * row[i]
            for h in range(len(square)):
                square[i, h] -= share * row[h]
    for p in range(len(square)):
        for h in range(len(square)):
            square[p, h] = -square[p, h]
    for p in range(len(square)):
        evidence += 0.5 * pulled[p] * _dot(square[p], pulled)
    return evidence


@_compiled
def _end(c: int, square: np.ndarray, pulled: np.ndarray, evidence: float, chains: Chains) -> None:
    """Draws output weights: by elimination, the noise put in on the way back.

    Args:
        square: (H, H) products of the chosen columns with each other, and
        pulled: (H,) the precision times the weights' mean. Both to work in.
        evidence: as it should be.
    """
    weights, row = chains.weights[c], np.empty(len(square))
    for p in range(len(square)):
        square[p, p] += 1.0
    for p in range(len(square)):
        own = 1.0 / square[p, p]
        evidence -= 0.5 * (own * pulled[p] ** 2 + np.log(own))
        row[:] = square[p]
        for i in range(p + 1, len(square)):
            share = own * row[i]
            pulled[i] -= share * pulled[p]
            for h in range(len(square)):
                square[i, h] -= share * row[h]
    for p in range(len(square) - 1, -1, -1):
        own, total = 1.0 / square[p, p], pulled[p]
        for h in range(p + 1, len(square)):
            total -= square[p, h] * weights[h]
        weights[p] = own * total + np.sqrt(own) * chains.white[c, p]
    chains.rounding[c] = -evidence


@_compiled
def _other(i: int, before: int) -> int:
    """The place that is the ith of those but one."""
    return i if i < before else i + 1


@_compiled
def _choose(c: int, j: int, across: np.ndarray, sizes: np.ndarray, pulls: np.ndarray, solved: np.ndarray,
            inverse: np.ndarray, pulled: np.ndarray, chains: Chains) -> tuple[float, int]:
    """Unit j's choice, by products (K - 1, H) of its columns at other places with the units', with themselves (K - 1,),
    and with y (K - 1,).

    Args:
        solved: (K - 1, H) to work in.
        inverse: (H, H) of the output weights' precision, and
        pulled: (H,) that precision times their mean: both are kept up to date.

    Returns:
        The evidence that was gained, and the number of the choice among other places, or -1.
    """
    luck, own, before = chains.luck[c, j], 1.0 / inverse[j, j], chains.place[c, j]
    known = own * _dot(inverse[j], pulled)
    height_before = 0.5 * (known * known / own - np.log(own))
    chosen, highest, left, chosen_height = -1, height_before + luck[before], own, height_before
    _times(across, inverse, solved)
    for i in range(len(across)):
        # With the inverse of the other units' precision, in which this unit's row and column are zero.
        explained, expected = 0.0, -known * solved[i, j]
        for h in range(len(inverse)):
            explained += solved[i, h] * across[i, h]
            expected += solved[i, h] * pulled[h]
        rest = 1.0 + sizes[i] - explained + own * solved[i, j] ** 2
        height, k = 0.5 * ((pulls[i] - expected) ** 2 / rest - np.log(rest)), _other(i, before)
        if height + luck[k] > highest:
            chosen, highest, left, chosen_height = i, height + luck[k], rest, height
    if chosen >= 0:
        chains.picked[c, j], pulled[j] = _other(chosen, before), pulls[chosen]
        _exchange(inverse, j, solved[chosen], 1.0 / left)
    return chosen_height - height_before, chosen


@_compiled
def _times(rows: np.ndarray, square: np.ndarray, products: np.ndarray) -> None:
    """Rows (K, H) times a symmetric matrix (H, H), four sums at a time: a library takes longer, but for a few units."""
    whole = len(square) // 4 * 4
    for i in range(len(rows)):
        for h in range(0, whole, 4):
            first = second = third = fourth = 0.0
            for k in range(len(square)):
                value = rows[i, k]
                first += value * square[h, k]
                second += value * square[h + 1, k]
                third += value * square[h + 2, k]
                fourth += value * square[h + 3, k]
            products[i, h], products[i, h + 1] = first, second
            products[i, h + 2], products[i, h + 3] = third, fourth
        for h in range(whole, len(square)):
            products[i, h] = _dot(rows[i], square[h])


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
