"""The `modelrail` command."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from modelrail.cli.commands import (
    bench,
    data,
    demo,
    jobs,
    models,
    predict,
    serve,
    train,
    transfer,
    up,
)
from modelrail.cli.console import say

app = typer.Typer(
    help="From a training set to a served prediction over gRPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"modelrail {importlib.metadata.version('modelrail')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """From a training set to a served prediction over gRPC."""


for _commands in (up, demo, train, transfer, predict, serve, bench):
    app.add_typer(_commands.app)
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
