"""``posteria infer``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from posteria.cli.console import ExitCode, explained_errors, note, out, show, written
from posteria.errors import InputError


class Trust(StrEnum):
    """What to do about an answer that may be wrong."""

    AUTO = "auto"
    OFF = "off"
    STRICT = "strict"


def infer(
    places: Annotated[list[str], typer.Argument(
        metavar="[RUN_OR_NAME] DATA",
        help="Folder of a run, or a shipped estimator of [bold]posteria list[/bold] (default: universal); then a table "
             "with a row per observation: .csv, .csv.gz or .parquet.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    named: Annotated[str | None, typer.Option(
        "--estimator", metavar="RUN_OR_NAME", help="The same as the first argument.")] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict; none for a model of x alone.")] = None,
    columns: Annotated[str | None, typer.Option(
        metavar="A,B,...", help="Columns to use as features. Default: all but the target.")] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Posterior draws.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    trust: Annotated[Trust, typer.Option(
        help="auto: check the answer against the model's likelihood and mend it where needed; strict: exit with 3 when "
             "that fails; off: neither.")] = Trust.AUTO,
    model: Annotated[str | None, typer.Option(
        help="For the estimator [bold]universal[/bold]: a model of [bold]posteria list[/bold].")] = None,
    model_file: Annotated[str | None, typer.Option(
        help="path.py:function of the model, for an estimator trained with --model-file, or for universal.")] = None,
    option: Annotated[list[str] | None, typer.Option(
        metavar="KEY=VALUE", help="Options of --model, or arguments of that function. May be repeated.")] = None,
    prior_scale: Annotated[float | None, typer.Option(
        help="With universal: standard deviation of the model's normal priors.")] = None,
) -> None:
    """The posterior of a table: summary.csv, draws.parquet and report.html in --out.

    \b
    [bold]A shipped estimator; only some columns; a model of your own[/bold]
    posteria infer linear_regression houses.csv --target price --out out
    posteria infer linear_classification patients.parquet --target ill \\
        --columns age,sex,bmi --out out
    posteria infer run counts.csv --target n \\
        --model-file my_model.py:build --out out

    \b
    [bold]Any model, without training[/bold]
    posteria infer counts.csv --target n \\
        --model poisson_regression --prior-scale 0.5 --out out

    Numeric columns (and a numeric target) are standardised; text and boolean columns become 0/1 columns; labels of a
    target become classes. Rows with missing values are refused. Parameters are reported as the model has them and,
    for the linear models, in the units of the table too (units.*).

    The column [bold]status[/bold] says how far the answer was checked: amortized (the network's own), reweighted,
    refined, mcmc, or failed.

    Exit codes: 0 done, 1 failed, 2 bad input (a missing column, too many features, ...), 3 not to be trusted (strict).
    """
    with explained_errors():
        from posteria.cli.sources import load_estimator, output_folder
        from posteria.inference import STATUS, infer_table
        from posteria.tables import read_table

        estimator, data = _estimator_and_data(places, named)
        table = read_table(data)
        loaded = load_estimator(estimator, model_file, option or [], model, prior_scale)
        chosen = None if columns is None else [name.strip() for name in columns.split(",")]
        result = infer_table(loaded, table, target, chosen, num_samples, seed, trust is not Trust.OFF)
        for sentence in result.notes:
            note(sentence)
        facts = [("data", str(data)), ("estimator", estimator)]
        paths = result.save(output_folder(folder), f"Posterior of {data.name}", facts)
        units = result.units_summary
        shown, title = (result.summary, "Posterior") if units is None else (
            units, "Posterior, in the units of the table")
        show(shown.drop(columns=STATUS, errors="ignore"), title)
        if result.refined is not None:
            out().print(f"trust: {result.refined.status[0]} ({result.refined.reason[0]})", markup=False)
        written(paths)
        if trust is Trust.STRICT and result.refined is not None and bool(result.refined.failed.any()):
            raise typer.Exit(int(ExitCode.UNTRUSTED))


def _estimator_and_data(places: list[str], named: str | None) -> tuple[str, Path]:
    """Which estimator, and the table: the network for every model where none is named."""
    from posteria.every_model import NAME

    *first, data = places
    estimators = [*first, *([] if named is None else [named])]
    if len(estimators) > 1:
        raise InputError.of("RUN_OR_NAME", f"{', '.join(map(repr, estimators))} beside DATA {data!r}",
                            "one estimator, or none for universal")
    return (estimators or [NAME])[0], Path(data)
