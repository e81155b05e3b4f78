"""posteria infer: the files it writes, and every refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from posteria.models import build_model
from posteria.tables import TableCodec
from tests.cli.conftest import Command, save_estimator

NAMES = ["weights[size]", "weights[age]", "weights[town=B]", "intercept", "noise_scale"]


def test_writes_summary_draws_and_report(posteria: Command, regression_run: Path, csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    outcome = posteria("infer", regression_run, csv, "--target", "price", "--num-samples", 50, "--out", out,
                       "--trust", "off")
    assert outcome.code == 0, outcome.err
    summary = pd.read_csv(out / "summary.csv", index_col="parameter")
    assert list(summary.index) == NAMES
    assert list(summary.columns) == [*(c := ["mean", "sd", "2.5%", "50%", "97.5%"]), *(f"units.{name}" for name in c)]
    draws = pd.read_parquet(out / "draws.parquet")
    assert list(draws.columns) == [*NAMES, *(f"units.{name}" for name in NAMES)]
    assert len(draws) == 50
    np.testing.assert_allclose(draws.mean()[NAMES], summary["mean"], rtol=1e-4, atol=1e-6)
    html = (out / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png") == 3
    assert "houses.csv" in html
    assert str(out / "report.html") in outcome.out
    assert outcome.err == ""


def test_units_lead_back_to_the_table(posteria: Command, regression_run: Path, csv: Path, table: pd.DataFrame,
                                      tmp_path: Path) -> None:
    posteria("infer", regression_run, csv, "--target", "price", "--num-samples", 20, "--out", tmp_path)
    draws = pd.read_parquet(tmp_path / "draws.parquet")
    y, x = table["price"], table["size"]
    np.testing.assert_allclose(draws["units.weights[size]"],
                               draws["weights[size]"] * y.std(ddof=0) / x.std(ddof=0), rtol=1e-5)


def test_seed_and_parquet_give_the_same_draws(posteria: Command, regression_run: Path, csv: Path,
                                              tmp_path: Path) -> None:
    parquet = tmp_path / "houses.parquet"
    pd.read_csv(csv).to_parquet(parquet)
    frames = []
    for data, seed in ((csv, 3), (parquet, 3), (csv, 4)):
        outcome = posteria("infer", regression_run, data, "--target", "price", "--num-samples", 10, "--seed", seed,
                           "--out", tmp_path)
        assert outcome.code == 0
        frames.append(pd.read_parquet(tmp_path / "draws.parquet"))
    pd.testing.assert_frame_equal(frames[0], frames[1])
    assert not frames[0].equals(frames[2])


def test_columns_choose_features(posteria: Command, regression_run: Path, csv: Path, tmp_path: Path) -> None:
    posteria("infer", regression_run, csv, "--target", "price", "--columns", "age, size", "--num-samples", 5,
             "--out", tmp_path)
    assert list(pd.read_csv(tmp_path / "summary.csv")["parameter"])[:2] == ["weights[age]", "weights[size]"]


def test_string_labels_name_the_classes(posteria: Command, classification_run: Path, table: pd.DataFrame,
                                        tmp_path: Path) -> None:
    table.to_csv(tmp_path / "t.csv", index=False)
    outcome = posteria("infer", classification_run, tmp_path / "t.csv", "--target", "kind", "--columns", "size,town",
                       "--num-samples", 5, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    # The first class is the reference and has no weights.
    assert list(pd.read_csv(tmp_path / "summary.csv")["parameter"]) == [
        "weights[house,size]", "weights[house,town=B]", "weights[hut,size]", "weights[hut,town=B]",
        "intercept[house]", "intercept[hut]"]
    assert "flat, house, hut" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_sizes_outside_training_are_noted(posteria: Command, regression_run: Path, csv: Path, tmp_path: Path) -> None:
    pd.read_csv(csv).head(5).assign(planet="Earth").to_csv(tmp_path / "few.csv", index=False)
    outcome = posteria("infer", regression_run, tmp_path / "few.csv", "--target", "price", "--num-samples", 5,
                       "--out", tmp_path)
    assert outcome.code == 0
    assert "note: n: 5 rows, outside the 8 to 200 that the estimator was trained on" in outcome.err
    assert "note: columns: dropped planet" in outcome.err
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "outside the 8 to 200" in html
    assert "dropped planet" in html


def test_too_many_features_are_refused_with_numbers(posteria: Command, regression_run: Path, tmp_path: Path) -> None:
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 8)), columns=[f"x{i}" for i in range(8)])
    wide.assign(y=np.arange(20.0)).to_csv(tmp_path / "wide.csv", index=False)
    outcome = posteria("infer", regression_run, tmp_path / "wide.csv", "--target", "y", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "features: this estimator takes at most 5 features, got 8" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--target", "cost"], "target: got 'cost'; takes one of the columns size, age, town, price"),
    ([], "target: got None; takes the column to predict"),
    (["--target", "town"], "target 'town': got values of type"),
    (["--target", "price", "--columns", "size,colour"], "columns: got colour, not in the table"),
])
def test_wrong_columns(posteria: Command, regression_run: Path, csv: Path, tmp_path: Path, arguments: list[str],
                       message: str) -> None:
    outcome = posteria("infer", regression_run, csv, *arguments, "--out", tmp_path)
    assert outcome.code == 2
    assert message in outcome.err


def test_missing_values_and_too_many_classes(posteria: Command, classification_run: Path, table: pd.DataFrame,
                                             tmp_path: Path) -> None:
    table.loc[[1, 2], "age"] = np.nan
    table.to_csv(tmp_path / "t.csv", index=False)
    outcome = posteria("infer", classification_run, tmp_path / "t.csv", "--target", "kind", "--out", tmp_path)
    assert outcome.code == 2
    assert "missing values in age (2)" in outcome.err
    outcome = posteria("infer", classification_run, tmp_path / "t.csv", "--target", "size", "--columns", "town",
                       "--out", tmp_path)
    assert outcome.code == 2
    assert "target 'size': got 40 classes" in outcome.err


def test_estimators_and_files_that_do_not_exist(posteria: Command, regression_run: Path, csv: Path,
                                                tmp_path: Path) -> None:
    outcome = posteria("infer", "nothing", csv, "--target", "price", "--out", tmp_path)
    assert outcome.code == 2
    assert "RUN_OR_NAME: got 'nothing'; takes a folder that posteria train wrote, or a shipped" in outcome.err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").touch()
    outcome = posteria("infer", tmp_path / "run", csv, "--target", "price", "--out", tmp_path)
    assert outcome.code == 2
    assert "holds no finished estimator; its training can go on with posteria train ... --resume" in outcome.err
    outcome = posteria("infer", regression_run, tmp_path / "none.csv", "--target", "price", "--out", tmp_path)
    assert outcome.code == 2
    assert "does not exist" in outcome.err
    outcome = posteria("infer", regression_run, csv, "--target", "price", "--out", csv)
    assert outcome.code == 2
    assert "--out: got" in outcome.err


def test_out_is_required_and_numbers_are_checked(posteria: Command, regression_run: Path, csv: Path) -> None:
    outcome = posteria("infer", regression_run, csv, "--target", "price")
    assert outcome.code == 2
    assert "--out" in outcome.err
    outcome = posteria("infer", regression_run, csv, "--target", "price", "--out", "o", "--num-samples", 0)
    assert outcome.code == 2
    assert "--num-samples" in outcome.err


def test_counts_with_an_exposure_column(posteria: Command, tmp_path: Path) -> None:
    run = save_estimator(tmp_path / "run", build_model("poisson_regression"), (2, 4))
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"age": rng.normal(50, 10, 30), "exposure": rng.uniform(0.5, 2, 30),
                          "visits": rng.poisson(3, 30)})
    table.to_csv(tmp_path / "t.csv", index=False)
    outcome = posteria("infer", run, tmp_path / "t.csv", "--target", "visits", "--num-samples", 10, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    assert list(pd.read_parquet(tmp_path / "draws.parquet").columns) == ["weights[age]", "intercept", "concentration"]
    table.drop(columns="exposure").to_csv(tmp_path / "t.csv", index=False)
    outcome = posteria("infer", run, tmp_path / "t.csv", "--target", "visits", "--out", tmp_path)
    assert outcome.code == 2
    assert "a table without exposure" in outcome.err


def test_the_codec_of_the_command_is_the_library_s(table: pd.DataFrame) -> None:
    codec = TableCodec.for_model(build_model("linear_regression"), table.drop(columns="kind"), "price")
    assert codec.features == ("size", "age", "town=B")
