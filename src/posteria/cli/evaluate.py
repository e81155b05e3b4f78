"""``posteria evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posteria.cli.console import err, explained_errors, out, show, written

if TYPE_CHECKING:
    from posteria.estimator import Estimator
    from posteria.evaluation import Evaluation

_CALIBRATION_DATASETS = 500


def evaluate(
    estimator: Annotated[str, typer.Argument(
        metavar="RUN_OR_NAME", help="Folder of a run, or a shipped estimator of [bold]posteria list[/bold].")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for metrics.json.")],
    num_datasets: Annotated[int, typer.Option(help="Fresh datasets to simulate.")] = 100,
    num_samples: Annotated[int, typer.Option(help="Posterior draws for each.")] = 100,
    seed: Annotated[int, typer.Option(help="Of datasets and draws.")] = 0,
    calibration: Annotated[bool, typer.Option(
        "--calibration", help="Also check calibration on 500 datasets: calibration.json and calibration.png.")] = False,
    model_file: Annotated[str | None, typer.Option(
        help="path.py:function of the model, for an estimator trained with --model-file.")] = None,
    option: Annotated[list[str] | None, typer.Option(
        metavar="KEY=VALUE", help="Arguments of that function. May be repeated.")] = None,
) -> None:
    """How good an estimator is on datasets simulated from its model: metrics.json in --out.

    \b
    [bold]A run of yours; a shipped estimator[/bold]
    posteria evaluate run --num-datasets 100 --out out
    posteria evaluate linear_classification --out out

    Predictive error or accuracy on held-out rows, of single draws and of their average; log predictive density;
    coverage of the parameters by 50, 80 and 95% intervals; and, where the exact posterior is known, the symmetric
    KL per parameter (0 is perfect) with the exact posterior's own figures beside it. With --calibration also
    simulation-based calibration, coverage and TARP, with a verdict.

    Exit codes: 0 done, 1 failed, 2 bad input.
    """
    with explained_errors():
        import json

        from posteria.cli.sources import load_estimator, output_folder

        loaded = load_estimator(estimator, model_file, option or [])
        folder = output_folder(folder)
        result = _evaluated(loaded, num_datasets, num_samples, seed)
        path = folder / "metrics.json"
        values = {"estimator": estimator, "model": loaded.model.name, **result.to_json()}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        _show(result)
        written([path, *(_calibrated(loaded, seed, folder) if calibration else [])])


def _evaluated(loaded: Estimator, num_datasets: int, num_samples: int, seed: int) -> Evaluation:
    from rich.progress import Progress

    from posteria.evaluation import evaluate as run

    with Progress(console=err(), transient=True) as progress:
        task = progress.add_task("evaluating", total=num_datasets)
        return run(loaded, num_datasets, num_samples, seed,
                   progress=lambda done: progress.update(task, completed=done))


def _calibrated(loaded: Estimator, seed: int, folder: Path) -> list[Path]:
    """Check the calibration on datasets like those of training, say what came out, and write it."""
    import json

    from rich.progress import Progress

    from posteria.calibrate import check_calibration
    from posteria.tasks import SimulatedTask

    vary = "dataset" if loaded.fixed_size else "batch"
    task = SimulatedTask(loaded.model, loaded.info.rows, loaded.info.columns, vary_features=vary)
    with Progress(console=err(), transient=True) as progress:
        bar = progress.add_task("checking calibration", total=_CALIBRATION_DATASETS)
        report = check_calibration(loaded.posterior, task, loaded.model, _CALIBRATION_DATASETS, seed=seed,
                                   progress=lambda done: progress.update(bar, completed=done))
    paths = [folder / "calibration.json", folder / "calibration.png"]
    paths[0].write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    report.plot().savefig(paths[1], dpi=110)
    out().print(report.summary, markup=False, soft_wrap=True)
    return paths


def _show(result: Evaluation) -> None:
    import pandas as pd

    rows = {name: {"mean": f.mean, "standard error": f.standard_error} for name, f in result.figures.items()}
    show(pd.DataFrame(rows).T, f"{result.num_datasets} datasets, {result.num_samples} draws each", "figure")
