"""One process more than there are workers: it has imported everything, and waits for a seat.

A process that is started when a worker has died spends most of a second, and more on busy CPUs,
with Python and its imports before it can load a model. The spare has that behind it. It loads no
model, listens nowhere and is no worker.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import structlog

from modelrail_server.supervision.restarts import Restarts
from modelrail_server.supervision.worker_process import WorkerProcess

__all__ = ["Spare"]

_log = structlog.get_logger(__name__)


class Spare:
    """Keeps one such process. For the event loop's thread only.

    Args:
        start: Starts a process.
        wanted: Set while a spare may be started: while the workers do not need the CPUs to start.
    """

    def __init__(
        self, start: Callable[[], Awaitable[WorkerProcess]], wanted: asyncio.Event
    ) -> None:
        self._start = start
        self._wanted = wanted
        self._process: WorkerProcess | None = None
        self._taken = asyncio.Event()

    def take(self) -> WorkerProcess | None:
        """Returns the spare for a seat; None while there is none, or while it may be stuck.

        One that still starts is ahead of any that would be started now.
        """
        process = self._process
        if process is None or not process.seems_well:
            return None
        self._process = None
        self._taken.set()
        return process

    async def keep(self) -> None:
        """Starts one after the other until cancelled, and then ends the one that is there."""
        restarts = Restarts()
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            began = loop.time()
            try:
                process = await self._start()
            except OSError as error:  # for now there is no process, memory or descriptor left
                _log.error("spare not started", reason=str(error))
                await asyncio.sleep(max(0.1, restarts.delay_seconds(0.0)))
                continue
            status = await self._until_taken_or_ended(process)
            if status is None:
                continue
            lived_seconds = loop.time() - began
            delay_seconds = restarts.delay_seconds(lived_seconds)
            _log.error(
                "spare ended",
                pid=process.pid,
                status=status,
                lived_seconds=round(lived_seconds, 1),
                replaced_in_seconds=delay_seconds,
            )
            await asyncio.sleep(delay_seconds)

    async def _until_taken_or_ended(self, process: WorkerProcess) -> int | None:
        """Returns the exit status of a spare that ended; None when it got a seat."""
        self._process = process
        self._taken.clear()
        ended = asyncio.create_task(process.ended())
        taken = asyncio.create_task(self._taken.wait())
        try:
            await asyncio.wait({ended, taken}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._taken.is_set() else ended.result()
        finally:
            taken.cancel()
            if self._taken.is_set():
                ended.cancel()
            else:
                self._process = None
                if not ended.done():  # it holds nothing that could be lost
                    process.signal(signal.SIGKILL)
                    await ended
