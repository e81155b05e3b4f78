from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import BayesianRidge, LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import posteria.sklearn
from posteria import Estimator, EstimatorInfo, InputError, build_model
from posteria.errors import DataError, UntrustedError
from posteria.refinement import chains
from posteria.sklearn import AmortizedClassifier, AmortizedRegressor, resolve

# The checks use tables of a few rows, fewer than the shipped estimators were trained on.
OUTSIDE = "ignore:n. got . rows, outside the 8 to 2000:UserWarning"


def numbers(rows: int = 200, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """y = 10 + 2 x0 - x1 + noise of standard deviation 3, with x far from zero mean and unit variance."""
    rng = np.random.default_rng(0)
    X = rng.normal(50.0, 5.0, (rows, columns))
    return X, 10 + 2 * X[:, 0] - X[:, 1] + rng.normal(0, 3.0, rows)


def labels(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(rows, 3))
    return X, np.where(rng.random(rows) < 1 / (1 + np.exp(-2 * X[:, 0])), "yes", "no")


def mixed(rows: int = 200) -> tuple[pd.DataFrame, pd.Series]:
    """A table with numbers, text, categories and booleans, and labels."""
    rng = np.random.default_rng(2)
    table = pd.DataFrame({
        "age": rng.integers(20, 80, rows), "colour": rng.choice(["red", "green", "blue"], rows),
        "size": pd.Categorical(rng.choice(["S", "L"], rows)), "member": rng.random(rows) < 0.5,
    })
    return table, pd.Series(np.where(table.member | (table.age > 60), "buys", "leaves"), name="age")


def untrained(name: str, encoder: str = "iterative", columns: tuple[int, int] = (1, 5), **options: Any) -> Estimator:
    return Estimator(build_model(name, **options), encoder, info=EstimatorInfo(columns, (8, 2000))).eval()


# -- the contract of scikit-learn ---------------------------------------------------------------
@pytest.mark.filterwarnings(OUTSIDE)
@parametrize_with_checks([AmortizedRegressor(num_samples=100), AmortizedClassifier(num_samples=100)])
def test_scikit_learn_s_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("kind", [AmortizedRegressor, AmortizedClassifier])
def test_clones_and_pickles_keep_predictions(kind: Any, tmp_path: Path) -> None:
    X, y = numbers() if kind is AmortizedRegressor else labels()
    fitted = kind(num_samples=50).fit(X, y)
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    for other in (joblib.load(tmp_path / "fitted.joblib"), clone(fitted).fit(X, y)):
        np.testing.assert_array_equal(other.predict(X), fitted.predict(X))
        pd.testing.assert_frame_equal(other.sample_posterior(10), fitted.sample_posterior(10))


def test_searches_and_cross_validation_run() -> None:
    X, y = labels()
    pipeline = make_pipeline(StandardScaler(), AmortizedClassifier())
    grid = {"amortizedclassifier__num_samples": [20, 200], "standardscaler__with_mean": [True, False]}
    search = GridSearchCV(pipeline, grid, cv=3, scoring="neg_log_loss", error_score="raise").fit(X, y)
    rival = cross_val_score(LogisticRegression(), X, y, cv=3, scoring="neg_log_loss").mean()
    assert search.best_score_ == pytest.approx(rival, abs=0.01)
    X, y = numbers()
    ours, theirs = (cross_val_score(kind(), X, y, cv=3).mean() for kind in (AmortizedRegressor, BayesianRidge))
    assert ours == pytest.approx(theirs, abs=0.01)


# -- trust --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [AmortizedRegressor, AmortizedClassifier])
def test_answers_are_checked_and_labelled(kind: Any) -> None:
    X, y = numbers() if kind is AmortizedRegressor else labels()
    fitted = kind().fit(X, y)
    assert fitted.status_ in ("amortized", "reweighted", "refined", "mcmc")
    assert fitted.refined_.trusted.all()
    assert set(fitted.summary()["status"]) == {fitted.status_} == set(fitted.posterior_.summary()["status"])
    own = kind(trust="off").fit(X, y)
    assert own.status_ is None
    assert own.refined_ is None
    assert "status" not in own.summary()
    checked = own.posterior_.refine(seed=fitted._seed)
    assert checked.status == (fitted.status_,)
    pd.testing.assert_frame_equal(checked.summary(), fitted.posterior_.summary())


def test_a_posterior_that_failed_is_not_handed_on_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise there is no posterior of the noise; a few draws of chains are enough to see it."""
    for name, value in {"_ROUNDS": 1, "_WARMUP": 2, "_NUM_SAMPLES": 4}.items():
        monkeypatch.setattr(chains, name, value)
    X, _ = numbers(20, 2)
    with pytest.warns(UserWarning, match="failed its checks"):
        fitted = AmortizedRegressor(num_samples=10).fit(X, X[:, 0])
    assert fitted.status_ == "failed"
    with pytest.raises(UntrustedError, match="failed its checks"):
        AmortizedRegressor(trust="strict").fit(X, X[:, 0])
    with pytest.raises(InputError, match=r"trust: got 'maybe'; takes one of \['auto', 'strict', 'off'\]"):
        AmortizedRegressor(trust="maybe").fit(X, X[:, 0])


def test_threads_share_one_estimator() -> None:
    X, y = numbers()
    with joblib.parallel_backend("threading", n_jobs=2):
        scores = cross_val_score(AmortizedRegressor(num_samples=50), X, y, cv=4)
    np.testing.assert_array_equal(scores, cross_val_score(AmortizedRegressor(num_samples=50), X, y, cv=4))


@pytest.mark.parametrize(("most", "while_fitting"), [(2**16, 1), (10, 2)])
def test_small_tables_take_one_thread_and_give_the_others_back(
        most: int, while_fitting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, whole = [], Estimator.posterior
    monkeypatch.setattr(Estimator, "posterior", lambda *args: (seen.append(torch.get_num_threads()), whole(*args))[1])
    monkeypatch.setattr(posteria.sklearn, "_SMALL", most)
    threads, (X, y) = torch.get_num_threads(), numbers(20, 2)
    torch.set_num_threads(2)
    try:
        AmortizedRegressor(num_samples=10).fit(X, y).predict(X)
        assert (seen, torch.get_num_threads()) == ([while_fitting], 2)
    finally:
        torch.set_num_threads(threads)


def test_column_transformer_feeds_arrays_and_frames() -> None:
    table, y = mixed()
    table = table.astype({"member": int})  # a boolean is a level in a frame, and not scaled
    encode = make_column_transformer((OneHotEncoder(drop="if_binary", sparse_output=False), ["colour", "size"]),
                                     remainder="passthrough", verbose_feature_names_out=False)
    arrays = make_pipeline(encode, AmortizedClassifier()).fit(table, y)
    frames = make_pipeline(clone(encode).set_output(transform="pandas"), AmortizedClassifier()).fit(table, y)
    np.testing.assert_allclose(frames.predict_proba(table), arrays.predict_proba(table))
    assert frames[-1].sample_posterior(5).columns[-2:].tolist() == ["weights[leaves,member]", "intercept[leaves]"]
    assert frames[-1].feature_names_in_.tolist() == ["colour_blue", "colour_green", "colour_red", "size_S", "age",
                                                     "member"]


# -- right answers ------------------------------------------------------------------------------
def test_regression_agrees_with_least_squares_in_the_user_s_units() -> None:
    X, y = numbers(2000)
    fitted, exact = AmortizedRegressor(num_samples=4000).fit(X, y), LinearRegression().fit(X, y)
    residual = float((y - exact.predict(X)).std(ddof=4))
    centred = X - X.mean(0)
    errors = residual * np.sqrt(np.diag(np.linalg.inv(centred.T @ centred)))  # their classical standard errors
    summary = fitted.summary()
    weights = summary.loc[[f"weights[x{i}]" for i in range(3)]]
    # The prior shrinks by about 1/2000; 4000 draws give the mean to 1/60 and the sd to 1/90 of an sd.
    np.testing.assert_array_less(np.abs(weights["mean"] - exact.coef_), 0.1 * errors)
    np.testing.assert_allclose(weights["sd"], errors, rtol=0.06)
    assert summary.loc["noise_scale", "mean"] == pytest.approx(residual, rel=0.01)
    mean, sd = fitted.predict(X, return_std=True)
    np.testing.assert_allclose(mean, exact.predict(X), atol=0.1)
    np.testing.assert_allclose(sd, residual, rtol=0.03)
    np.testing.assert_array_equal(mean, fitted.predict(X))


def test_intercept_is_that_of_the_raw_columns() -> None:
    X, y = numbers(2000)
    summary, exact = AmortizedRegressor().fit(X, y).summary(), LinearRegression().fit(X, y)
    assert abs(summary.loc["intercept", "mean"] - exact.intercept_) < 0.1 * summary.loc["intercept", "sd"]


def test_classification_agrees_with_logistic_regression() -> None:
    X, y = labels(1000)
    fitted, rival = AmortizedClassifier().fit(X, y), LogisticRegression().fit(X, y)
    assert fitted.classes_.tolist() == ["no", "yes"]
    np.testing.assert_allclose(fitted.predict_proba(X), rival.predict_proba(X), atol=0.02)
    np.testing.assert_allclose(np.exp(fitted.predict_log_proba(X)), fitted.predict_proba(X))
    assert np.mean(fitted.predict(X) == rival.predict(X)) > 0.99


def test_counts_are_predicted_by_a_model_of_counts() -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(5.0, 2.0, 300), "exposure": rng.uniform(1, 10, 300)})
    rate = X.exposure * np.exp(0.25 * (X.a - 5))
    fitted = AmortizedRegressor(untrained("poisson_regression")).fit(X, rng.poisson(rate))
    mean, sd = fitted.predict(X, return_std=True)
    np.testing.assert_allclose(mean, rate, rtol=0.25)  # about 4 standard errors at the ends
    overdispersion = np.mean(1 / fitted.sample_posterior()["concentration"])
    np.testing.assert_allclose(sd**2, mean + mean**2 * overdispersion, rtol=0.1)  # and the spread of the rate


def test_three_classes_with_an_estimator_for_three() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    y = np.array(["a", "b", "c"])[np.digitize(X[:, 0], [-0.5, 0.5])]
    fitted = AmortizedClassifier(untrained("linear_classification", classes=3, temperature=1.0)).fit(X, y)
    assert fitted.predict_proba(X).shape == (300, 3)
    assert fitted.score(X, y) > 0.85
    assert fitted.__sklearn_tags__().classifier_tags.multi_class


# -- invariances --------------------------------------------------------------------------------
def test_arrays_and_frames_give_one_answer() -> None:
    X, y = numbers()
    frame = pd.DataFrame(X, columns=["a", "b", "c"], index=range(1000, 1200))
    fitted = AmortizedRegressor(num_samples=50).fit(frame, pd.Series(y, index=frame.index))
    np.testing.assert_array_equal(fitted.predict(frame), AmortizedRegressor(num_samples=50).fit(X, y).predict(X))
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c"]
    assert fitted.sample_posterior(7).columns.tolist() == ["weights[a]", "weights[b]", "weights[c]", "intercept",
                                                           "noise_scale"]


def test_global_random_states_are_neither_read_nor_moved() -> None:
    X, y = numbers()
    first = AmortizedRegressor(num_samples=20).fit(X, y).predict(X)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    np.testing.assert_array_equal(AmortizedRegressor(num_samples=20).fit(X, y).predict(X), first)
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    assert not np.array_equal(AmortizedRegressor(num_samples=20, random_state=1).fit(X, y).predict(X), first)


def test_rows_predicted_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = labels()
    fitted = AmortizedClassifier(num_samples=50).fit(X, y)
    whole = fitted.predict_proba(X)
    monkeypatch.setattr(posteria.sklearn, "_CELLS", 50 * 7)
    np.testing.assert_allclose(fitted.predict_proba(X), whole, rtol=1e-12)


def test_estimators_of_one_size_are_padded() -> None:
    X, y = numbers()
    fitted = AmortizedRegressor(untrained("linear_regression", "deepsets", noise="inferred"), 50).fit(X, y)
    assert fitted.posterior_.dataset.x.shape[-1] == 5
    assert fitted.predict(X[:4]).shape == (4,)
    assert fitted.sample_posterior(3).shape == (3, 5)


# -- tables -------------------------------------------------------------------------------------
def test_frames_with_categories_and_text_labels() -> None:
    table, y = mixed()
    fitted = AmortizedClassifier().fit(table, y)
    assert fitted.codec_.features == ("age", "colour=blue", "colour=green", "colour=red", "size=S", "member=True")
    assert fitted.classes_.tolist() == ["buys", "leaves"]
    assert set(fitted.predict(table.head())) <= {"buys", "leaves"}
    assert fitted.score(table, y) > 0.85


@pytest.mark.parametrize("y", [[True, False] * 20, [3, 7] * 20, [0.0, 1.0] * 20])
def test_labels_keep_their_type(y: list[Any]) -> None:
    fitted = AmortizedClassifier(num_samples=10).fit(numbers(40)[0], y)
    assert fitted.classes_.dtype == np.asarray(y).dtype
    assert fitted.predict(numbers(40)[0]).dtype == np.asarray(y).dtype


def test_constant_columns_are_dropped_aloud() -> None:
    X, y = numbers()
    X[:, 1] = 4.0
    with pytest.warns(UserWarning, match="columns: dropped x1, constant"):
        fitted = AmortizedRegressor(num_samples=10).fit(X, y)
    assert fitted.predict(X).shape == (200,)


def test_levels_unknown_to_fit_are_named() -> None:
    table, y = mixed()
    fitted = AmortizedClassifier(num_samples=10).fit(table, y)
    with pytest.raises(DataError, match=r"column 'colour': got 1 unknown levels \(pink\)"):
        fitted.predict(table.head(2).assign(colour="pink"))


def test_rows_outside_training_warn() -> None:
    X, y = numbers(5)
    with pytest.warns(UserWarning, match="5 rows, outside the 8 to 2000 that the estimator was trained on"):
        AmortizedRegressor(num_samples=10).fit(X, y)


# -- refusals -----------------------------------------------------------------------------------
def test_missing_values_are_refused_and_imputed_in_a_pipeline() -> None:
    X, y = numbers()
    X[0, 1] = np.nan
    with pytest.raises(DataError, match=r"NaN .* in 1 columns: x1 \(1\); .*make_pipeline\(SimpleImputer\(\)"):
        AmortizedRegressor().fit(X, y)
    piped = make_pipeline(SimpleImputer(), AmortizedRegressor(num_samples=50)).fit(X, y)
    assert piped.score(X, y) > 0.9
    table, labelled = mixed()
    table.loc[3, "colour"] = None
    with pytest.raises(DataError, match=r"colour \(1\).*AmortizedClassifier"):
        AmortizedClassifier().fit(table, labelled)


@pytest.mark.parametrize(("kind", "X", "y", "message"), [
    (AmortizedRegressor(), np.random.default_rng(0).normal(size=(120, 101)), np.arange(120.0),
     "got 101 features; takes at most 100"),
    (AmortizedRegressor(), pd.DataFrame({"id": [f"r{i}" for i in range(120)]}), np.arange(120.0),
     "got 120 features after one-hot encoding; takes at most 100"),
    (AmortizedClassifier(), numbers(30)[0], list("abc") * 10, r"y: got 3 classes \(a, b, c\); takes 2 classes"),
    (AmortizedClassifier(), numbers(30)[0], ["a"] * 30, r"y: got 1 classes \(a\); takes 2 classes"),
    (AmortizedRegressor("linear_classification"), *numbers(30), "estimator: got one for linear_classification"),
    (AmortizedClassifier("linear_regression"), *labels(30), "estimator: got one for linear_regression"),
    (AmortizedRegressor("linear_regresion"), *numbers(30), "estimator: got 'linear_regresion'; takes .*shipped"),
    (AmortizedRegressor(3), *numbers(30), "estimator: got int; takes an Estimator"),  # type: ignore[arg-type]
    (AmortizedRegressor(num_samples=0), *numbers(30), "num_samples: got 0"),
    (AmortizedRegressor(), numbers(30)[0], np.ones(30), "got one value in all rows"),
    (AmortizedRegressor(), pd.DataFrame(numbers(1)[0]), np.ones(1), "X: got 1 sample"),
])
def test_what_cannot_work_is_explained(kind: Any, X: Any, y: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind.fit(X, y)


def test_methods_want_a_fit_first() -> None:
    for call in (lambda: AmortizedRegressor().predict(np.ones((2, 2))), lambda: AmortizedRegressor().summary(),
                 lambda: AmortizedClassifier().predict(np.ones((2, 2)))):
        with pytest.raises(NotFittedError):
            call()


def test_weights_of_samples_are_not_accepted() -> None:
    with pytest.raises(TypeError, match="sample_weight"):
        AmortizedRegressor().fit(*numbers(), sample_weight=np.ones(200))  # type: ignore[call-arg]


def test_tags_survive_an_estimator_that_does_not_exist() -> None:
    assert not AmortizedClassifier("nowhere").__sklearn_tags__().classifier_tags.multi_class


# -- trained estimators ---------------------------------------------------------------------------
def test_shipped_estimators_are_loaded_once() -> None:
    assert resolve("linear_regression") is resolve("linear_regression")


def test_folders_are_loaded_again_when_they_change(tmp_path: Path) -> None:
    untrained("linear_regression", noise="inferred").save(tmp_path)
    first = resolve(tmp_path)
    assert resolve(str(tmp_path)) is first
    untrained("linear_regression", noise="inferred").save(tmp_path)
    os.utime(tmp_path / "estimator.json", ns=(1, 1))
    assert resolve(tmp_path) is not first
    fitted = AmortizedRegressor(tmp_path, num_samples=20).fit(*numbers())
    assert fitted.posterior_.model.name == "linear_regression"
