"""Are N values uniform on [0, 1]: a test of their empirical distribution function, its band, and Holm's correction.

The graphical test of Säilynoja, Bürkner, Vehtari (2022, "Graphical test for discrete uniformity and its applications
in goodness-of-fit evaluation and multiple sample comparison", Statistics and Computing 32:32): the distribution
function is looked at in some points z_1 < ... < z_K, where N F(z_k) is binomial under uniformity, and the statistic is
the smallest of the pointwise two-sided tail probabilities. Its distribution is computed exactly here, by the recursion
over z_k of their section 2.3 (counts at z_k given those at z_(k-1) are binomial), so that bands and p-values carry no
simulation error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posteria.errors import InputError

if TYPE_CHECKING:
    import numpy as np

_MOST_POINTS = 50
# P-values below the first are given as their union bound (at most a few times too large; one minus the probability
# of staying inside is mostly rounding there), and none below the second.
_SMALL_P_VALUE, _LEAST_P_VALUE = 1e-8, 1e-15
# Tail probabilities that agree to this relative error are equal.
_ROUNDING = 1e-9
_BISECTIONS = 40


@dataclass(frozen=True)
class Band:
    """A region that holds a whole curve with some probability, where the values are uniform.

    Attributes:
        points: (K,) where the curve is looked at.
        lower, upper: (K,) bounds of the fraction of values below each point; both ends belong to the band.
        level: the probability asked for; the band holds it or slightly more, because counts are whole numbers.
    """

    points: Tensor
    lower: Tensor
    upper: Tensor
    level: float


@dataclass(frozen=True)
class UniformityTest:
    """One set of values tested.

    Attributes:
        name: what was tested (a parameter, a test quantity).
        kind: how the values were made: "rank", "central", "hpd" or "tarp".
        points: (K,) z.
        fractions: (K,) fraction of the values below each z.
        num_datasets: N, how many values (one per dataset).
        p_value: probability under uniformity of a curve that is somewhere as far out as this one.
    """

    name: str
    kind: str
    points: Tensor
    fractions: Tensor
    num_datasets: int
    p_value: float

    def band(self, level: float) -> Band:
        """The simultaneous band of this test's curve; it leaves the band where its p-value is at most 1 - level."""
        return simultaneous_band_at(self.num_datasets, tuple(self.points.tolist()), level)


@dataclass(frozen=True)
class Verdict:
    """A test's outcome among all tests.

    Attributes:
        test: what was tested.
        adjusted_p_value: Holm's: comparing it with 1 - level keeps the false alarms over *all* tests at 1 - level.
        passes: adjusted_p_value > 1 - level.
    """

    test: UniformityTest
    adjusted_p_value: float
    passes: bool


def uniformity_test(name: str, kind: str, values: Tensor, points: Sequence[float]) -> UniformityTest:
    """Test values (N,) in [0, 1] for uniformity, looking at their distribution function in the points (K,).

    Raises:
        InputError: no values, values that are not between 0 and 1, points that are not increasing inside (0, 1).
    """
    _check_points(points)
    if values.ndim != 1 or len(values) == 0 or not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError.of("values", f"shape {tuple(values.shape)} of {name}", "(datasets,) numbers from 0 to 1")
    places = torch.tensor(points, dtype=torch.float64)
    counts = torch.searchsorted(values.double().cpu().sort().values, places)
    p_value = p_value_of(counts, len(values), tuple(points))
    return UniformityTest(name, kind, places, counts.double() / len(values), len(values), p_value)


def holm(tests: Sequence[UniformityTest], level: float = 0.95) -> tuple[Verdict, ...]:
    """Verdicts with Holm's correction (1979): all of them pass with probability ``level`` where nothing is wrong.

    With p-values in increasing order, the adjusted i-th is the largest of (m - j + 1) p_j over j <= i. Valid whatever
    the dependence between the tests.
    """
    check_level(level)
    order = sorted(range(len(tests)), key=lambda i: tests[i].p_value)
    adjusted, largest = [0.0] * len(tests), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(tests) - place) * tests[i].p_value))
        adjusted[i] = largest
    return tuple(Verdict(test, value, value > 1 - level) for test, value in zip(tests, adjusted, strict=True))


def rank_points(num_draws: int) -> tuple[float, ...]:
    """Where to look at the ranks 0, ..., S of a value among S draws: at k / (S + 1), for up to 50 k with 1 and S.

    The fraction of ranks below k has mean k / (S + 1) exactly.
    """
    return _some(torch.arange(1, _drawn(num_draws) + 1, dtype=torch.float64) / (num_draws + 1))


def central_points(num_draws: int) -> tuple[float, ...]:
    """Where to look at the levels of the central intervals that just hold a value among S draws.

    The level is |2 r + 1 - (S + 1)| / (S + 1) for rank r; here are up to 50 of :func:`central_lattice`.
    """
    return _some(central_lattice(num_draws))


def central_lattice(num_draws: int) -> Tensor:
    """All levels that central intervals between S draws can have exactly: 2k / (S + 1) for odd S, else (2k - 1)."""
    return torch.arange(1 + _drawn(num_draws) % 2, num_draws, 2, dtype=torch.float64) / (num_draws + 1)


def _drawn(num_draws: int) -> int:
    if num_draws < 3:
        raise InputError.of("num_draws", num_draws, "3 or more")
    return num_draws


def _some(points: Tensor) -> tuple[float, ...]:
    """At most 50 of the points, evenly spread, both ends among them."""
    count = min(len(points), _MOST_POINTS)
    places = torch.linspace(0, len(points) - 1, count, dtype=torch.float64).round().long().unique()
    return tuple(points[places].tolist())


def simultaneous_band(num_datasets: int, num_draws: int, level: float = 0.95) -> Band:
    """Band that holds the empirical distribution function of uniform ranks as a whole, with probability ``level``.

    Args:
        num_datasets: N, how many ranks.
        num_draws: S; ranks are 0, ..., S.
        level: probability, for all points together.

    Raises:
        InputError: counts below 1, a level that is not between 0 and 1.

    Examples:
        >>> band = simultaneous_band(100, 99, 0.95)
        >>> bool((band.lower <= band.points).all() and (band.points <= band.upper).all())
        True
    """
    return simultaneous_band_at(num_datasets, rank_points(num_draws), level)


@lru_cache(maxsize=512)
def simultaneous_band_at(num_datasets: int, points: tuple[float, ...], level: float) -> Band:
    """The band of :func:`simultaneous_band` at given points (K,): the narrowest with equal pointwise levels."""
    check_level(level)
    _check_points(points)
    if num_datasets < 1:
        raise InputError.of("num_datasets", num_datasets, "1 or more")
    low, high = math.log((1 - level) / len(points)) - 1.0, 0.0  # a union bound on one side
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _inside(num_datasets, points, *_bounds(num_datasets, points, math.exp(middle))) >= level:
            low = middle
        else:
            high = middle
    lower, upper = (torch.from_numpy(end / num_datasets) for end in _bounds(num_datasets, points, math.exp(low)))
    return Band(torch.tensor(points, dtype=torch.float64), lower, upper, level)


def p_value_of(counts: Tensor, num_datasets: int, points: tuple[float, ...]) -> float:
    """Exact p-value of counts (K,) of values below the points, out of ``num_datasets``."""
    import numpy as np
    from scipy.stats import binom

    seen = counts.cpu().numpy()
    tails = np.minimum(binom.cdf(seen, num_datasets, points), binom.sf(seen - 1, num_datasets, points))
    statistic = 2 * float(tails.min())
    if len(points) * statistic < _SMALL_P_VALUE:
        return max(_LEAST_P_VALUE, len(points) * statistic)
    return min(1.0, 1 - _inside(num_datasets, points, *_bounds(num_datasets, points, statistic)))


def _bounds(num: int, points: tuple[float, ...], statistic: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and most counts (K,) whose two-sided tail probability exceeds the statistic."""
    from scipy.stats import binom

    tail = min(1.0, statistic / 2 * (1 + _ROUNDING))
    return binom.ppf(tail, num, points), binom.isf(tail, num, points)


def _inside(num: int, points: tuple[float, ...], low: np.ndarray, high: np.ndarray) -> float:
    """P(low_k <= N F(z_k) <= high_k for all k) for N uniform values: counts go up binomially from point to point."""
    import numpy as np
    from scipy.special import gammaln

    if (low > high).any():
        return 0.0
    log_factorial = gammaln(np.arange(num + 1) + 1.0)
    counts, probability, before = np.zeros(1, dtype=int), np.ones(1), 0.0
    for point, least, most in zip(points, low, high, strict=True):
        reached = np.arange(int(least), int(most) + 1)
        share = (point - before) / (1 - before)
        left, jump = (num - counts)[:, None], reached - counts[:, None]
        possible = (jump >= 0) & (jump <= left)
        jump = np.where(possible, jump, 0)
        log_mass = (log_factorial[left] - log_factorial[jump] - log_factorial[left - jump]
                    + jump * math.log(share) + (left - jump) * math.log1p(-share))
        probability = probability @ np.where(possible, np.exp(log_mass), 0.0)
        counts, before = reached, point
    return float(probability.sum())


def check_level(level: float) -> None:
    """Raise an InputError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise InputError.of("level", level, "a number between 0 and 1")


def _check_points(points: Sequence[float]) -> None:
    inside = len(points) > 0 and points[0] > 0 and points[-1] < 1
    if not inside or any(a >= b for a, b in itertools.pairwise(points)):
        raise InputError.of("points", f"{len(points)} points", "increasing numbers between 0 and 1")
