"""Command line: parse, configure, call the library. Heavy imports wait until a command runs."""

from __future__ import annotations

import typer

from posteria.cli import bench
from posteria.cli.evaluate import evaluate
from posteria.cli.infer import infer
from posteria.cli.listing import list_parts
from posteria.cli.train import train

_HELP = """Amortized Bayesian inference: train an estimator once, then get the posterior of any dataset at once.

\b
[bold]Start with a shipped estimator and a table of yours[/bold]
posteria infer linear_regression houses.csv --target price --out out

\b
[bold]Or train your own, see how good it is, and use it[/bold]
posteria train --model linear_regression --features 2 --minutes 5 \\
    --out run
posteria evaluate run --out out
posteria infer run data.csv --target y --out out
"""
_EXIT_CODES = "Exit codes: 0 done, 1 unexpected failure, 2 bad input, 3 reserved (a posterior not to be trusted), " \
    "130 interrupted."

app = typer.Typer(name="posteria", help=_HELP, epilog=_EXIT_CODES, no_args_is_help=True, rich_markup_mode="rich",
                  pretty_exceptions_enable=False, add_completion=False)
app.command("train")(train)
app.command("infer")(infer)
app.command("evaluate")(evaluate)
app.command("list")(list_parts)
app.add_typer(bench.app)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from posteria import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the ``posteria`` command."""
    app()
