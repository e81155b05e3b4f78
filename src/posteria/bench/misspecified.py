"""Tables 4, 23 and 24 of arXiv 2502.06601: the assumed model is wrong, in training, in evaluation or in both.

In one dimension, a line or a network with tanh is assumed; datasets of training and of evaluation come, each, from a
line, from such a network, or from a Gaussian process (RBF kernel, unit lengthscale, noise variance 1e-6). Forward KL
trains only on data of the assumed model; reverse KL on any. Labels are the paper's: "gp>linear" is trained on the
process and evaluated on lines; a baseline is not trained, and has the evaluation's source on both sides.

What ideal inference under the wrong model would give is in the rows of the per-dataset baselines; for a line, Laplace's
approximation is the exact posterior.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from posteria.bench import measure
from posteria.bench.cases import Case, draw_cases
from posteria.bench.methods import METHODS, PER_DATASET, TRAINED, Method, PerDataset, Trained
from posteria.bench.paper import paper_numbers
from posteria.bench.runner import Figures
from posteria.bench.scales import Scale
from posteria.bench.setups import ROWS, Setup
from posteria.bench.store import key_of
from posteria.bench.workspace import Workspace, training_record
from posteria.errors import InputError
from posteria.evaluation import symmetric_kl
from posteria.posterior import Posterior
from posteria.reference import BaselineRun, run_baseline
from posteria.tasks import TASKS, Task
from posteria.training import TrainConfig

BENCH = "misspecified"
# Posterior draws per dataset, in these tables only.
NUM_DRAWS = 10
_KL_DRAWS = 1000
_COLUMNS = (1, 1)
LINEAR = Setup("linear_regression", 1)
NETWORK = Setup("nonlinear_regression", 1, activation="tanh", layers=1)
# The paper's name of a source of data -> the model that simulates it, or None for the Gaussian process.
SOURCES: dict[str, Setup | None] = {"linear": LINEAR, "mlp-tanh": NETWORK, "gp": None}
ASSUMED: dict[str, Setup] = {"linear": LINEAR, "mlp-tanh": NETWORK}
_PROCESS = {"kernel": "rbf", "lengthscale": 1.0, "noise_variance": 1e-6}


def task_part(assumed: Setup, source: str) -> dict[str, Any]:
    """Name and options of the task that draws datasets of a source, for an estimator of the assumed model."""
    options: dict[str, Any] = {"rows": list(ROWS), "columns": list(_COLUMNS)}
    simulator = SOURCES[source]
    if simulator is None:
        return {"name": "gaussian_process", "options": {**options, **_PROCESS}}
    if simulator == assumed:
        return {"name": "simulated", "options": options}
    return {"name": "other_model", "options": {**options, "source": dict(simulator.model)}}


@dataclass(frozen=True)
class MisspecifiedCell:
    """A method under an assumed model, trained on one source and evaluated on one; see :class:`runner.Cell`.

    Attributes:
        assumed: "linear" or "mlp-tanh".
        trained_on, evaluated_on: "linear", "mlp-tanh" or "gp"; the same for a baseline.
        method, scale, seed: as in the other tables.
    """

    assumed: str
    trained_on: str
    evaluated_on: str
    method: Method
    scale: Scale
    seed: int

    @property
    def bench(self) -> str:
        return BENCH

    @property
    def setup(self) -> Setup:
        """The assumed model."""
        return ASSUMED[self.assumed]

    @property
    def data(self) -> str:
        """The sources, as the paper writes them."""
        return f"{self.trained_on}>{self.evaluated_on}"

    @property
    def setup_key(self) -> str:
        return f"{self.setup.key}|{self.data}"

    @property
    def method_key(self) -> str:
        return self.method.key

    @property
    def scale_name(self) -> str:
        return self.scale.name

    @property
    def config(self) -> TrainConfig:
        """Of the training run, for methods that are trained."""
        assert isinstance(self.method, Trained)
        fields = self.scale.fields(self.setup, self.method, self.seed)
        return TrainConfig.of(**{**fields, "task": task_part(self.setup, self.trained_on)})

    @property
    def identity(self) -> Mapping[str, Any]:
        evaluation = {"task": task_part(self.setup, self.evaluated_on), "num_datasets": self.scale.num_datasets,
                      "num_draws": NUM_DRAWS, "version": measure.VERSION}
        how = ({"config": self.config.model_dump(mode="json")} if isinstance(self.method, Trained) else
               {"baseline": self.method.baseline, "scale": self.scale.name, "seed": self.seed})
        return {"bench": BENCH, "setup": self.setup.key, "evaluation": evaluation, **how}

    @property
    def group(self) -> str:
        return key_of(self.identity["config"]) if isinstance(self.method, Trained) else key_of(self.identity)

    def cases(self) -> list[Case]:
        """The test datasets of the source, each with held-out rows of the same line, network or function."""
        part = task_part(self.setup, self.evaluated_on)
        task: Task = TASKS[part["name"]](self.setup.build_model(), **part["options"])
        return list(draw_cases(task, self.scale.num_datasets))

    def compute(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        if isinstance(self.method, Trained):
            return self._measure_trained(workspace)
        return self._measure_baseline(self.method)

    def _measure_trained(self, workspace: Workspace) -> tuple[Figures, Mapping[str, Any]]:
        estimator = workspace.trained(self.config)
        known = self.setup.task in measure.EXACT_TASKS
        posteriors = ((estimator.posterior(case.dataset), case) for case in self.cases())
        figures = (predictive(*each) | (divergence(*each) if known else {}) for each in posteriors)
        return measure.summarise(figures), training_record(estimator)

    def _measure_baseline(self, method: PerDataset) -> tuple[Figures, Mapping[str, Any]]:
        runs = [(case, self._run(method, case)) for case in self.cases()]
        converged = [run.converged for _, run in runs if run.convergence is not None]
        record = {"converged": float(torch.cat(converged).double().mean())} if converged else {}
        return measure.summarise(predictive(run.posterior, case) for case, run in runs), record

    def _run(self, method: PerDataset, case: Case) -> BaselineRun:
        return run_baseline(self.setup.build_model(), case.dataset, method.baseline,
                            seed=self.seed * 1000 + case.number, **self.scale.baseline(method.baseline, self.setup))


@torch.no_grad()
def predictive(posterior: Posterior, case: Case) -> measure.PerDatasetFigures:
    """Figures (B,) of predicting the held-out rows of a batch of test datasets."""
    return measure.predictive_figures(posterior.model, posterior.sample_theta(NUM_DRAWS, case.generator()),
                                      case.held_out)


@torch.no_grad()
def divergence(posterior: Posterior, case: Case) -> measure.PerDatasetFigures:
    """Symmetric KL (B,) per parameter to the exact posterior of the assumed model, wrong as the model may be."""
    exact = posterior.model.exact_posterior(posterior.dataset)
    return {"symmetric_kl": symmetric_kl(posterior.distribution, exact, posterior.model, posterior.dataset, _KL_DRAWS,
                                         case.generator(1))}


def misspecified_cells(scale: Scale, seeds: int | None = None, assumed: Sequence[str] = (), data: Sequence[str] = (),
                       methods: Sequence[str] = ()) -> list[MisspecifiedCell]:
    """The cells: those of the paper's tables, the remaining sources, and our methods.

    Args:
        scale: budget and sizes.
        seeds: how many; default the scale's.
        assumed: some assumed models; default both.
        data: some "trained>evaluated"; default all.
        methods: keys of some methods; default all.

    Raises:
        InputError: an assumed model, data or method that does not exist.
    """
    count = scale.seeds if seeds is None else seeds
    if count < 1:
        raise InputError.of("seeds", count, "1 or more")
    models = _chosen("assumed", assumed, list(ASSUMED))
    labels = _chosen("data", data, [f"{first}>{second}" for first in SOURCES for second in SOURCES])
    rows = [METHODS[key] for key in _chosen("methods", methods, [m.key for m in (*PER_DATASET, *TRAINED)])]
    return [cell for seed in range(count) for model in models for method in rows
            for cell in _row(model, method, scale, seed) if cell.data in labels]


def _row(assumed: str, method: Method, scale: Scale, seed: int) -> Iterator[MisspecifiedCell]:
    """A method under an assumed model: what it may be trained on × all evaluations."""
    if isinstance(method, PerDataset):
        if seed == 0 and method.baseline != measure.EXACT and not _exact_already(assumed, method):
            yield from (MisspecifiedCell(assumed, source, source, method, scale, seed) for source in SOURCES)
        return
    for trained_on in [assumed] if method.objective == "forward_kl" else list(SOURCES):
        yield from (MisspecifiedCell(assumed, trained_on, source, method, scale, seed) for source in SOURCES)


def _exact_already(assumed: str, method: PerDataset) -> bool:
    """Laplace's approximation of a line is exact: long chains add nothing."""
    return assumed == "linear" and method.baseline == measure.REFERENCE


def _chosen(argument: str, names: Sequence[str], known: list[str]) -> list[str]:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError.of(argument, str(unknown), f"names among {known}")
    return list(names) or known


def paper_entry(cell: MisspecifiedCell) -> tuple[float, float] | None:
    """Mean and spread of ``l2_per_draw`` that Table 23 or 24 prints for a cell (Table 4 repeats some), or None."""
    return _printed().get((cell.setup.task, cell.data, cell.method.key))


@cache
def _printed() -> dict[tuple[str, str, str], tuple[float, float]]:
    return {(row["task"], row["data"], _method_key(row)): (row["mean"], row["std"])
            for row in paper_numbers().to_dict("records") if row["table"] in (23, 24)}


def _method_key(row: Mapping[Any, Any]) -> str:
    return Trained(row["objective"], row["density"], row["encoder"]).key if row["encoder"] else row["objective"]
