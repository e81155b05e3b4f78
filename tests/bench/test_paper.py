from __future__ import annotations

import pytest

from posteria.bench.cells import cells_of_table, chosen_setups
from posteria.bench.methods import METHODS, TRAINED
from posteria.bench.paper import paper_numbers
from posteria.bench.scales import SCALES, scale_named
from posteria.bench.setups import SETUPS, Setup, setups_of_table
from posteria.errors import InputError
from posteria.models import build_model

TABLES = (1, 2, *range(5, 23))


def test_all_printed_numbers_are_there() -> None:
    table = paper_numbers()
    assert len(table) == 1716
    assert set(table.table) == set(range(1, 25))
    assert table.figure.notna().all()
    assert table["mean"].notna().all()


@pytest.mark.parametrize("number", TABLES)
def test_tables_have_the_paper_s_rows_and_our_encoder_in_every_block(number: int) -> None:
    cells = cells_of_table(number, SCALES["laptop"])
    for setup in setups_of_table(number):
        mine = {cell.method.key for cell in cells if cell.setup == setup}
        assert {method.key for method in TRAINED} <= mine
        assert {"random", "optimization", "langevin", "hmc"} <= mine


def test_every_printed_row_has_a_method() -> None:
    table = paper_numbers()
    rows = table[~table.setup.isin(["tabular", "misspecified"])]
    printed = {f"{r.objective}/{r.density}/{r.encoder}" if r.encoder else r.objective for r in rows.itertuples()}
    assert printed <= set(METHODS)


def test_linear_regression_2d_of_the_paper_is_read_as_1d() -> None:
    assert setups_of_table(16)[0].key == "lr_1d_var"


@pytest.mark.parametrize("key", list(SETUPS))
def test_setups_build_their_model(key: str) -> None:
    model = SETUPS[key].build_model()
    assert model.name == SETUPS[key].model["name"]
    assert model.layout(SETUPS[key].dim).size > 0


@pytest.mark.parametrize("scale", list(SCALES))
def test_every_cell_has_a_checked_configuration(scale: str) -> None:
    for setup in SETUPS.values():
        for method in TRAINED:
            config = SCALES[scale].config(setup, method, seed=1)
            assert config.model is not None
            build_model(config.model.name, priors=config.model.priors, **config.model.options)
            assert (config.preset == "paper") == (scale == "paper" and method.encoder != "iterative")


def test_paper_scale_has_the_paper_s_steps_and_three_seeds() -> None:
    paper, method = SCALES["paper"], TRAINED[0]
    assert paper.seeds == 3
    assert paper.config(SETUPS["gm_100d"], method, 0).steps == 20_000
    assert paper.config(SETUPS["nlr_relu1_50d_var"], method, 0).steps == 250_000


def test_one_training_run_serves_all_sizes_of_a_variable_setup() -> None:
    small, large = SETUPS["lr_1d_var"], SETUPS["lr_100d_var"]
    method, scale = TRAINED[0], SCALES["laptop"]
    assert scale.config(small, method, 0) == scale.config(large, method, 0)


def test_identities_tell_cells_apart_and_are_json() -> None:
    cells = cells_of_table(5, SCALES["smoke"], seeds=2)
    keys = {str(sorted(cell.identity.items(), key=str)) for cell in cells}
    assert len(keys) == len(cells)


def test_unknown_names_are_input_errors() -> None:
    with pytest.raises(InputError, match="scale"):
        scale_named("huge")
    with pytest.raises(InputError, match="table"):
        chosen_setups(25)
    with pytest.raises(InputError, match=r"setups.*lr_1d"):
        cells_of_table(5, SCALES["smoke"], setups=["lr_7d"])
    with pytest.raises(InputError, match="methods"):
        cells_of_table(5, SCALES["smoke"], methods=["magic"])
    with pytest.raises(InputError, match="seeds"):
        cells_of_table(5, SCALES["smoke"], seeds=0)


def test_titles_and_keys_are_readable() -> None:
    setup = Setup("nonlinear_classification", 25, 5, "tanh", 2)
    assert (setup.key, setup.title) == ("nlc_tanh2_25d_5c", "Neural classification 25D, tanh 2, 5 classes")
