"""``posteria bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posteria.cli.console import explained_errors, note, out, written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from posteria.bench.runner import Cell
    from posteria.bench.workspace import Workspace

_HELP = "Regenerate the paper's tables and figures, and our own benches, resumably."

app = typer.Typer(name="bench", help=_HELP, no_args_is_help=True, rich_markup_mode="rich",
                  pretty_exceptions_enable=False)

Scale = Annotated[str, typer.Option(help="smoke (minutes), laptop (up to a night) or paper (a GPU).")]
Out = Annotated[Path, typer.Option("--out", help="Folder of results.sqlite, trained estimators and reports.")]
Workers = Annotated[int | None, typer.Option(help="Processes; default one per core, one with a GPU.")]
Seeds = Annotated[int | None, typer.Option(help="Training seeds; default the scale's.")]
Setups = Annotated[list[str] | None, typer.Option("--setup", help="Some columns, such as lr_1d. May be repeated.")]
Methods = Annotated[list[str] | None, typer.Option(
    "--method", help="Some rows, such as reverse_kl/flow/iterative. May be repeated.")]
ReportOnly = Annotated[bool, typer.Option("--report-only", help="Report what the folder has; run nothing.")]


@app.command("table")
def table(
    number: Annotated[int, typer.Argument(metavar="N", help="1 to 24.")],
    scale: Scale = "smoke",
    folder: Out = Path("bench_out"),
    workers: Workers = None,
    seeds: Seeds = None,
    setup: Setups = None,
    method: Methods = None,
    report_only: ReportOnly = False,
) -> None:
    """One of the paper's tables: every cell, ours beside the paper's number.

    \b
    [bold]Minutes; then a part of it with more time[/bold]
    posteria bench table 5 --scale smoke --out bench_out
    posteria bench table 5 --scale laptop --setup lr_1d --out bench_out

    A cell that is in results.sqlite is not run again; a training run that was killed goes on where it was.
    Exit codes: 0 done, 1 some cell failed, 2 bad input, 130 interrupted (run the same command to go on).
    """
    with explained_errors():
        from posteria.bench.scales import scale_named
        from posteria.bench.tables import table_cells, table_report

        chosen = scale_named(scale)
        cells = table_cells(number, chosen, seeds, setup or [], method or [])
        workspace = _workspace(folder)
        failed = 0 if report_only else _run(cells, workspace, workers)
        written(table_report(number, chosen, setup or [], workspace.store, workspace.root / "reports"))
        _exit_if(failed)


@app.command("figure")
def figure(
    number: Annotated[int, typer.Argument(metavar="N", help="1 to 14.")],
    scale: Scale = "smoke",
    folder: Out = Path("bench_out"),
    workers: Workers = None,
    seeds: Seeds = None,
    method: Methods = None,
    report_only: ReportOnly = False,
) -> None:
    """One of the paper's figures, drawn from our estimators: a picture, its numbers as CSV, a caption.

    \b
    posteria bench figure 3 --scale laptop --out bench_out

    A figure shows the methods that the folder has; --method runs some of them.
    Exit codes: 0 done, 1 some cell failed, 2 bad input, 130 interrupted (run the same command to go on).
    """
    with explained_errors():
        from posteria.bench.figures import figure_numbered, make_figure
        from posteria.bench.scales import scale_named

        chosen = scale_named(scale)
        spec, workspace = figure_numbered(number), _workspace(folder)
        failed = 0 if report_only else _run(_of_methods(spec.cells(chosen, seeds or chosen.seeds), method or []),
                                            workspace, workers)
        written(make_figure(number, chosen, workspace, seeds=seeds, report_only=True))
        _exit_if(failed)


@app.command("ablation")
def ablation(
    name: Annotated[str, typer.Argument(metavar="NAME", help="positions or pooling.")],
    scale: Scale = "smoke",
    folder: Out = Path("bench_out"),
    workers: Workers = None,
    seeds: Annotated[int, typer.Option(help="Training seeds.")] = 5,
    report_only: ReportOnly = False,
) -> None:
    """A question that the paper leaves open: positional encodings, or why a GRU can beat DeepSets.

    \b
    posteria bench ablation positions --scale laptop --out bench_out

    Exit codes: 0 done, 1 some cell failed, 2 bad input, 130 interrupted (run the same command to go on).
    """
    with explained_errors():
        from posteria.bench import ablations
        from posteria.bench.plain_report import plain_frame, write_plain_report
        from posteria.bench.scales import scale_named

        chosen = scale_named(scale)
        cells, workspace = ablations.ablation_cells(name, chosen, seeds), _workspace(folder)
        failed = 0 if report_only else _run(cells, workspace, workers)
        results = [r for r in workspace.store.results() if r.bench == ablations.BENCH and r.scale == chosen.name
                   and r.method.startswith(f"{name}/")]
        introduction = f"    posteria bench ablation {name} --scale {scale}\n\n{ablations.__doc__ or ''}"
        written(write_plain_report(f"ablation_{name}_{scale}", f"Ablation {name} at scale `{scale}`", introduction,
                                   plain_frame(results), workspace.root / "reports"))
        _exit_if(failed)


@app.command("samplers")
def samplers(
    scale: Scale = "smoke",
    folder: Out = Path("bench_out"),
    workers: Workers = None,
    case: Annotated[list[str] | None, typer.Option(help="Some models, such as lr_25d. May be repeated.")] = None,
    report_only: ReportOnly = False,
) -> None:
    """HMC against NumPyro's NUTS and against exact posteriors; needs the extra numpyro.

    \b
    posteria bench samplers --scale laptop --case lr_100d --out bench_out
    """
    with explained_errors():
        from posteria.bench.sampler_cells import sampler_cells, write_sampler_report
        from posteria.bench.scales import scale_named

        chosen, workspace = scale_named(scale), _workspace(folder)
        failed = 0 if report_only else _run(sampler_cells(chosen, case or []), workspace, workers)
        written(write_sampler_report(chosen, workspace.store, workspace.root / "reports"))
        _exit_if(failed)


@app.command("trust")
def trust(
    scale: Scale = "smoke",
    folder: Out = Path("bench_out"),
    workers: Workers = None,
    case: Annotated[list[str] | None, typer.Option(
        help="Some models, such as lr_25d, or broken. May be repeated.")] = None,
    shift: Annotated[list[str] | None, typer.Option(
        help="Some conditions, such as in_distribution or outliers. May be repeated.")] = None,
    datasets: Annotated[int | None, typer.Option(
        min=1, help="So many datasets at most; asked for more later, a cell measures only those it lacks.")] = None,
    report_only: ReportOnly = False,
) -> None:
    """Do labels keep their word: the trust ladder in distribution, under shifts, and on wrong posteriors.

    \b
    posteria bench trust --scale laptop --case lr_25d --shift outliers --out bench_out

    NUTS is timed beside it where the extra numpyro is installed.
    Exit codes: 0 done, 1 some cell failed, 2 bad input, 130 interrupted (run the same command to go on).
    """
    with explained_errors():
        from posteria.bench.scales import scale_named
        from posteria.bench.trust_bench import trust_cells
        from posteria.bench.trust_report import write_trust_report

        chosen = scale_named(scale)
        cells, workspace = trust_cells(chosen, case or [], shift or [], datasets), _workspace(folder)
        failed = 0 if report_only else _run(cells, workspace, workers)
        written(write_trust_report(chosen, workspace.store, workspace.root / "reports"))
        _exit_if(failed)


@app.command("universal")
def universal(
    scale: Scale = "smoke",
    folder: Out = Path("bench_out"),
    workers: Workers = None,
    case: Annotated[list[str] | None, typer.Option(help="Some families, such as logistic. May be repeated.")] = None,
    condition: Annotated[list[str] | None, typer.Option(
        help="Some conditions, such as trained or held_out. May be repeated.")] = None,
    report_only: ReportOnly = False,
) -> None:
    """The network that serves every model: what it loses to per-dataset optimization, in training and beyond.

    \b
    posteria bench universal --scale laptop --case logistic --out bench_out

    Exit codes: 0 done, 1 some cell failed, 2 bad input, 130 interrupted (run the same command to go on).
    """
    with explained_errors():
        from posteria.bench.scales import scale_named
        from posteria.bench.universal_bench import universal_cells
        from posteria.bench.universal_report import write_universal_report

        chosen, workspace = scale_named(scale), _workspace(folder)
        failed = 0 if report_only else _run(universal_cells(chosen, case or [], condition or []), workspace, workers)
        written(write_universal_report(chosen, workspace.store, workspace.root / "reports"))
        _exit_if(failed)


@app.command("alternatives")
def alternatives(
    scale: Scale = "smoke",
    folder: Out = Path("bench_out"),
    workers: Workers = 1,
    case: Annotated[list[str] | None, typer.Option(
        help="Some models, such as logistic_5d. May be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(
        help="Some methods, such as posteria or nuts_numpyro. May be repeated.")] = None,
    report_only: ReportOnly = False,
) -> None:
    """What a user would do otherwise: Laplace, Pathfinder, ADVI and NUTS, by their time to an accurate answer.

    \b
    posteria bench alternatives --scale laptop --case logistic_5d --out bench_out

    Methods whose libraries are missing are left out; the extra alternatives has them. Times are comparable with one
    worker on an idle machine, which is the default.
    Exit codes: 0 done, 1 some cell failed, 2 bad input, 130 interrupted (run the same command to go on).
    """
    with explained_errors():
        from posteria.bench.alternatives_bench import alternatives_cells
        from posteria.bench.alternatives_methods import unavailable
        from posteria.bench.alternatives_report import write_alternatives_report
        from posteria.bench.scales import scale_named

        chosen = scale_named(scale)
        cells, workspace = alternatives_cells(chosen, case or [], method or []), _workspace(folder)
        for name, why in unavailable().items() if not (method or report_only) else ():
            note(f"{name} is left out: {why}")
        failed = 0 if report_only else _run(cells, workspace, workers)
        written(write_alternatives_report(chosen, workspace.store, workspace.root / "reports"))
        _exit_if(failed)


@app.command("conclusions")
def conclusions(scale: Scale = "laptop", folder: Out = Path("bench_out")) -> None:
    """What the results in the folder say of the paper's conclusions (confirmed, refuted or not yet decided), and how
    our best numbers stand to the paper's best."""
    with explained_errors():
        from posteria.bench.conclusions import conclusions_markdown
        from posteria.bench.scales import scale_named
        from posteria.bench.standing import standing_markdown

        workspace = _workspace(folder)
        path = workspace.root / "reports" / f"conclusions_{scale_named(scale).name}.md"
        path.parent.mkdir(exist_ok=True)
        sections = (conclusions_markdown(workspace.store, scale), standing_markdown(workspace.store, scale))
        path.write_text("\n".join(sections), encoding="utf-8")
        written([path])


def _of_methods(cells: Sequence[Cell], methods: Sequence[str]) -> list[Cell]:
    from posteria.errors import InputError

    known = sorted({cell.method_key for cell in cells})
    if unknown := sorted(set(methods) - set(known)):
        raise InputError.of("--method", str(unknown), f"names among {known}")
    return [cell for cell in cells if not methods or cell.method_key in methods]


def _run(cells: Sequence[Cell], workspace: Workspace, workers: int | None) -> int:
    """Run cells, telling of each; the number that failed."""
    from posteria.bench.runner import run_cells

    tally = run_cells(cells, workspace, _workers(workers),
                      lambda text: out().print(text, markup=False, soft_wrap=True))
    out().print(f"{tally.run} cells run, {tally.known} known, {tally.failed} failed")
    return tally.failed


def _exit_if(failed: int) -> None:
    if failed:
        note("cells that failed are tried again by the same command")
        raise typer.Exit(1)


def _workspace(folder: Path) -> Workspace:
    import torch

    from posteria.bench.workspace import Workspace
    from posteria.cli.sources import output_folder

    return Workspace(output_folder(folder), "cuda" if torch.cuda.is_available() else "cpu")


def _workers(workers: int | None) -> int:
    import os

    import torch

    from posteria.errors import InputError

    if workers is not None and workers < 1:
        raise InputError.of("workers", workers, "1 or more")
    if workers is not None:
        return workers
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1
