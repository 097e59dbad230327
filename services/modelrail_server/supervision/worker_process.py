"""One worker, or one that may become it, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from modelrail_server.supervision.channel import Answer, Channel
from modelrail_server.supervision.seat import Parent

__all__ = ["WorkerProcess"]

_log = structlog.get_logger(__name__)

_START_SECONDS = 60.0
_BEATS = 5
"""Heartbeats that may be missed."""


class WorkerProcess:
    """A running process. Made by `start`.

    Attributes:
        number: Which of the workers it is, from 0; None while it has no seat.
        greeted: Set when it is ready for a seat.
        serving: Set when it takes requests.
    """

    def __init__(self, process: asyncio.subprocess.Process, heartbeat_seconds: float) -> None:
        self.number: int | None = None
        self.greeted = asyncio.Event()
        self.serving = asyncio.Event()
        self._process = process
        self._heartbeat_seconds = heartbeat_seconds
        self._missed_beats = 0
        self._channel: Channel | None = None
        self._answer: Answer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls, command: Sequence[str], *, heartbeat_timeout_seconds: float
    ) -> WorkerProcess:
        """Starts a process and listens to it.

        Args:
            command: Program and arguments.
            heartbeat_timeout_seconds: It is killed when it is not heard of for so long.
        """
        heartbeat_seconds = heartbeat_timeout_seconds / _BEATS
        ours, theirs = socket.socketpair()
        with theirs:
            parent = Parent(
                pid=os.getpid(), descriptor=theirs.fileno(), heartbeat_seconds=heartbeat_seconds
            )
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    env=parent.environment(os.environ),
                    pass_fds=(theirs.fileno(),),
                    # Control-C in a terminal is for the supervisor, which tells its workers.
                    process_group=0,
                )
            except BaseException:
                ours.close()
                raise
        worker = cls(process, heartbeat_seconds)
        try:
            await worker._connect(ours)
        except BaseException:  # cancelled: nobody else knows of the process
            ours.close()
            worker.signal(signal.SIGKILL)
            await process.wait()
            raise
        return worker

    async def _connect(self, ours: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        self._channel = Channel(reader, writer, self._serve)
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

    @property
    def seems_well(self) -> bool:
        """Whether nothing says that it is dead or stuck."""
        return not self.channel.closed and self._missed_beats <= 1

    def give_seat(
        self,
        number: int,
        answer: Answer,
        *,
        grpc_address: str,
        replacement: bool,
        orders: Mapping[str, str],
    ) -> None:
        """Makes it a worker. It finds this when it is ready, and no question or order before.

        Args:
            number: Which of the workers it is.
            answer: Answers what the worker asks.
            grpc_address: Where the worker shall listen.
            replacement: Whether siblings may serve already.
            orders: The last order about each subject; it is sent those that are given from now on.
        """
        self.number = number
        self._answer = answer
        seat = {
            "number": number,
            "grpc_address": grpc_address,
            "replacement": replacement,
            "orders": orders,
        }
        self.channel.tell("seat", seat)

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

    async def _serve(self, method: str, arguments: Mapping[str, Any]) -> Any:
        if method == "alive":
            self._missed_beats = 0
            if not self.greeted.is_set():
                self.greeted.set()
                if self.number is None:
                    _log.info("spare ready", pid=self.pid)
            return None
        if self._answer is None:
            raise ValueError(f"a process without a seat calls {method!r}")
        return await self._answer(method, arguments)

    async def _watch(self) -> None:
        """Kills it when its event loop does not turn any more."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self.greeted.wait()
        except TimeoutError:
            _log.error("process did not start", worker=self.number, seconds=_START_SECONDS)
            self.signal(signal.SIGKILL)
            return
        # Beats are counted, not seconds: a supervisor that was stopped itself must not find all of
        # its workers late when it goes on.
        while self._missed_beats <= _BEATS:
            await asyncio.sleep(self._heartbeat_seconds)
            self._missed_beats += 1
        seconds = _BEATS * self._heartbeat_seconds
        if self.number is None:
            _log.error("spare is stuck", pid=self.pid, silent_seconds=seconds)
        else:
            _log.error("worker is stuck", worker=self.number, pid=self.pid, silent_seconds=seconds)
        self.signal(signal.SIGKILL)
