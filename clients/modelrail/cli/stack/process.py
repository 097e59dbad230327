"""One service as a child process: started, restarted on its old address, stopped for certain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelrail.cli.command import Failure
from modelrail.cli.session import running_addresses

_POLL_SECONDS = 0.02
_LOG_TAIL_BYTES = 16 * 1024
_LAST_WORDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a running service listens."""

    grpc: str
    metrics: str


class ServiceProcess:
    """A service that runs as `python -m MODULE`.

    Args:
        service: Short name, such as `registry`.
        arguments: Command line after the module.
        address_file: Where the service writes its addresses once it serves.
        log: File that its output is appended to.
    """

    def __init__(
        self, service: str, arguments: Sequence[str], *, address_file: Path, log: Path
    ) -> None:
        self.service = service
        self.log = log
        self.addresses: Addresses | None = None
        self._arguments = list(arguments)
        self._address_file = address_file
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id while the process has not been awaited."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def start(self, *, grpc_address: str, metrics_address: str) -> Addresses:
        """Starts the process and waits until it serves.

        A restart keeps the addresses of the first start.

        Raises:
            Failure: The process ended before it served; the message has its last words.
        """
        if self.addresses is not None:
            grpc_address, metrics_address = self.addresses.grpc, self.addresses.metrics
        self._address_file.unlink(missing_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "modelrail.cli.stack.guard",
                str(os.getpid()),
                f"modelrail_{self.service}",
                *self._arguments,
                f"--grpc-address={grpc_address}",
                f"--metrics-address={metrics_address}",
                f"--address-file={self._address_file}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for the command line, which then stops the services in
                # order.
                start_new_session=True,
            )
        self.addresses = await self._wait_until_serving(self._process)
        return self.addresses

    async def _wait_until_serving(self, process: asyncio.subprocess.Process) -> Addresses:
        exited = asyncio.ensure_future(process.wait())
        try:
            while True:
                content = running_addresses(self._address_file)
                if content and content["pid"] == str(process.pid):
                    return Addresses(
                        grpc=content["grpc_address"], metrics=content["metrics_address"]
                    )
                # Another process writes the file, and only its exit can be awaited.
                await asyncio.wait([exited], timeout=_POLL_SECONDS)
                if exited.done():
                    raise Failure(
                        f"{self.service} ended with status {process.returncode} before it was"
                        f" ready:\n{last_words(self.log)}"
                    )
        finally:
            exited.cancel()

    async def wait(self) -> int:
        """Waits for the end of the process and returns its status."""
        if self._process is None:
            raise ValueError(f"{self.service} was not started")
        return await self._process.wait()

    async def stop(self, grace_seconds: float) -> None:
        """Asks the process to end, and kills it when it does not; returns when it is gone."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.signal(signal.SIGTERM)
        exited = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait([exited], timeout=grace_seconds)
        finally:
            # Also when this wait is cancelled: the user has no patience left, and nothing may stay.
            if not exited.done():
                self.signal(signal.SIGKILL)
            await asyncio.shield(exited)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            # Without a wait in between asyncio may not have noticed the end yet.
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                return


def last_words(log: Path) -> str:
    """Returns the last lines of a service's log in a form for people."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    readable = [_readable(line) for line in lines if line.strip()]
    return "\n".join(f"  {line}" for line in readable[-_LAST_WORDS:])


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict):
        return line
    details = " ".join(
        f"{key}={value}"
        for key, value in entry.items()
        if key not in {"event", "level", "timestamp", "service", "exception", "logger"}
    )
    return f"{entry.get('event', '')} {details}".strip()
