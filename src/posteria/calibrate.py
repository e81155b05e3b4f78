"""Is an estimator calibrated: simulation-based calibration, coverage and TARP on fresh datasets from its model.

Which test sees which fault (linear regression with two features whose mean is not zero, and the mean of two correlated
columns; ``tests/test_calibrate.py`` holds these):

- draws too narrow or too wide by a fifth: all of them, first the coverage of each parameter, the log joint, and the
  regions of highest density;
- draws moved by 0.3 posterior sds: the ranks of the parameters; the log joint only where the move is not along
  a direction that is wide anyway;
- a wrong sign of the correlations: nothing that looks at one parameter at a time; the log joint, the log likelihood,
  the projection, the regions of highest density, and less sharply TARP;
- the prior in place of the posterior: nothing but the log joint, the log likelihood and the projection.

With 500 datasets and level 99% each of these was found in 20 of 20 runs (with 200, in 15 to 20), and a spread wrong
by 10% or a shift of 0.2 sds in 16 to 20 of 20; exact posteriors failed in 3 of 400 runs (of 100 datasets), and in 21 of
400 at level 95%.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posteria.densities.gaussian import GaussianTheta
from posteria.errors import InputError, UnsupportedError
from posteria.labels import Labels
from posteria.metrics.calibration import (
    LEVELS,
    Calibration,
    central_coverage,
    central_test,
    leaning,
    rank_test,
    sbc_ranks,
    tarp_ranks,
)
from posteria.metrics.uniformity import UniformityTest, check_level
from posteria.models.base import Model
from posteria.posterior import Posterior
from posteria.randomness import generator_for
from posteria.tasks import Task
from posteria.types import Dataset, ThetaDistribution

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PosteriorOf = Callable[[Dataset], Posterior | ThetaDistribution]
QuantityOf = Callable[[Tensor, Dataset], Tensor]
Progress = Callable[[int], None]
# Datasets of one batch have one size; small batches so that many sizes are seen.
_BATCH = 20
_SALT = 271_828_183
_WORDS = {"rank": "rank of", "central": "central intervals of", "hpd": "regions of highest", "tarp": "TARP,"}
_REGIONS = {"hpd": "log density", "tarp": "distance"}
_Ranks = dict[tuple[str, str], list[Tensor]]


@dataclass(frozen=True)
class CalibrationReport:
    """What :func:`check_calibration` found.

    Attributes:
        calibration: tests and verdicts.
        parameters: ranks (N,) of every named scalar, 0 to ``num_samples``, over the datasets that have it.
        quantities: ranks (N,) of the test quantities of theta and the data.
        regions: ranks (N,) behind "hpd" (draws denser than theta) and "tarp" (draws nearer to the reference).
        num_datasets, num_samples, seed: how it was run.
        notes: sentences on what could not be tested.
    """

    calibration: Calibration
    parameters: Mapping[str, Tensor]
    quantities: Mapping[str, Tensor]
    regions: Mapping[str, Tensor]
    num_datasets: int
    num_samples: int
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """No test fails, at the level asked for and corrected for the number of tests."""
        return self.calibration.passes

    @property
    def summary(self) -> str:
        """The overall verdict, and a line for each test that fails."""
        tests, failing = len(self.calibration.verdicts), self.calibration.failing
        on = f"{self.num_datasets} datasets, {self.num_samples} draws each, level {self.calibration.level:.0%}"
        if not failing:
            return f"Calibrated as far as seen: all {tests} tests pass ({on})."
        lines = [f"Not calibrated: {len(failing)} of {tests} tests fail ({on})."]
        for verdict in failing:
            test = verdict.test
            lines.append(f"{_WORDS[test.kind]} {test.name}: draws {leaning(test)} "
                         f"(adjusted p = {verdict.adjusted_p_value:.2g})")
        return "\n".join(lines)

    def coverage(self, levels: Sequence[float] = LEVELS) -> pd.DataFrame:
        """A row per parameter and a column per level: the fraction of datasets whose central interval holds theta."""
        import pandas as pd

        rows = {}
        for name, ranks in self.parameters.items():
            attained, inside = central_coverage(ranks, self.num_samples, levels)
            rows[name] = dict(zip(attained.tolist(), inside.tolist(), strict=True))
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="parameter", columns="level")

    def to_frame(self) -> pd.DataFrame:
        """A row per test, index (kind, name): datasets, p-values, verdict, and where the draws lean."""
        import pandas as pd

        rows = [{"kind": v.test.kind, "name": v.test.name, "num_datasets": v.test.num_datasets,
                 "p_value": v.test.p_value, "adjusted_p_value": v.adjusted_p_value, "passes": v.passes,
                 "leaning": "" if v.passes else leaning(v.test)} for v in self.calibration.verdicts]
        return pd.DataFrame(rows).set_index(["kind", "name"])

    def to_json(self) -> dict[str, Any]:
        """JSON values: the verdicts and the coverage; the ranks are left out."""
        coverage = {name: {f"{level:g}": value for level, value in row.items()}
                    for name, row in self.coverage().T.to_dict().items()}
        return {
            "passes": self.passes, "level": self.calibration.level, "num_datasets": self.num_datasets,
            "num_samples": self.num_samples, "seed": self.seed, "notes": list(self.notes),
            "tests": self.to_frame().reset_index().to_dict("records"), "central_coverage": coverage,
        }

    def plot(self) -> Figure:
        """Ranks, coverage and TARP beside their bands, with the verdict in words."""
        from posteria.calibration_plots import calibration

        return calibration(self.calibration, self.num_datasets)

    def __str__(self) -> str:
        return self.summary


def check_calibration(posterior_of: PosteriorOf, task: Task, model: Model, num_datasets: int = 500,
                      num_samples: int = 199, seed: int = 0, level: float = 0.99,
                      quantities: Mapping[str, QuantityOf] | None = None, device: torch.device | str = "cpu",
                      progress: Progress | None = None) -> CalibrationReport:
    """Check posteriors on datasets simulated from the model: see :mod:`posteria.metrics.calibration`.

    Tested are every named scalar parameter (rank, and coverage of central intervals), the log joint, the log
    likelihood, a projection of theta on the likelihood's gradient (at a prior draw), the regions of highest density of
    the posterior's own log density, and TARP around one more draw. What each sees, and how many
    datasets that takes, is in the documentation of this module.

    Args:
        posterior_of: dataset -> its posterior: ``estimator.posterior``, or :func:`exact_posterior_of` of a model. Its
            draws must be independent: thin the chains of a sampler.
        task: draws datasets and theta; theta must come from the model's prior and the datasets from the model at
            theta, as :class:`posteria.tasks.SimulatedTask` does. For an estimator of one size, ``task.masked()``.
        model: whose log joint and names are used.
        num_datasets: N; twice as many find a fault smaller by 0.7.
        num_samples: S draws per dataset.
        seed: of the datasets and of the draws.
        level: probability that the exact posterior passes all tests.
        quantities: more test quantities, name -> function of points (B, T, P) and the dataset that gives (B, T).
        device: where the datasets are made.
        progress: called with the number of datasets done after each batch.

    Raises:
        InputError: numbers that are too small, a level that is not between 0 and 1, NaN among the quantities.
        UnsupportedError: a task that does not know theta.

    Examples:
        >>> from posteria.models.linear import LinearRegression
        >>> from posteria.tasks import SimulatedTask
        >>> model = LinearRegression()
        >>> report = check_calibration(exact_posterior_of(model), SimulatedTask(model, (8, 16)), model, 100)
        >>> report.passes
        True
    """
    _check(task, num_datasets, num_samples)
    check_level(level)
    run = _Run(posterior_of, task, model, num_samples, dict(quantities or {}))
    for start in range(0, num_datasets, _BATCH):
        run.add(min(_BATCH, num_datasets - start), generator_for(seed + _SALT, start, device))
        if progress is not None:
            progress(min(start + _BATCH, num_datasets))
    return run.report(num_datasets, seed, level)


def exact_posterior_of(model: Model) -> Callable[[Dataset], GaussianTheta]:
    """The exact posterior of a model that has one, as :func:`check_calibration` takes it.

    Raises:
        UnsupportedError: when called, where the model has none.
    """

    def posterior(dataset: Dataset) -> GaussianTheta:
        exact, active = model.exact_posterior(dataset), model.active(dataset)
        both = active[:, :, None] & active[:, None, :]
        precision = torch.where(both, exact.precision_matrix, torch.eye(active.shape[1]).to(exact.mean))
        return GaussianTheta(exact.mean, torch.ones_like(exact.mean), active, torch.linalg.cholesky(precision))

    return posterior


class _Run:
    """Collects ranks batch by batch."""

    def __init__(self, posterior_of: PosteriorOf, task: Task, model: Model, num_samples: int,
                 quantities: dict[str, QuantityOf]):
        self.posterior_of, self.task, self.model = posterior_of, task, model
        self.num_samples, self.quantities = num_samples, quantities
        self.ranks: _Ranks = {}
        self.notes: dict[str, None] = {}

    def add(self, count: int, generator: torch.Generator) -> None:
        """Simulate a batch and rank theta in it."""
        with torch.no_grad():
            dataset, theta = self.task.draw(count, generator, generator.device)
            assert theta is not None
            answer = self.posterior_of(dataset)
            distribution = answer.distribution if isinstance(answer, Posterior) else answer
            drawn = distribution.rsample(self.num_samples + 1, generator).to(dataset.x.dtype)
            points = torch.cat([theta[:, None], drawn[:, 1:]], 1)
            points = torch.where(distribution.active[:, None], points, 0.0)
        self._rank_parameters(points, dataset, generator)
        for name, values in self._quantities(points, dataset, generator).items():
            self._keep("quantity", name, _ranks_of(values, generator))
        self._rank_density(distribution, points, generator)
        self._keep("tarp", _REGIONS["tarp"], tarp_ranks(points[:, 0], points[:, 1:], drawn[:, 0], generator,
                                                        distribution.active))

    def report(self, num_datasets: int, seed: int, level: float) -> CalibrationReport:
        """Tests of all the ranks so far."""
        ranks = {key: torch.cat(parts) for key, parts in self.ranks.items()}
        tests = [test for (kind, name), values in ranks.items() for test in self._tests(kind, name, values)]
        by_kind = {kind: {name: values for (k, name), values in ranks.items() if k == kind}
                   for kind in ("parameter", "quantity")}
        regions = {kind: ranks[kind, name] for kind, name in _REGIONS.items() if (kind, name) in ranks}
        return CalibrationReport(Calibration(tuple(tests), level), by_kind["parameter"], by_kind["quantity"], regions,
                                 num_datasets, self.num_samples, seed, tuple(self.notes))

    def _tests(self, kind: str, name: str, ranks: Tensor) -> list[UniformityTest]:
        if kind in _REGIONS:
            return [rank_test(name, ranks, self.num_samples, kind)]
        folded = [central_test(name, ranks, self.num_samples)] if kind == "parameter" else []
        return [rank_test(name, ranks, self.num_samples), *folded]

    def _rank_parameters(self, points: Tensor, dataset: Dataset, generator: torch.Generator) -> None:
        """Constrained scalars under their names, for the datasets that have them."""
        layout = self.model.layout_of(dataset)
        features = dataset.features[:, len(self.model.extra_columns):]
        labels = Labels(layout, torch.arange(features.shape[1]), features, {})
        for parameter, values in layout.constrain(points).items():
            ranks = _ranks_of(values.reshape(*points.shape[:2], -1), generator)
            present = labels.present(parameter)
            for place, name in enumerate(labels.names(parameter)):
                self._keep("parameter", name, ranks[present[:, place], place])

    def _quantities(self, points: Tensor, dataset: Dataset, generator: torch.Generator) -> dict[str, Tensor]:
        """Test quantities (B, 1 + S), theta first."""
        values = {}
        if self.model.has_likelihood:
            likelihood = self.model.log_likelihood(points, dataset)
            values = {"log likelihood": likelihood, "log joint": likelihood + self.model.log_prior(points, dataset),
                      "projection": _projection(self.model, points, dataset, generator)}
        else:
            self.notes[f"{self.model.name} has no likelihood: wrong correlations may go unseen."] = None
        return values | {name: quantity(points, dataset) for name, quantity in self.quantities.items()}

    def _rank_density(self, distribution: ThetaDistribution, points: Tensor, generator: torch.Generator) -> None:
        try:
            with torch.no_grad():
                log_q = distribution.log_prob(points)
        except UnsupportedError:
            self.notes["The posterior has no density: regions of highest density were not tested."] = None
            return
        self._keep("hpd", _REGIONS["hpd"], _ranks_of(-log_q, generator))

    def _keep(self, kind: str, name: str, ranks: Tensor) -> None:
        if len(ranks):
            self.ranks.setdefault((kind, name), []).append(ranks.cpu())


def _ranks_of(values: Tensor, generator: torch.Generator) -> Tensor:
    """Ranks of the first among the others, along axis 1, on the host."""
    values = values.detach().cpu()
    return sbc_ranks(values[:, 0], values[:, 1:], generator)


def _projection(model: Model, points: Tensor, dataset: Dataset, generator: torch.Generator) -> Tensor:
    """(B, T) theta along the likelihood's gradient at a prior draw: the direction that these data speak of."""
    start = model.sample_prior(dataset, 1, generator).to(points)
    start = torch.where(model.active(dataset)[:, None], start, 0.0)
    _, score = model.likelihood_score(start, dataset)
    direction = torch.nn.functional.normalize(score.nan_to_num(0.0, 0.0, 0.0)[:, 0].to(points), dim=-1)
    return torch.einsum("btp,bp->bt", points, direction)


def _check(task: Task, num_datasets: int, num_samples: int) -> None:
    if not task.gives_theta:
        raise UnsupportedError.of("task", f"{type(task).__name__}, whose datasets do not come from the model's prior",
                                  "a task that simulates from the model, such as SimulatedTask")
    if num_datasets < 20:
        raise InputError.of("num_datasets", num_datasets, "20 or more")
    if num_samples < 19:
        raise InputError.of("num_samples", num_samples, "19 or more")
