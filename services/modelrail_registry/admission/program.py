"""One run of the examining program: what it prints, what it complains of, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import IO

_COMPLAINTS_BYTES = 1024


class Program:
    """A program without input, in a session of its own; whoever starts it calls `end`.

    For each of its child processes asyncio starts a thread, or opens a descriptor. When there is
    none to be had the child runs on, and nobody has a handle of it.

    Args:
        command: The program and its arguments.
        environment: All variables that it has.
        executor: Waits for its last moment.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], executor: Executor
    ) -> None:
        self._executor = executor
        self._complaints = _Complaints()
        self._transports: list[asyncio.ReadTransport] = []
        self._process = subprocess.Popen(  # noqa: S603 (the service chose the command)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment,
            start_new_session=True,
        )

    @property
    def status(self) -> int | None:
        """Its exit status, minus a signal that ended it, None while it runs."""
        return self._process.returncode

    @property
    def complaints(self) -> str:
        """The last KiB that it wrote to standard error."""
        return self._complaints.last.decode(errors="replace")

    async def answer(self, limit_bytes: int) -> bytes | None:
        """Returns all that it printed when it has ended; None at once when that is too much.

        Args:
            limit_bytes: Size of the longest answer.
        """
        answer = _Answer(limit_bytes)
        output, complaints = self._pipes()
        loop = asyncio.get_running_loop()
        self._transports.append((await loop.connect_read_pipe(lambda: answer, output))[0])
        self._transports.append(
            (await loop.connect_read_pipe(lambda: self._complaints, complaints))[0]
        )
        found = await answer.whole
        if found is not None:
            await self._complaints.ended.wait()
            await loop.run_in_executor(self._executor, self._process.wait)
        return found

    async def end(self) -> None:
        """Ends it, with all that it started, if it still runs."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for transport in self._transports:
            transport.close()
        for pipe in self._pipes()[len(self._transports) :]:
            pipe.close()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._process.wait)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        output, complaints = self._process.stdout, self._process.stderr
        assert output is not None  # noqa: S101 (they were asked for as pipes)
        assert complaints is not None  # noqa: S101
        return output, complaints


class _Answer(asyncio.Protocol):
    """Keeps an output; None when it is longer than the limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.whole: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._limit_bytes = limit_bytes
        self._bytes = bytearray()

    def data_received(self, data: bytes) -> None:
        if self.whole.done():
            return
        self._bytes += data
        if len(self._bytes) > self._limit_bytes:
            self.whole.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.whole.done():
            self.whole.set_result(bytes(self._bytes))


class _Complaints(asyncio.Protocol):
    """Keeps the end of an output."""

    def __init__(self) -> None:
        self.last = b""
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.last = (self.last + data)[-_COMPLAINTS_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
