"""Tables: reading, encoding, refusing, and the way back to the user's units."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from posteria.errors import DataError
from posteria.models.linear import LinearClassification, LinearRegression
from posteria.tables import TableCodec, in_units, read_table
from tests.doubles import ScaledCounts


def people(rows: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "age": rng.normal(40, 10, rows), "height": rng.normal(170, 8, rows),
        "town": np.array(["A", "B", "C"])[np.arange(rows) % 3], "member": np.arange(rows) % 2 == 0,
        "income": rng.normal(3000, 500, rows),
    })


def test_numbers_are_standardised_and_labels_one_hot() -> None:
    codec = TableCodec.fit(people(), target="income")
    assert codec.features == ("age", "height", "town=A", "town=B", "town=C", "member=True")
    dataset = codec.dataset(people())
    assert dataset.x.shape == (1, 12, 6)
    torch.testing.assert_close(dataset.x[0, :, :2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(dataset.x[0, :, :2].std(0, correction=0), torch.ones(2))
    assert dataset.x[0, :4, 2:].tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]]
    assert dataset.y is not None
    income = torch.tensor(people()["income"].to_numpy())
    torch.testing.assert_close(codec.target_in_units(dataset.y[0].double()), income, rtol=1e-5, atol=0.01)


def test_a_new_table_takes_the_fitted_scales_in_any_order_of_columns() -> None:
    table = people()
    codec = TableCodec.fit(table, target="income")
    new = table.iloc[:3][["town", "member", "height", "age"]]
    dataset = codec.dataset(new)
    assert dataset.y is None
    torch.testing.assert_close(dataset.x, codec.dataset(table).x[:, :3])


def test_columns_can_be_chosen() -> None:
    codec = TableCodec.fit(people(), target="income", columns=["height", "age"])
    assert codec.features == ("height", "age")
    assert codec.dataset(people()).x.shape == (1, 12, 2)  # the others are known, though unused
    with pytest.raises(DataError, match=r"columns: got weight, not in the table; takes some of age, height"):
        TableCodec.fit(people(), target="income", columns=["weight"])
    with pytest.raises(DataError, match="columns: got the target 'income'"):
        TableCodec.fit(people(), target="income", columns=["age", "income"])


@pytest.mark.parametrize(("labels", "names"), [
    (["no", "yes"], ("no", "yes")), ([2, 1], ("1", "2")), ([0.0, 1.0], ("0", "1")), ([True, False], ("False", "True")),
])
def test_labels_become_indices_and_keep_their_names(labels: list, names: tuple[str, ...]) -> None:
    table = people().assign(label=[labels[i % 2] for i in range(12)])
    codec = TableCodec.fit(table, target="label", kind="class", num_classes=2)
    assert codec.label_names == names
    y = codec.dataset(table).y
    assert y is not None
    assert [names[int(i)] for i in y[0, :2]] == [n for label in labels[:2] for n in [f"{label:g}" if isinstance(
        label, float) else str(label)]]


def test_constant_columns_are_dropped_with_a_warning() -> None:
    table = people().assign(planet="Earth", zero=0.0)
    with pytest.warns(UserWarning, match="columns: dropped planet, zero"):
        codec = TableCodec.fit(table, target="income")
    assert "zero" not in codec.features
    assert codec.dataset(table).x.shape[-1] == 6


def test_nothing_left_is_refused() -> None:
    table = pd.DataFrame({"one": [1.0, 1.0], "y": [0.0, 1.0]})
    with pytest.warns(UserWarning, match="dropped one"), pytest.raises(DataError, match="no feature that varies"):
        TableCodec.fit(table, target="y")


def test_missing_values_are_counted_and_refused() -> None:
    table = people()
    table.loc[[0, 3], "age"] = np.nan
    table.loc[1, "town"] = None
    with pytest.raises(DataError, match=r"missing values in age \(2\), town \(1\)"):
        TableCodec.fit(table, target="income")
    codec = TableCodec.fit(people(), target="income")
    with pytest.raises(DataError, match=r"age \(2\), town \(1\)"):
        codec.dataset(table)
    table = people()
    table.loc[5, "income"] = np.inf
    with pytest.raises(DataError, match=r"infinite values in income \(1\)"):
        TableCodec.fit(table, target="income")


def test_missing_values_in_columns_not_used_do_not_matter() -> None:
    table = people()
    table.loc[0, "town"] = None
    assert TableCodec.fit(table, target="income", columns=["age"]).dataset(table).x.shape == (1, 12, 1)


def test_other_columns_or_levels_in_a_new_table_are_refused() -> None:
    codec = TableCodec.fit(people(), target="income")
    with pytest.raises(DataError, match=r"without 1 columns \(age\); takes the 4 columns"):
        codec.dataset(people().drop(columns="age"))
    with pytest.raises(DataError, match=r"2 unknown columns \(x1, x2\)"):
        codec.dataset(people().assign(x1=0, x2=0))
    with pytest.raises(DataError, match=r"column 'town': got 1 unknown levels \(D\); takes the 3 levels A, B, C"):
        codec.dataset(people().assign(town="D"))


def test_too_many_features_and_classes_say_the_numbers() -> None:
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 140))).rename(columns=str).assign(y=[0.0, 1, 2, 3, 4])
    with pytest.raises(DataError, match="takes at most 100 features, got 140"):
        TableCodec.fit(wide, target="y", max_features=100)
    names = people().assign(name=[f"person {i}" for i in range(12)])
    with pytest.raises(DataError, match=r"at most 10 features, got 18 \(of which name 12, town 3 after one-hot"):
        TableCodec.fit(names, target="income", max_features=10)
    with pytest.raises(DataError, match=r"target 'town': got 3 classes \(A, B, C\); takes 2 classes"):
        TableCodec.fit(people(), target="town", kind="class", num_classes=2)
    with pytest.raises(DataError, match=r"got 1 classes \(A\); takes 2 to 4 classes"):
        TableCodec.fit(people().assign(town="A"), target="town", kind="class", num_classes=4)


def test_targets_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(DataError, match=r"target 'town': got values of type .*; takes numbers"):
        TableCodec.fit(people(), target="town")
    with pytest.raises(DataError, match=r"target: got None; takes the column to predict, one of age, height"):
        TableCodec.fit(people())
    with pytest.raises(DataError, match="target: got 'wage'; takes one of the columns age"):
        TableCodec.fit(people(), target="wage")
    with pytest.raises(DataError, match="got one value in all rows"):
        TableCodec.fit(people().assign(income=1.0), target="income")
    with pytest.raises(DataError, match=r"takes counts 0, 1, 2"):
        TableCodec.fit(people(), target="income", kind="count")
    with pytest.raises(DataError, match="describes all columns and predicts none"):
        TableCodec.fit(people(), target="income", kind="none")


def test_unusable_columns_and_tables_are_refused() -> None:
    with pytest.raises(DataError, match=r"column 'when': got values of type datetime64.*; takes numbers, labels"):
        TableCodec.fit(people().assign(when=pd.date_range("2020", periods=12)), target="income")
    with pytest.raises(DataError, match="got 0 rows"):
        TableCodec.fit(people().iloc[:0], target="income")
    with pytest.raises(DataError, match=r"named twice \(age\)"):
        TableCodec.fit(pd.concat([people(), people()[["age"]]], axis=1), target="income")


def test_a_model_gives_kind_classes_and_extra_columns() -> None:
    table = people().assign(exposure=2.0)
    codec = TableCodec.for_model(ScaledCounts(), table, "income", columns=["age"])
    assert codec.extra == ("exposure",)
    assert codec.dataset(table).x[0, :, 0].tolist() == [2.0] * 12
    with pytest.raises(DataError, match="without exposure"):
        TableCodec.for_model(ScaledCounts(), people(), "income")
    with pytest.raises(DataError, match="takes 2 classes"):
        TableCodec.for_model(LinearClassification(classes=2), people(), "town")


def test_units_of_a_linear_regression_predict_the_same() -> None:
    """Predictions from standardised inputs, scaled back, are those of the raw inputs with parameters in units."""
    table = people()
    codec = TableCodec.fit(table, target="income")
    model = LinearRegression("inferred")
    generator = torch.Generator().manual_seed(0)
    draws = {"weights": torch.randn(1, 5, 6, generator=generator), "intercept": torch.randn(1, 5, generator=generator),
             "noise_scale": torch.rand(1, 5, generator=generator)}
    x = codec.dataset(table).x
    expected = codec.target_in_units(draws["weights"] @ x.mT + draws["intercept"][..., None])
    raw = table.assign(a=table.town == "A", b=table.town == "B", c=table.town == "C")
    raw = torch.tensor(raw[["age", "height", "a", "b", "c", "member"]].to_numpy(dtype=np.float64))
    units = in_units(model, draws, codec.scaling)
    assert units is not None
    torch.testing.assert_close(units["weights"] @ raw.T + units["intercept"][..., None], expected,
                               rtol=1e-4, atol=0.1, check_dtype=False)
    torch.testing.assert_close(units["noise_scale"], draws["noise_scale"].double() * codec.scaling.y_scale)
    assert in_units(ScaledCounts(), draws, codec.scaling) is None


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_files_are_read(tmp_path: Path, name: str) -> None:
    path, table = tmp_path / name, people()
    if name.endswith("parquet"):
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_table(path), table, check_dtype=False)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data: got 't.xlsx'; takes a file ending in .csv, .parquet"):
        read_table("t.xlsx")
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.parquet").write_text("not parquet")
    (tmp_path / "broken.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")[:-8])
    for name in ("empty.csv", "broken.parquet", "broken.csv.gz"):
        with pytest.raises(DataError, match="cannot be read"):
            read_table(tmp_path / name)


def test_no_warning_without_cause() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TableCodec.fit(people(), target="income").dataset(people())


def test_positive_targets_keep_their_units_and_refuse_others() -> None:
    table = pd.DataFrame({"a": [0.0, 1.0, 2.0], "time": [0.5, 3.0, 9.0]})
    dataset = TableCodec.fit(table, "time", kind="positive").dataset(table)
    assert dataset.y is not None
    assert dataset.y[0].tolist() == [0.5, 3.0, 9.0]
    with pytest.raises(DataError, match="takes positive values"):
        TableCodec.fit(table.assign(time=[0.0, 1.0, 2.0]), "time", kind="positive")
