"""Are posteriors calibrated: over datasets simulated from the model, is the generating theta like a posterior draw?

For the exact posterior, theta and S draws given a dataset are exchangeable. So the rank of any number computed from
theta and the dataset (a test quantity), among the same number of the draws, is uniform on 0, ..., S (Talts et al. 2018;
Modrák et al. 2023, "Simulation-based calibration checking for Bayesian computation: the choice of test quantities").
Everything here is such a rank:

- a parameter: its marginal. Blind to wrong correlations, and to a posterior that is just the prior;
- the central interval of a parameter, :func:`expected_coverage`: the same, folded at the middle, which is sharper for
  posteriors that are too narrow or too wide;
- a function of theta and the data, :func:`sbc`: the log joint and the log likelihood see wrong correlations and
  a posterior that has not looked at the data;
- the estimator's own log density, :func:`expected_coverage`: regions of highest density (Hermans et al. 2022);
- the distance to a reference point, :func:`tarp` (Lemos et al. 2023).

Each is tested with the statistic of :mod:`posteria.metrics.uniformity`; a :class:`Calibration` judges all together
with Holm's correction, so that its rate of false alarms is the one asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.metrics.uniformity import (
    UniformityTest,
    Verdict,
    central_lattice,
    central_points,
    check_level,
    holm,
    rank_points,
    uniformity_test,
)

Quantity = tuple[Tensor, Tensor]
LEVELS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Calibration:
    """Tests, judged together.

    Attributes:
        tests: all of them.
        level: probability that all pass where the posterior is exact.

    Raises:
        InputError: a level that is not between 0 and 1.
    """

    tests: tuple[UniformityTest, ...]
    level: float = 0.95

    def __post_init__(self) -> None:
        check_level(self.level)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One per test, corrected for their number (Holm)."""
        return holm(self.tests, self.level)

    @property
    def passes(self) -> bool:
        """No test fails."""
        return all(verdict.passes for verdict in self.verdicts)

    @property
    def failing(self) -> tuple[Verdict, ...]:
        """The verdicts that fail, the smallest p-value first."""
        failing = [verdict for verdict in self.verdicts if not verdict.passes]
        return tuple(sorted(failing, key=lambda verdict: verdict.test.p_value))

    def of_kind(self, kind: str) -> tuple[Verdict, ...]:
        """The verdicts of "rank", "central", "hpd" or "tarp" tests."""
        return tuple(verdict for verdict in self.verdicts if verdict.test.kind == kind)


@dataclass(frozen=True)
class Coverage:
    """How often intervals hold the generating theta.

    Attributes:
        levels: (L,) what they should hold, rounded to the levels that S draws have.
        central: (L, P) fraction held by central intervals of each parameter; NaN for one that no dataset has.
        hpd: (L,) fraction held by regions of highest density, or None.
        num_datasets: (P,) long, datasets that have the parameter.
        tests: one per parameter, and one of the regions of highest density, of the whole curve.
    """

    levels: Tensor
    central: Tensor
    hpd: Tensor | None
    num_datasets: Tensor
    tests: tuple[UniformityTest, ...]

    def band(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper (L, P) pointwise binomial quantiles of ``central`` for exact posteriors."""
        return binomial_band(self.levels[:, None], self.num_datasets[None], level)


def sbc_ranks(theta: Tensor, draws: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """How many draws lie below theta; where some are equal to it, a random number of those is counted too.

    Args:
        theta: (B, P), or (B,) of one quantity.
        draws: (B, S, P), or (B, S).
        generator: breaks ties; with a fixed seed by default.

    Returns:
        Ranks 0, ..., S, long, shaped like theta.

    Raises:
        InputError: shapes that do not fit, NaN.

    Examples:
        >>> sbc_ranks(torch.tensor([[0.5]]), torch.tensor([[[0.0], [1.0], [0.2]]]))
        tensor([[2]])
    """
    _check_pair("theta", theta, "draws", draws)
    below = (draws < theta[:, None]).sum(1)
    equal = (draws == theta[:, None]).sum(1)
    return below + (_uniform(theta.shape, generator).to(theta.device) * (equal + 1)).long()


def rank_ecdf(ranks: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    """Points (K,) and the fraction (K,) of ranks (N,) below each, at the points of :func:`simultaneous_band`.

    Examples:
        >>> points, fractions = rank_ecdf(torch.tensor([0, 3, 3, 1]), 3)
        >>> points.tolist(), fractions.tolist()
        ([0.25, 0.5, 0.75], [0.25, 0.5, 0.5])
    """
    test = rank_test("ranks", ranks, num_draws)
    return test.points, test.fractions


def rank_test(name: str, ranks: Tensor, num_draws: int, kind: str = "rank") -> UniformityTest:
    """Test ranks (N,) of one quantity for uniformity on 0, ..., ``num_draws``.

    Where a rank counts the draws nearer to the middle of a region than theta ("hpd", "tarp"), the fraction at z is
    the coverage of the region of level z.
    """
    _check_ranks(ranks, num_draws)
    return uniformity_test(name, kind, (ranks.double() + 0.5) / (num_draws + 1), rank_points(num_draws))


def central_test(name: str, ranks: Tensor, num_draws: int) -> UniformityTest:
    """Test the levels of the central intervals that just hold theta; the fraction at z is the coverage of level z."""
    return uniformity_test(name, "central", central_levels(ranks, num_draws), central_points(num_draws))


def central_levels(ranks: Tensor, num_draws: int) -> Tensor:
    """Level of the central interval that just holds a value of this rank among S draws, |2 (r + 1/2) / (S + 1) - 1|."""
    _check_ranks(ranks, num_draws)
    return (2 * (ranks.double() + 0.5) / (num_draws + 1) - 1).abs()


def central_coverage(ranks: Tensor, num_draws: int, levels: Sequence[float] = LEVELS) -> tuple[Tensor, Tensor]:
    """Levels (L,), rounded to those that the draws have, and the fraction (L,) of central intervals that hold theta."""
    attained = _attained(levels, num_draws)
    return attained, _below(central_levels(ranks, num_draws), attained)


def sbc(theta: Tensor, draws: Tensor, quantities: Mapping[str, Quantity] | None = None,
        names: Sequence[str] | None = None, active: Tensor | None = None, level: float = 0.95,
        generator: torch.Generator | None = None) -> Calibration:
    """Simulation-based calibration of every parameter and of any test quantities.

    Args:
        theta: (B, P) that generated the datasets.
        draws: (B, S, P) of the posteriors, independent.
        quantities: name -> values (B,) at theta and (B, S) at the draws. They may use the dataset: take the log joint
            and the log likelihood at least, without which wrong correlations go unseen.
        names: P names of the parameters; default "theta[0]", ...
        active: (B, P) bool, the parameters of each dataset; one that no dataset has is left out.
        level: probability that all tests pass where the posterior is exact.
        generator: breaks ties.

    Raises:
        InputError: shapes that do not fit, NaN.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> draws = torch.randn(500, 101, 2, generator=generator)
        >>> sbc(draws[:, 0], draws[:, 1:]).passes, sbc(draws[:, 0], 0.7 * draws[:, 1:]).passes
        (True, False)
    """
    active = _active(theta, active)
    tests = [rank_test(name, ranks, draws.shape[1])
             for _, name, ranks in _by_parameter(theta, draws, names, active, generator)]
    for name, (value, sampled) in (quantities or {}).items():
        _check_pair(name, value, f"draws of {name}", sampled)
        tests.append(rank_test(name, sbc_ranks(value, sampled, generator), sampled.shape[1]))
    return Calibration(tuple(tests), level)


def expected_coverage(theta: Tensor, draws: Tensor, levels: Sequence[float] = LEVELS,
                      log_q: Quantity | None = None, names: Sequence[str] | None = None, active: Tensor | None = None,
                      generator: torch.Generator | None = None) -> Coverage:
    """How often central intervals, and regions of highest density, hold the generating theta.

    Intervals end between draws, so that an exact posterior covers each level exactly, however few the draws; the
    levels are therefore rounded to those that S draws have (199 draws have every multiple of 1%).

    Args:
        theta, draws, names, active, generator: as for :func:`sbc`.
        levels: L levels between 0 and 1.
        log_q: the estimator's log density at theta (B,) and at the draws (B, S), for regions of highest density: theta
            is in that of level c where less than a fraction c of the draws is denser (Hermans et al. 2022).

    Raises:
        InputError: shapes that do not fit, NaN, levels that are not between 0 and 1.

    Examples:
        >>> draws = torch.randn(500, 200, 2, generator=torch.Generator().manual_seed(0))
        >>> expected_coverage(draws[:, 0], draws[:, 1:], [0.5, 0.9]).central.round(decimals=1)
        tensor([[0.5000, 0.5000],
                [0.9000, 0.9000]], dtype=torch.float64)
    """
    active, size = _active(theta, active), draws.shape[1]
    attained = _attained(levels, size)
    central = torch.full((len(attained), theta.shape[1]), torch.nan, dtype=torch.float64)
    tests = []
    for place, name, ranks in _by_parameter(theta, draws, names, active, generator):
        central[:, place] = central_coverage(ranks, size, levels)[1]
        tests.append(central_test(name, ranks, size))
    hpd = None
    if log_q is not None:
        denser = sbc_ranks(-log_q[0], -log_q[1], generator)
        hpd = _below((denser.double() + 0.5) / (size + 1), attained)
        tests.append(rank_test("log density", denser, size, "hpd"))
    return Coverage(attained, central, hpd, active.sum(0).cpu(), tuple(tests))


def tarp(theta: Tensor, draws: Tensor, references: Tensor | None = None, generator: torch.Generator | None = None,
         active: Tensor | None = None) -> UniformityTest:
    """Test of accuracy with random points (Lemos et al. 2023, "Sampling-based accuracy testing of posteriors").

    The region of level c around a reference point is the ball that holds a fraction c of the draws. Its points are
    the levels c, its fractions the expected coverage ECP(c): how often the ball holds theta.

    Args:
        theta, draws, active: as for :func:`sbc`.
        references: (B, P); they may depend on the dataset but not on its theta or draws. A draw of the same
            estimator that is not among ``draws`` is a sharp choice: points far away make balls flat, and directions
            that are too wide then cancel those that are too narrow. Default: the thetas of other datasets.
        generator: breaks ties, and chooses the default references.

    Raises:
        InputError: shapes that do not fit, NaN, a single dataset without references.
    """
    return rank_test("distance", tarp_ranks(theta, draws, references, generator, active), draws.shape[1], "tarp")


def tarp_ranks(theta: Tensor, draws: Tensor, references: Tensor | None = None,
               generator: torch.Generator | None = None, active: Tensor | None = None) -> Tensor:
    """(B,) how many draws are nearer to the reference than theta; arguments as :func:`tarp`.

    Distances are Euclidean in units of each dataset's spread, of theta and the draws pooled (so that they stay
    exchangeable).
    """
    active = _active(theta, active)
    _check_pair("theta", theta, "draws", draws)
    references = _others(theta, generator) if references is None else references
    if references.shape != theta.shape:
        raise InputError.of("references", f"shape {tuple(references.shape)}", f"shape {tuple(theta.shape)}")
    pooled = torch.cat([theta[:, None], draws], 1).double()
    unit = pooled.std(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    away = torch.where(active[:, None], (pooled - references[:, None]) / unit, 0.0).square().sum(-1)
    return sbc_ranks(away[:, 0], away[:, 1:], generator)


def binomial_band(levels: Tensor, num_datasets: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Lower and upper quantiles of the fraction of N datasets inside, each inside with probability ``levels``.

    Pointwise: each point holds with probability ``level``, not all together. Arguments broadcast; NaN for N = 0.
    """
    from scipy.stats import binom

    share, count = torch.broadcast_tensors(levels.double().cpu(), num_datasets.double().cpu())
    ends = (torch.from_numpy(binom.ppf(tail, count.numpy(), share.numpy())) / count
            for tail in ((1 - level) / 2, (1 + level) / 2))
    low, high = ends
    return low, high


def leaning(test: UniformityTest) -> str:
    """In words, where draws lie beside theta, as the curve has it: "too narrow", "too wide", "too low" or "too high".

    The larger, in standard errors, of the shift of the mean and of the excess of the variance.
    """
    points, fractions = test.points, test.fractions
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    z, f = torch.cat([ends[:1], points, ends[1:]]), torch.cat([ends[:1], fractions, ends[1:]])
    mean = float(1 - torch.trapezoid(f, z))
    if test.kind != "rank":
        return "too narrow" if mean > 0.5 else "too wide"
    square = float(1 - 2 * torch.trapezoid(f * z, z))
    shift = (mean - 0.5) * math.sqrt(12 * test.num_datasets)
    excess = (square - mean**2 - 1 / 12) * math.sqrt(180 * test.num_datasets)
    if abs(shift) > abs(excess):
        return "too low" if shift > 0 else "too high"
    return "too narrow" if excess > 0 else "too wide"


def _by_parameter(theta: Tensor, draws: Tensor, names: Sequence[str] | None, active: Tensor,
                  generator: torch.Generator | None) -> list[tuple[int, str, Tensor]]:
    """Place, name and ranks (N,) of every parameter that some dataset has."""
    labels = [f"theta[{i}]" for i in range(theta.shape[1])] if names is None else list(names)
    if len(labels) != theta.shape[1]:
        raise InputError.of("names", f"{len(labels)} names", f"{theta.shape[1]} names")
    ranks = sbc_ranks(theta, draws, generator)
    return [(i, labels[i], ranks[active[:, i], i]) for i in active.any(0).nonzero()[:, 0].tolist()]


def _active(theta: Tensor, active: Tensor | None) -> Tensor:
    if theta.ndim != 2:
        raise InputError.of("theta", f"shape {tuple(theta.shape)}", "shape (datasets, parameters)")
    if active is None:
        return torch.ones_like(theta, dtype=torch.bool)
    if active.shape != theta.shape or active.dtype != torch.bool:
        raise InputError.of("active", f"{active.dtype} of shape {tuple(active.shape)}",
                            f"booleans of shape {tuple(theta.shape)}")
    return active


def _others(theta: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B, P) the theta of another dataset, each equally likely."""
    count = len(theta)
    if count < 2:
        raise InputError.of("references", "None for one dataset", "references, or two datasets or more")
    step = 1 + (_uniform((count,), generator) * (count - 1)).long()
    return theta[(torch.arange(count) + step) % count]


def _uniform(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Uniform numbers on the host, in double precision."""
    source = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.rand(tuple(shape), generator=source, device=source.device, dtype=torch.float64).cpu()


def _attained(levels: Sequence[float], num_draws: int) -> Tensor:
    """(L,) the nearest levels that intervals between the draws can have."""
    if not len(levels) or not all(0 < level < 1 for level in levels):
        raise InputError.of("levels", str(tuple(levels)), "numbers between 0 and 1")
    lattice = central_lattice(num_draws)
    return lattice[(lattice - torch.tensor(levels, dtype=torch.float64)[:, None]).abs().argmin(-1)]


def _below(values: Tensor, levels: Tensor) -> Tensor:
    """(L,) fraction of the values (N,) below each level."""
    return (values.cpu() < levels[:, None]).double().mean(-1)


def _check_ranks(ranks: Tensor, num_draws: int) -> None:
    if ranks.is_floating_point() or not bool(((ranks >= 0) & (ranks <= num_draws)).all()):
        raise InputError.of("ranks", f"{ranks.dtype}, not all of 0 to {num_draws}", f"whole numbers 0 to {num_draws}")


def _check_pair(name: str, value: Tensor, draws_name: str, draws: Tensor) -> None:
    """One value per dataset (B, ...) and its draws (B, S, ...)."""
    fits = draws.ndim == value.ndim + 1 and draws.shape[:1] + draws.shape[2:] == value.shape and draws.shape[1] > 0
    if not fits:
        raise InputError.of(draws_name, f"shape {tuple(draws.shape)}",
                            f"(datasets, draws, ...) for {name} of shape {tuple(value.shape)}")
    if bool(value.isnan().any()) or bool(draws.isnan().any()):
        raise InputError.of(name, "NaN", "numbers")
