"""scikit-learn estimators: posteriors behind ``fit`` and ``predict``.

``fit`` trains nothing: it hands the table to a trained :class:`posteria.Estimator` and keeps the posterior that it
returns, so it costs milliseconds and suits pipelines, cross-validation and grid searches. Predictions average over
posterior draws, so that their probabilities and standard deviations hold the uncertainty of the parameters too.

Examples:
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> model = AmortizedRegressor().fit(X, y)
    >>> mean, sd = model.predict(X, return_std=True)
    >>> model.summary().loc["weights[bmi]"].index.tolist()
    ['mean', 'sd', '2.5%', '50%', '97.5%']
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, overload

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from posteria.columns import label_name, listed
from posteria.errors import DataError, InputError, PosteriaError, UntrustedError
from posteria.estimator import DESCRIPTION, Estimator
from posteria.posterior import Posterior
from posteria.prediction import Prediction
from posteria.shipped import load, shipped_names
from posteria.tables import TableCodec, in_units
from posteria.trust import FAILED_WORDS, Refined
from posteria.types import Dataset

if TYPE_CHECKING:
    from sklearn.utils import Tags

# Draws times rows that are predicted at once: what stays in a processor's cache.
_CELLS = 2**16
# Up to so many numbers in a table, threads wait for each other longer than they work.
_SMALL = 2**16
_LARGEST_SEED = 2**31 - 1
_SUMMARY_DRAWS = 4000
_TRUST = ("auto", "strict", "off")


class _Amortized(BaseEstimator):
    """What regressor and classifier share: a table in, a posterior kept, predictive mixtures out."""

    posterior_: Posterior
    refined_: Refined | None
    status_: str | None
    codec_: TableCodec
    n_features_in_: int
    _targets: ClassVar[tuple[str, ...]]
    _takes: ClassVar[str]

    def __init__(self, estimator: str | Path | Estimator, num_samples: int, random_state: Any, trust: str):
        self.estimator = estimator
        self.num_samples = num_samples
        self.random_state = random_state
        self.trust = trust

    def sample_posterior(self, num_samples: int = 1000) -> pd.DataFrame:
        """Posterior draws: a row per draw, a column per named scalar parameter.

        They are in the units of X and y where the model has such parameters (the linear ones do), and else in
        the estimator's scale, as those of ``posterior_`` always are. The same call gives the same draws.

        Args:
            num_samples: S, how many rows.
        """
        check_is_fitted(self)
        draws = self.posterior_.sample(num_samples, self._seed)
        units = in_units(self.posterior_.model, draws, self.codec_.scaling)
        return self.posterior_.to_frame(draws=draws if units is None else units)

    def summary(self) -> pd.DataFrame:
        """Mean, sd, 2.5%, 50% and 97.5% quantiles per parameter, in units as :meth:`sample_posterior`, and status."""
        from posteria.labels import summarise

        table = summarise(self.sample_posterior(_SUMMARY_DRAWS), (0.025, 0.5, 0.975))
        return table if self.status_ is None else table.assign(status=self.status_)

    # -- fitting ------------------------------------------------------------------------------
    def _fit(self, X: Any, y: np.ndarray) -> Self:
        """Keep codec and posterior of X (N, D) and y (N,)."""
        _check_num_samples(self.num_samples)
        _check_trust(self.trust)
        trained = self._trained()
        table = self._table(X, reset=True)
        check_consistent_length(table, y)
        target = _free_name(table)
        table = table.assign(**{target: y})
        codec = TableCodec.for_model(trained.model, table, target)
        _check_width(codec, trained)
        self._seed = int(check_random_state(self.random_state).randint(_LARGEST_SEED))
        with _one_thread_if(table.size <= _SMALL):
            posterior = codec.name(trained.posterior(codec.dataset(table)))
            refined = None if self.trust == "off" else posterior.refine(seed=self._seed)
        for note in posterior.notes:
            warnings.warn(note, stacklevel=3)
        if refined is not None:
            _heed(refined, self.trust)
        self.codec_, self.posterior_ = codec, posterior if refined is None else refined.posterior
        self.refined_, self.status_ = refined, None if refined is None else refined.status[0]
        return self

    def _trained(self) -> Estimator:
        """The estimator to use, of a model that predicts what this class predicts."""
        trained = resolve(self.estimator)
        if trained.model.target not in self._targets:
            got = f"one for {trained.model.name} (target {trained.model.target!r})"
            raise InputError.of("estimator", got, self._takes)
        return trained

    def _table(self, X: Any, reset: bool) -> pd.DataFrame:
        """X as a complete table: data frames keep their kinds of columns, everything else is numbers."""
        table: Any = X
        if isinstance(table, pd.DataFrame):
            validate_data(self, X, skip_check_array=True, reset=reset)
            table = table.rename(columns=str).infer_objects()
        else:
            values: Any = validate_data(self, X, dtype=np.float64, ensure_all_finite=False, reset=reset)
            names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(values.shape[1])])
            table = pd.DataFrame(values, columns=list(names))
        least = 2 if reset else 1
        if len(table) < least:
            raise DataError.of("X", f"{len(table)} sample", f"{least} or more samples (rows)")
        _check_complete(table, type(self).__name__)
        return table

    # -- predicting ---------------------------------------------------------------------------
    def _predictions(self, X: Any) -> Iterator[Prediction]:
        """Predictive mixtures of one dataset, a few rows after the other, in double precision.

        All rows meet the same draws of theta, so that a prediction does not depend on the rows beside it.
        """
        check_is_fitted(self)
        rows = torch.as_tensor(self.codec_.encode(self._table(X, reset=False)))
        with _one_thread_if(rows.numel() <= _SMALL):
            yield from self._predictions_of(rows)

    def _predictions_of(self, rows: torch.Tensor) -> Iterator[Prediction]:
        theta = self.posterior_.sample_theta(self.num_samples, self._seed).cpu().double()
        columns = self.posterior_.dataset.x.shape[-1]
        for part in rows.split(max(1, _CELLS // self.num_samples)):
            whole = Dataset(part[None], None, torch.ones(1, len(part), dtype=torch.bool),
                            torch.ones(1, part.shape[1], dtype=torch.bool))
            with torch.no_grad():
                inputs = whole.padded(len(part), columns)
                yield Prediction(self.posterior_.model.predict(theta, inputs), inputs.observed)


class AmortizedRegressor(RegressorMixin, _Amortized):
    """Regression by an amortized posterior; fitting trains nothing.

    Numbers (and y) are standardised for the estimator, and predictions are in the units of y. In a data frame,
    columns of text, categories and booleans become 0/1 features; arrays must be numeric. Missing values are
    refused: impute them in a pipeline. Levels that were not there in ``fit`` are refused in ``predict``: where
    some are rare, encode them in a pipeline with ``OneHotEncoder(handle_unknown="ignore")``.

    Args:
        estimator: a shipped estimator's name, the folder of a trained one, or an :class:`posteria.Estimator`,
            for a model of real numbers or counts.
        num_samples: S, posterior draws that predictions average over.
        random_state: of the draws, as everywhere in scikit-learn; a number makes fits repeatable.
        trust: "auto" checks the posterior against the model's own likelihood, mends it where that is needed
            (:meth:`posteria.Posterior.refine`), and warns where that failed; "strict" raises there; "off" takes the
            estimator's posterior as it is, which is twice as fast.

    Attributes:
        posterior_: the :class:`posteria.Posterior`, of one dataset, in the estimator's standardised scale.
        status_: how it was found: "amortized", "reweighted", "refined", "mcmc" or "failed"; None with trust "off".
        refined_: the :class:`posteria.trust.Refined`, with reasons and diagnosis; None with trust "off".
        codec_: the :class:`posteria.tables.TableCodec`, which knows the features and how they were scaled.
        n_features_in_, feature_names_in_: columns of X.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(100, 2))
        >>> y = 3 * X[:, 0] + rng.normal(size=100)
        >>> model = AmortizedRegressor().fit(X, y)
        >>> mean, sd = model.predict(X[:5], return_std=True)
        >>> mean.shape, sd.shape
        ((5,), (5,))
    """

    _targets = ("real", "count", "positive")
    _takes = "one for a model of real numbers or counts; AmortizedClassifier predicts classes"

    def __init__(self, estimator: str | Path | Estimator = "linear_regression", num_samples: int = 1000,
                 random_state: Any = 0, trust: str = "auto"):
        super().__init__(estimator, num_samples, random_state, trust)

    def fit(self, X: Any, y: Any) -> Self:
        """Compute the posterior of X and y.

        Args:
            X: (N, D) data frame or numbers.
            y: (N,) numbers.

        Raises:
            DataError: missing values, columns that cannot be used, more features than the estimator knows.
            InputError: an unknown estimator, or one for classes.
            UntrustedError: the posterior failed its checks, and ``trust`` is "strict".
        """
        y = column_or_1d(y, dtype=np.float64, warn=True)
        assert_all_finite(y, input_name="y")
        return self._fit(X, y)

    @overload
    def predict(self, X: Any, return_std: Literal[False] = False) -> np.ndarray: ...

    @overload
    def predict(self, X: Any, return_std: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Posterior predictive mean (N,) of new rows, in the units of y.

        Args:
            X: (N, D), columns as in :meth:`fit`.
            return_std: also the predictive standard deviation (N,), of noise and parameters together.
        """
        parts = [(p.mean[0], p.sd[0] if return_std else p.mean[0]) for p in self._predictions(X)]
        mean, sd = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        scaling = self.codec_.scaling
        mean = scaling.y_location + scaling.y_scale * mean
        return (mean, scaling.y_scale * sd) if return_std else mean


class AmortizedClassifier(ClassifierMixin, _Amortized):
    """Classification by an amortized posterior; fitting trains nothing.

    Columns are treated as by :class:`AmortizedRegressor`; labels may be numbers, text or booleans.

    Args:
        estimator: a shipped estimator's name, the folder of a trained one, or an :class:`posteria.Estimator`,
            for a model of classes. The shipped one knows two.
        num_samples: S, posterior draws that probabilities average over.
        random_state: of the draws, as everywhere in scikit-learn; a number makes fits repeatable.

    Attributes:
        classes_: (K,) labels, in order.
        posterior_: the :class:`posteria.Posterior`, of one dataset, in the estimator's standardised scale.
        codec_: the :class:`posteria.tables.TableCodec`, which knows the features and how they were scaled.
        n_features_in_, feature_names_in_: columns of X.

    Examples:
        >>> from sklearn.datasets import load_breast_cancer
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> model = AmortizedClassifier().fit(X, y)
        >>> model.predict_proba(X[:3]).shape
        (3, 2)
    """

    classes_: np.ndarray
    _targets = ("class",)
    _takes = "one for a model of classes; AmortizedRegressor predicts numbers"

    def __init__(self, estimator: str | Path | Estimator = "linear_classification", num_samples: int = 1000,
                 random_state: Any = 0, trust: str = "auto"):
        super().__init__(estimator, num_samples, random_state, trust)

    def fit(self, X: Any, y: Any) -> Self:
        """Compute the posterior of X and y.

        Args:
            X: (N, D) data frame or numbers.
            y: (N,) labels.

        Raises:
            DataError: missing values, columns that cannot be used, more features or classes than the estimator
                knows.
            InputError: an unknown estimator, or one for numbers.
            UntrustedError: the posterior failed its checks, and ``trust`` is "strict".
        """
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        classes = np.unique(y)
        _check_classes(classes, self._trained().model.num_classes)
        self._fit(X, y)
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(N,) the most probable label of each row of X (N, D)."""
        chosen = self.predict_proba(X).argmax(1)
        return self.classes_[chosen]

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, K) posterior predictive probabilities of ``classes_`` for rows X (N, D)."""
        return torch.cat([prediction.mean[0] for prediction in self._predictions(X)]).numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """(N, K) logarithms of :meth:`predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        assert tags.classifier_tags is not None
        try:
            tags.classifier_tags.multi_class = resolve(self.estimator).model.num_classes > 2
        except PosteriaError:  # fit will say what is wrong
            tags.classifier_tags.multi_class = False
        return tags


@contextmanager
def _one_thread_if(small: bool) -> Iterator[None]:
    """Torch on one thread meanwhile: of a small table, two are three times slower than one."""
    threads = torch.get_num_threads()
    try:
        if small:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


# -- trained estimators -----------------------------------------------------------------------
def resolve(estimator: str | Path | Estimator) -> Estimator:
    """The trained estimator that an argument names; loaded once, and again when its folder changes.

    Raises:
        InputError: neither an Estimator, nor a folder, nor a shipped name.
        CheckpointError: a folder that cannot be loaded.
    """
    if isinstance(estimator, Estimator):
        return estimator
    takes = f"an Estimator, the folder of a trained one, or a shipped one of {shipped_names()}"
    if not isinstance(estimator, str | Path):
        raise InputError.of("estimator", type(estimator).__name__, takes)
    description = Path(estimator) / DESCRIPTION
    if description.is_file():
        return _loaded(str(description.parent.resolve()), description.stat().st_mtime_ns)
    if str(estimator) not in shipped_names():
        raise InputError.of("estimator", repr(str(estimator)), takes)
    return _loaded(str(estimator), 0)


@lru_cache(maxsize=8)
def _loaded(name: str, changed: int) -> Estimator:
    return load(name)


# -- checks -----------------------------------------------------------------------------------
def _check_trust(trust: object) -> None:
    if trust not in _TRUST:
        raise InputError.of("trust", repr(trust), f"one of {list(_TRUST)}")


def _heed(refined: Refined, trust: str) -> None:
    """Say, or raise, that a posterior failed."""
    if not refined.failed.any():
        return
    if trust == "strict":
        raise UntrustedError(f"{FAILED_WORDS} ({refined.reason[0]})")
    warnings.warn(f"{FAILED_WORDS} ({refined.reason[0]})", stacklevel=4)


def _check_num_samples(num_samples: object) -> None:
    if not isinstance(num_samples, Integral) or num_samples < 1:
        raise InputError.of("num_samples", repr(num_samples), "a whole number, 1 or more")


def _check_classes(classes: np.ndarray, known: int) -> None:
    if len(classes) == known:
        return
    only = " Only binary classification is supported." if known == 2 else ""
    raise DataError(f"y: got {len(classes)} classes ({listed(map(label_name, classes))}); takes {known} classes, "
                    f"those that the estimator was trained for.{only}")


def _check_width(codec: TableCodec, trained: Estimator) -> None:
    most = trained.info.columns[1] - len(trained.model.extra_columns)
    got = len(codec.features)
    if got > most:
        encoded = " after one-hot encoding" if got > len(codec.columns) else ""
        raise DataError.of("X", f"{got} features{encoded}", f"at most {most} features, what the estimator was trained "
                           "for: select some in a pipeline, or train one for more")


def _check_complete(table: pd.DataFrame, name: str) -> None:
    missing = table.isna().sum().to_dict()
    bad = [f"{column} ({count})" for column, count in missing.items() if count]
    if bad:
        raise DataError.of("X", f"NaN or missing values in {len(bad)} columns: {listed(bad)}",
                           f"complete rows; impute in a pipeline, as in make_pipeline(SimpleImputer(), {name}())")
    numbers = table.select_dtypes("number")
    infinite = [column for column in numbers if np.isinf(numbers[column].to_numpy(dtype=np.float64)).any()]
    if infinite:
        raise DataError.of("X", f"infinite (inf) values in {listed(infinite)}", "finite numbers")


def _free_name(table: pd.DataFrame) -> str:
    """A name for the target that no column has."""
    name = "y"
    while name in table.columns:
        name += "_"
    return name
