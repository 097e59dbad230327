"""One worker, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from modelrail_server.supervision.channel import Channel
from modelrail_server.supervision.seat import Seat

__all__ = ["WorkerProcess"]

_log = structlog.get_logger(__name__)

_START_SECONDS = 60.0
_BEATS = 5
"""Heartbeats that may be missed."""

Answer = Callable[["WorkerProcess", str, Mapping[str, Any]], Awaitable[Any]]


class WorkerProcess:
    """A running worker. Made by `start`.

    Attributes:
        number: Which of the workers it is, from 0.
        greeted: Set when it has connected.
        serving: Set when it takes requests.
    """

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, heartbeat_seconds: float
    ) -> None:
        self.number = number
        self.greeted = asyncio.Event()
        self.serving = asyncio.Event()
        self._process = process
        self._heartbeat_seconds = heartbeat_seconds
        self._missed_beats = 0
        self._channel: Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        number: int,
        command: Sequence[str],
        *,
        grpc_address: str,
        heartbeat_timeout_seconds: float,
        answer: Answer,
    ) -> WorkerProcess:
        """Starts a process and listens to it.

        Args:
            number: Which of the workers it is.
            command: Program and arguments.
            grpc_address: Where the worker shall listen.
            heartbeat_timeout_seconds: It is killed when it is not heard of for so long.
            answer: Answers what the worker asks.
        """
        heartbeat_seconds = heartbeat_timeout_seconds / _BEATS
        ours, theirs = socket.socketpair()
        with theirs:
            seat = Seat(
                number=number,
                supervisor_pid=os.getpid(),
                descriptor=theirs.fileno(),
                grpc_address=grpc_address,
                heartbeat_seconds=heartbeat_seconds,
            )
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    env=seat.environment(os.environ),
                    pass_fds=(theirs.fileno(),),
                    # Control-C in a terminal is for the supervisor, which tells its workers.
                    process_group=0,
                )
            except BaseException:
                ours.close()
                raise
        worker = cls(number, process, heartbeat_seconds)
        await worker._connect(ours, answer)
        return worker

    async def _connect(self, ours: socket.socket, answer: Answer) -> None:
        async def answer_this(method: str, arguments: Mapping[str, Any]) -> Any:
            return await answer(self, method, arguments)

        reader, writer = await asyncio.open_unix_connection(sock=ours)
        self._channel = Channel(reader, writer, answer_this)
        self._tasks = [
            asyncio.create_task(self._channel.run()),
            asyncio.create_task(self._watch()),
        ]

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def channel(self) -> Channel:
        """The connection with it."""
        if self._channel is None:
            raise ConnectionError("the worker is not connected")
        return self._channel

    def alive(self) -> None:
        """Notes a heartbeat."""
        self._missed_beats = 0

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Waits for its end and lets go of it; returns the exit status, negative after a signal."""
        status = await self._process.wait()
        self.serving.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return status

    async def _watch(self) -> None:
        """Kills it when its event loop does not turn any more."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self.greeted.wait()
        except TimeoutError:
            _log.error("worker did not start", worker=self.number, seconds=_START_SECONDS)
            self.signal(signal.SIGKILL)
            return
        # Beats are counted, not seconds: a supervisor that was stopped itself must not find all of
        # its workers late when it goes on.
        while self._missed_beats <= _BEATS:
            await asyncio.sleep(self._heartbeat_seconds)
            self._missed_beats += 1
        seconds = _BEATS * self._heartbeat_seconds
        _log.error("worker is stuck", worker=self.number, pid=self.pid, silent_seconds=seconds)
        self.signal(signal.SIGKILL)
