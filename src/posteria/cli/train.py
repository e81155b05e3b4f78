"""``posteria train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posteria.cli.console import err, explained_errors, out, show, written

if TYPE_CHECKING:
    from posteria.models import Model

_DEFAULT_MINUTES = 5.0


def train(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the run: estimator, log and checkpoints.")],
    model: Annotated[str | None, typer.Option(help="A model of [bold]posteria list[/bold].")] = None,
    model_file: Annotated[str | None, typer.Option(
        help="Instead of --model: path.py:function, a function that returns a model of your own.")] = None,
    features: Annotated[int | None, typer.Option(min=1, help="Train for exactly this many features.")] = None,
    max_features: Annotated[int | None, typer.Option(
        min=1, help="Train for any number of features from 1 to this many.")] = None,
    rows: Annotated[str | None, typer.Option(
        metavar="LEAST:MOST", help="Observations per dataset, such as 8:2000. Default 64:128.")] = None,
    objective: Annotated[str | None, typer.Option(help="reverse_kl (default) or forward_kl.")] = None,
    encoder: Annotated[str | None, typer.Option(help="iterative (default), transformer, deepsets or gru.")] = None,
    density: Annotated[str | None, typer.Option(
        help="gaussian, full, low_rank, flow or spline_flow; the default suits the model.")] = None,
    task: Annotated[str | None, typer.Option(
        help="Where datasets come from: simulated (default), standardised, real_tables, gaussian_process, other_model "
             "or mixture_of_tasks.")] = None,
    minutes: Annotated[float | None, typer.Option(
        help=f"Budget in minutes of training. Default {_DEFAULT_MINUTES:g}.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps, instead of minutes.")] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights and of every draw.")] = 0,
    preset: Annotated[str, typer.Option(help="default (ours) or paper (the recipe of arXiv 2502.06601).")] = "default",
    option: Annotated[list[str] | None, typer.Option(
        metavar="KEY=VALUE", help="Option of the model, such as noise=inferred; or of another part, such as "
                                  "encoder.layers=4 or training.batch_size=64. May be repeated.")] = None,
    start: Annotated[str | None, typer.Option(
        "--from", metavar="RUN_OR_NAME", help="Go on from a trained estimator, such as [bold]universal[/bold]: special "
                                              "training for one model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, if there is one.")] = False,
) -> None:
    """Train an estimator on datasets simulated from a model, or on datasets of your own.

    \b
    [bold]Two features, five minutes[/bold]
    posteria train --model linear_regression --features 2 --minutes 5 \\
        --out run

    \b
    [bold]Any number of features up to 100, the noise inferred[/bold]
    posteria train --model linear_regression --option noise=inferred \\
        --max-features 100 --out run

    \b
    [bold]Ordinary logistic regression with three classes; a network[/bold]
    posteria train --model linear_classification --option classes=3 \\
        --option temperature=1 --features 4 --out run
    posteria train --model neural_regression --option hidden=16 \\
        --features 1 --out run

    \b
    [bold]The recipe of the paper; a model of your own[/bold]
    posteria train --preset paper --model gaussian_mean --features 2 \\
        --steps 20000 --out run
    posteria train --model-file my_model.py:build --features 5 --out run

    \b
    [bold]On parts of the tables in a folder (CSV or Parquet), target "y"[/bold]
    posteria train --model linear_regression --option noise=inferred \\
        --max-features 20 --task real_tables --option task.folder=tables \\
        --option task.target=y --out run

    \b
    [bold]From the network that serves every model: a minute is enough[/bold]
    posteria train --from universal --model poisson_regression \\
        --features 5 --minutes 1 --out run

    Ctrl-C stops and keeps what was learnt: the same command with --resume goes on.

    Exit codes: 0 trained, 1 failed, 2 bad input, 130 stopped.
    """
    with explained_errors():
        from posteria.cli.sources import model_from_file, parse_options
        from posteria.errors import TrainingInterrupted
        from posteria.models import build_model
        from posteria.training import TrainConfig
        from posteria.training import train as train_estimator

        options = parse_options(option or [])
        _check_one("--model, --model-file", model, model_file)
        built = build_model(model, **options["model"]) if model else model_from_file(model_file or "", options["model"])
        _check_folder(folder, resume)
        options["task"] |= _sizes(built, features, max_features, rows)
        if minutes is None and steps is None:
            minutes = _DEFAULT_MINUTES
        parts = _parts({"encoder": encoder, "density": density, "objective": objective, "task": task}, options)
        named = {"model": {"name": model, "options": options["model"]}} if model else {}
        config = TrainConfig.of(**named, **parts, preset=preset, start=start, minutes=minutes, steps=steps, seed=seed,
                                **options["training"])
        try:
            result = train_estimator(config, folder, resume=resume, model=None if model else built)
        except TrainingInterrupted as interrupted:
            err().print("stopped; the same command with --resume goes on", style="yellow")
            raise interrupted
        _report(result.history[-1], folder)


def _check_one(names: str, first: object, second: object) -> None:
    from posteria.errors import InputError

    if (first is None) == (second is None):
        raise InputError.of(names, "neither" if first is None else "both", "one of the two")


def _check_folder(folder: Path, resume: bool) -> None:
    from posteria.errors import InputError

    if not resume and next(folder.glob("checkpoint*"), None) is not None:
        raise InputError.of("--out", f"{folder}, which holds a run", "another folder, or --resume to go on with it")


def _sizes(model: Model, features: int | None, max_features: int | None, rows: str | None) -> dict[str, Any]:
    """Options of the task: columns of x count the model's extra ones too."""
    _check_one("--features, --max-features", features, max_features)
    extra = len(model.extra_columns)
    columns = (features, features) if features is not None else (1, max_features or 1)
    sizes: dict[str, Any] = {"columns": [extra + count for count in columns]}
    return sizes if rows is None else {**sizes, "rows": _range(rows)}


def _range(text: str) -> list[int]:
    from posteria.errors import InputError

    least, _, most = text.partition(":")
    if not (least.isdecimal() and (most or least).isdecimal()):
        raise InputError.of("--rows", repr(text), "least:most, such as 64:128")
    return [int(least), int(most or least)]


def _parts(names: dict[str, str | None], options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Parts of the configuration; a part with neither name nor options is left to the preset."""
    chosen = {part: ({"name": name} if name else {}) | ({"options": options[part]} if options[part] else {})
              for part, name in names.items()}
    return {part: value for part, value in chosen.items() if value}


def _report(row: dict[str, float], folder: Path) -> None:
    import pandas as pd

    show(pd.DataFrame({"value": row}), "Last row of the log", "figure")
    written([folder / "estimator.json", folder / "weights.safetensors", folder / "log.csv"])
    out().print(f"next: posteria evaluate {folder} --out {folder / 'evaluation'}", soft_wrap=True, markup=False)
