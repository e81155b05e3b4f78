from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from posteria.bench.conclusions import conclusions_markdown, weigh_all
from posteria.bench.plain_report import markdown_table, plain_frame, write_plain_report
from posteria.bench.report import Entry, over_seeds, table_frame, write_report
from posteria.bench.report_text import verdict
from posteria.bench.setups import SETUPS
from posteria.bench.store import Result, ResultStore


def _result(method: str, mean: float, error: float = 0.01, seed: int = 0, setup: str = "lr_1d",
            figure: str = "symmetric_kl", **record: float) -> Result:
    return Result({"method": method, "seed": seed, "setup": setup}, "paper", setup, method, "laptop", seed,
                  {figure: {"mean": mean, "standard_error": error}}, {"seconds": 60.0, **record}, {}, "2026")


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    store = ResultStore(tmp_path / "results.sqlite")
    for result in (_result("reverse_kl/gaussian/gru", 0.05, steps=10), _result("reverse_kl/own/iterative", 0.001, 1e-4),
                   _result("exact", 0.0, 0.0), _result("hmc", 0.2, converged=0.5)):
        store.add(result)
    return store


def test_ours_stands_beside_the_paper_and_the_exact_number(store: ResultStore) -> None:
    frame = table_frame(5, [SETUPS["lr_1d"]], "laptop", store)
    row = frame[frame.method == "reverse_kl/gaussian/gru"].iloc[0]
    assert (row.paper, row.paper_std, row.exact, row.steps) == (0.03, 0.0, 0.0, 10)
    assert row.difference_in_se == pytest.approx(2.0)
    untried = frame[frame.method == "forward_kl/gaussian/gru"].iloc[0]
    assert math.isnan(untried.ours)
    assert untried.paper == 0.04


def test_the_verdict_takes_the_best_of_both(store: ResultStore) -> None:
    found = verdict(5, SETUPS["lr_1d"], table_frame(5, [SETUPS["lr_1d"]], "laptop", store))
    assert found is not None
    assert (found.our_method, found.paper, found.met) == ("reverse_kl/own/iterative", 0.03, True)


def test_squared_errors_of_mixtures_are_not_judged(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.sqlite")
    store.add(_result("reverse_kl/gaussian/gru", 1.7, setup="gmm_2d_2c", figure="l2_per_draw"))
    setup = SETUPS["gmm_2d_2c"]
    assert verdict(7, setup, table_frame(7, [setup], "laptop", store)) is None


def test_seeds_share_their_test_datasets() -> None:
    entry = over_seeds([_result("m", 1.0, 0.3), _result("m", 2.0, 0.4, seed=1)], "symmetric_kl")
    assert entry == Entry(1.5, pytest.approx(math.sqrt((0.09 + 0.16) / 2 + 0.5 / 2)))
    assert math.isnan(over_seeds([], "symmetric_kl").mean)


def test_reports_are_written_and_mark_what_has_not_converged(store: ResultStore, tmp_path: Path) -> None:
    paths = write_report(5, [SETUPS["lr_1d"], SETUPS["gm_2d"]], "laptop", store, tmp_path / "reports")
    text = paths[0].read_text()
    assert [path.suffix for path in paths] == [".md", ".csv", ".png"]
    assert "hmc † (50% converged)" in text
    assert "| Linear regression 1D | symmetric KL per parameter | 0.03" in text
    assert pd.read_csv(paths[1]).figure.eq("symmetric_kl").all()
    assert paths[2].stat().st_size > 5_000


def test_conclusions_follow_the_numbers(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results.sqlite")
    for setup in ("lr_1d", "gm_2d", "lr_2d"):
        for encoder in ("gru", "deepsets", "transformer"):
            for density in ("gaussian", "flow"):
                store.add(_result(f"forward_kl/{density}/{encoder}", 2.0, setup=setup, figure="l2_per_draw"))
                store.add(_result(f"reverse_kl/{density}/{encoder}", 1.0, setup=setup, figure="l2_per_draw"))
    by_text = {weighed.text: weighed for weighed in weigh_all(store, "laptop")}
    assert by_text["Reverse KL predicts better than forward KL (the paper's encoders)"].verdict == "confirmed"
    assert by_text["The encoder transformer predicts better than gru"].verdict == "not yet decided"
    assert by_text["Reverse KL predicts better than forward KL (the iterative encoder)"].won == 0
    assert "**confirmed** (18 of 18 comparisons clearly for" in conclusions_markdown(store, "laptop")


def test_plain_reports_have_every_figure_and_the_paper_s_number(tmp_path: Path) -> None:
    results = [_result("a", 1.0), _result("a", 3.0, seed=1), _result("b", 2.0, converged=0.2)]
    frame = plain_frame(results, ("symmetric_kl", lambda setup, method: Entry(9.0, 1.0) if method == "a" else None))
    assert frame[frame.method == "a"][["ours", "paper", "seeds"]].to_numpy().tolist() == [[2.0, 9.0, 2.0]]
    paths = write_plain_report("name", "Heading", "Introduction", frame, tmp_path)
    text = paths[0].read_text()
    assert "| a | 9 ± 1 | 2 ±" in text
    assert "| b † |" in text


def test_markdown_tables_have_words_for_truth_and_nothing_for_what_is_missing() -> None:
    frame = pd.DataFrame({"a_b": [1.23456, math.nan], "agrees": [True, False], "note": [None, "x"]}, dtype=object)
    assert markdown_table(frame) == ["| a b | agrees | note |", "|---|---|---|", "| 1.23 | yes |  |",
                                     "|  | **no** | x |"]
