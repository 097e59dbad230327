"""How a coroutine becomes a command: shared options, signals, and errors in one line."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import grpc
import typer

from modelrail.cli.console import note
from modelrail.cli.session import Session, UsageError
from modelrail.client.errors import ModelrailError, Unavailable
from modelrail.names import InvalidName
from modelrail.tensor import TensorError

_P = ParamSpec("_P")

Command = Callable[Concatenate[Session, _P], Coroutine[Any, Any, None]]

_DataDir = Annotated[
    Path,
    typer.Option("--data-dir", help="Folder of the services' data, where `up` leaves addresses."),
]
_ApiKeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", help="File with the key to send.", exists=True, dir_okay=False),
]
_CaCertificate = Annotated[
    Path | None,
    typer.Option(
        "--ca-certificate",
        help="PEM file with the authority of the servers' certificates; turns TLS on.",
        exists=True,
        dir_okay=False,
    ),
]


class Failure(Exception):
    """Something went wrong in a way that the message explains to the user.

    Args:
        message: What went wrong.
        status: Exit status.
    """

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def _address_option(service: str) -> Any:
    return Annotated[
        str | None,
        typer.Option(
            f"--{service}", metavar="HOST:PORT", help=f"The {service} service to talk to."
        ),
    ]


def command(
    app: typer.Typer, name: str, *services: str, data_dir: bool = True
) -> Callable[[Command[_P]], Command[_P]]:
    """Adds a coroutine function as a command of `app`.

    The function's first argument is the session; its other arguments are options and arguments of
    the command, after the usual rules of typer.

    Args:
        app: The command group.
        name: Name of the command.
        services: Services that the command talks to; each gets an address option.
        data_dir: Whether the command looks at the data directory.
    """

    def add(function: Command[_P]) -> Command[_P]:
        own = inspect.signature(function, eval_str=True)
        shared: dict[str, tuple[Any, Any]] = {
            service: (_address_option(service), None) for service in services
        }
        if services:
            shared["api_key_file"] = (_ApiKeyFile, None)
            shared["ca_certificate"] = (_CaCertificate, None)
        if data_dir:
            shared["data_dir"] = (_DataDir, Path(".modelrail"))

        @functools.wraps(function)
        def run(**given: Any) -> None:
            common = {key: given.pop(key) for key in shared}
            addresses = {
                service: address
                for service in services
                if (address := common.pop(service)) is not None
            }
            session = Session(addresses=addresses, **common)
            raise typer.Exit(execute(functools.partial(function, session, **given)))

        parameters = [
            *list(own.parameters.values())[1:],
            *(
                inspect.Parameter(
                    key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
                )
                for key, (annotation, default) in shared.items()
            ),
        ]
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters
        ]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name)(run)
        return function

    return add


def execute(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Runs a command to its end and returns the exit status; errors become lines on stderr."""
    try:
        interrupted_by = asyncio.run(_interruptible(main()))
    except ModelrailError as error:
        show_error(error)
        return 1
    except (Failure, InvalidName, TensorError) as error:
        note(f"error: {error}", style="red")
        return error.status if isinstance(error, Failure) else 1
    except UsageError as error:
        note(f"error: {error}", style="red")
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        note(f"error: {where}{error.strerror or error}", style="red")
        return 1
    except Exception as error:
        if os.environ.get("MODELRAIL_TRACEBACK"):
            raise
        note(
            f"error: {type(error).__name__}: {error} (a defect: MODELRAIL_TRACEBACK=1 shows where)",
            style="red",
        )
        return 1
    return 0 if interrupted_by is None else 128 + interrupted_by


async def _interruptible(main: Coroutine[Any, Any, None]) -> int | None:
    """Runs `main`, cancelled by a signal; returns the signal, if one ended it.

    The first signal cancels, so that every `finally` cleans up; a second one cancels the cleaning
    up where it waits, so that it goes on without patience.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main)
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    return received[0] if received else None


def show_error(error: ModelrailError) -> None:
    """Writes an error of a service: one red line, then the fields that are wrong."""
    message = error.message
    wrong = [f"{v.field}: {v.description}" if v.field else v.description for v in error.violations]
    if all(line in message for line in wrong):
        # The message is the list of them already; a line each reads better than one long line.
        if len(wrong) > 1:
            message = f"{len(wrong)} fields are wrong"
        else:
            wrong = []
    note(f"error: {error.status.name}: {message}", style="red")
    for line in wrong:
        note(f"  {line}", style="red")
    if isinstance(error, Unavailable) and _is_connection_failure(error):
        note("  is it running? `modelrail up` starts all services", style="yellow")
    if error.status is grpc.StatusCode.INTERNAL and error.request_id:
        note(f"  the server's log has more under request id {error.request_id}", style="yellow")


def _is_connection_failure(error: Unavailable) -> bool:
    # Errors of our servers carry a reason; gRPC's own, such as a refused connection, do not.
    return not error.reason
