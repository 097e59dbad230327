"""What the commands write: results to stdout, everything about the way there to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from modelrail.report.visible import on_one_line, visible, visible_json

_PIPE_COLUMNS = 200


def _console(stream: Any, *, stderr: bool) -> Console:
    # A pipe has no width; the assumed 80 columns would break names that scripts look for.
    width = None if stream.isatty() else _PIPE_COLUMNS
    # Nothing that is written here is markup: names, descriptions and answers hold brackets.
    return Console(stderr=stderr, highlight=False, width=width, markup=False, emoji=False)


def stdout() -> Console:
    """Returns the console for results."""
    return _console(sys.stdout, stderr=False)


def stderr() -> Console:
    """Returns the console for progress and errors."""
    return _console(sys.stderr, stderr=True)


def can_draw(console: Console) -> bool:
    """Whether a console writes to a terminal that can take back what stands there.

    `FORCE_COLOR` and its like make a pipe coloured, not a terminal.
    """
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal


def say(text: str, *, style: str | None = None) -> None:
    """Writes one line of results, never wrapped; what it quotes of others steers no terminal."""
    stdout().print(visible(text), style=style, soft_wrap=True)


def note(text: str, *, style: str | None = "dim") -> None:
    """Writes one line about the way to the result, as `say` does."""
    stderr().print(visible(text), style=style, soft_wrap=True)


def cell(text: str, *, style: str = "") -> Text:
    """Returns a text of others as a cell or a heading of a table: one line, without markup."""
    return Text(on_one_line(text), style=style)


def as_json(message: Message) -> dict[str, Any]:
    """Returns a message as the JSON of protobuf, with every field present."""
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def say_json(value: Any) -> None:
    """Writes a value as JSON, for programs."""
    sys.stdout.write(visible_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def say_json_line(value: Any) -> None:
    """Writes a value as one line of JSON, at once, for programs that follow."""
    sys.stdout.write(visible_json(json.dumps(value, ensure_ascii=False)) + "\n")
    sys.stdout.flush()


@contextmanager
def transfer_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar of bytes; yields what to call with bytes done and bytes in all."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    console = stderr()
    is_hidden = not can_draw(console)
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        task = progress.add_task(on_one_line(text), total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows that something of unknown length goes on, with the seconds it has taken."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    console = stderr()
    if not can_draw(console):
        yield
        return
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(on_one_line(text), total=None)
        yield


@contextmanager
def counting(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar of `total` steps; yields what to call with the steps that are done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = stderr()
    is_hidden = not can_draw(console)
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        task = progress.add_task(on_one_line(text), total=total or None)

        def update(done: int) -> None:
            progress.update(task, completed=done)

        yield update
