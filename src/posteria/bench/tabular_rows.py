"""Rows of the tabular bench that are not trained by it: scikit-learn, shipped estimators, baselines on one table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal

from posteria.bench.measure import EXACT
from posteria.bench.real_tables import TableCases
from posteria.bench.samplers import predictions
from posteria.bench.scales import Scale
from posteria.bench.setups import Setup
from posteria.bench.tabular_scores import (
    DRAW_SEED,
    SCORE_DRAWS,
    Scores,
    scores_of,
    scores_of_draws,
    scores_of_posterior,
)
from posteria.calibrate import exact_posterior_of
from posteria.estimator import Estimator
from posteria.metrics.convergence import Convergence
from posteria.randomness import generator_for
from posteria.reference import BaselineRun, run_baseline
from posteria.shipped import load
from posteria.types import Dataset

if TYPE_CHECKING:
    import numpy as np

PRIOR = "prior"
_SEED = 0
_HIDDEN, _MOST_EPOCHS = (32,), 1000
_LEAST_SD, _LEAST_PROBABILITY = 1e-3, 1e-15
# Of one context (training x, y) and the held-out x: mean and sd (2, N), or probabilities of the classes (2, N).
Fit = Callable[["np.ndarray", "np.ndarray", "np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class Sklearn:
    """A model of scikit-learn, fitted to every context.

    Attributes:
        key: short name.
        classes: it predicts classes, not numbers.
        fit: see :data:`Fit`.
    """

    key: str
    classes: bool
    fit: Fit

    def scores(self, cases: TableCases) -> Scores:
        """Figures (B,) on the held-out folds."""
        return scores_of(self.predict(cases.dataset, cases.held_out), cases.held_out)

    def predict(self, dataset: Dataset, held_out: Dataset) -> Distribution:
        """Predictions of batch shape (B, 1, N), fitted to one context after the other."""
        fitted = torch.stack([self._one(dataset[i:i + 1], held_out.x[i]) for i in range(len(dataset))])
        if self.classes:
            return Categorical(probs=fitted.mT[:, None].clamp(min=_LEAST_PROBABILITY), validate_args=False)
        return Normal(fitted[:, None, 0], fitted[:, None, 1], validate_args=False)

    def _one(self, dataset: Dataset, x: Tensor) -> Tensor:
        assert dataset.y is not None
        real = dataset.observed[0]
        arrays = (values.double().cpu().numpy() for values in (dataset.x[0][real], dataset.y[0][real], x))
        return torch.from_numpy(self.fit(*arrays)).to(dataset.device)


def _bayesian_ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    import numpy as np
    from sklearn.linear_model import BayesianRidge

    return np.stack(BayesianRidge().fit(x, y).predict(new, return_std=True))


def _network_of_numbers(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The sd is that of the residuals of its own training rows."""
    import numpy as np
    from sklearn.neural_network import MLPRegressor

    scale = max(float(y.std()), _LEAST_SD)
    network = MLPRegressor(hidden_layer_sizes=_HIDDEN, max_iter=_MOST_EPOCHS, random_state=_SEED)
    network = _quietly(network, x, y / scale)
    sd = max(float((network.predict(x) * scale - y).std()), _LEAST_SD)
    mean = network.predict(new) * scale
    return np.stack([mean, np.full_like(mean, sd)])


def _logistic(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    return _classes(LogisticRegression(max_iter=10_000), x, y, new)


def _network_of_classes(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier(hidden_layer_sizes=_HIDDEN, max_iter=_MOST_EPOCHS, random_state=_SEED)
    return _classes(network, x, y, new)


def _classes(model: Any, x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Probabilities (2, N); of a context with one class, by the rule of succession."""
    import numpy as np

    if len(np.unique(y)) > 1:
        return _quietly(model, x, y).predict_proba(new).T
    share = (y.sum() + 1) / (len(y) + 2)
    return np.repeat([[1 - share], [share]], len(new), axis=1)


def _quietly(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """Fitted; networks that have not converged after all epochs are taken as they are."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


SKLEARN: dict[str, Sklearn] = {row.key: row for row in (
    Sklearn("bayesian_ridge", False, _bayesian_ridge),
    Sklearn("logistic_regression", True, _logistic),
    Sklearn("mlp_regressor", False, _network_of_numbers),
    Sklearn("mlp_classifier", True, _network_of_classes),
)}


@dataclass(frozen=True)
class Shipped:
    """An estimator that comes with the package: noise inferred, or temperature 1; trained on 8 to 2,000 rows.

    Attributes:
        key: short name.
        name: as :func:`posteria.shipped.load` takes it.
    """

    key: str
    name: str

    def scores(self, cases: TableCases) -> Scores:
        """Figures (B,) on the held-out folds."""
        posterior = _estimator(self.name).posterior(_divided(cases.dataset, self._scale(cases.dataset)))
        theta = posterior.sample_theta(SCORE_DRAWS, generator_for(DRAW_SEED))
        prediction = posterior.model.predict(theta, cases.held_out)
        if isinstance(prediction, Normal):
            scale = self._scale(cases.dataset)
            prediction = Normal(prediction.mean * scale, prediction.stddev * scale, validate_args=False)
        return scores_of(prediction, cases.held_out)

    def _scale(self, dataset: Dataset) -> float:
        """It expects targets of unit variance, where the paper's have d."""
        return math.sqrt(dataset.x.shape[-1]) if self.name.endswith("regression") else 1.0


@cache
def _estimator(name: str) -> Estimator:
    return load(name)


def _divided(dataset: Dataset, scale: float) -> Dataset:
    return replace(dataset, y=None if dataset.y is None else dataset.y / scale)


SHIPPED: dict[str, Shipped] = {row.key: row for row in (
    Shipped("shipped_regression", "linear_regression"), Shipped("shipped_classification", "linear_classification"),
    Shipped("shipped_neural_regression", "neural_regression"),
    Shipped("shipped_neural_classification", "neural_classification"))}


# -- baselines on the same model --------------------------------------------------------------


def baseline_scores(setup: Setup, scale: Scale, baseline: str, seed: int, cases: TableCases) -> (
        tuple[Scores, Tensor | None]):
    """Run a per-dataset baseline on the contexts of a table.

    Returns:
        Figures (B,) on the held-out folds, and which of the chains have converged (B,) bool, None without chains.
    """
    model = setup.build_model()
    if baseline == EXACT:
        exact = exact_posterior_of(model)(cases.dataset)
        theta = exact.rsample(SCORE_DRAWS, generator_for(DRAW_SEED)).to(cases.dataset.x.dtype)
        return scores_of_draws(model, theta, cases.held_out), None
    settings = {"num_chains": SCORE_DRAWS} if baseline == PRIOR else scale.baseline(baseline, setup)
    run = run_baseline(model, cases.dataset, baseline, seed=seed, **settings)
    return scores_of_posterior(run.posterior, cases.held_out), _converged(setup, run)


def _converged(setup: Setup, run: BaselineRun) -> Tensor | None:
    if run.convergence is None:
        return None
    if not setup.task.startswith("nonlinear"):
        return run.converged
    # Hidden units can be permuted: chains need to agree on predictions only.
    theta = run.theta.to(run.dataset.x.dtype)
    return Convergence.of(predictions(run.model, run.dataset, theta).double()).converged()
