"""The worker's end of the control channel."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from modelrail_server.observability.exposition import render
from modelrail_server.supervision.channel import Answer, Channel
from modelrail_server.supervision.error_document import error_of
from modelrail_server.supervision.parts import PartsOfWorker, PartsSink
from modelrail_server.supervision.seat import Seat

__all__ = ["Link", "open_link"]

_log = structlog.get_logger(__name__)

_REPORT_SECONDS = 5.0


class Link:
    """What a worker knows of its siblings, and how it asks them. Made by `open_link`.

    Attributes:
        seat: The worker's place.
        parts: Where this worker says which parts it serves.
    """

    def __init__(self, seat: Seat, metrics: CollectorRegistry, health: PartsSink) -> None:
        self.seat = seat
        self.parts = PartsOfWorker(health, self._say)
        self._metrics = metrics
        self._rendering = asyncio.Lock()
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._channel: Channel | None = None

    def attach(self, answer: Answer) -> None:
        """Answers the siblings' questions and orders from now on; until then they wait."""
        self._answer.set_result(answer)

    async def ask_all(
        self, method: str, arguments: Mapping[str, Any], *, timeout_seconds: float
    ) -> list[Any]:
        """Returns the answers of all workers that serve, this one included.

        A worker that does not answer in time is left out. An answer that is an error is an
        exception in the list.

        Raises:
            ServiceError: Too many calls wait.
            ConnectionError: The supervisor is gone.
            TimeoutError: The supervisor did not answer.
        """
        answers = await self._supervisor().call(
            "ask_all",
            {"method": method, "arguments": arguments, "timeout_seconds": timeout_seconds},
            timeout_seconds=timeout_seconds + 1,
        )
        return [error_of(a["error"]) if "error" in a else a["result"] for a in answers]

    async def ask_counts(self, about: Sequence[str], *, timeout_seconds: float) -> list[Any]:
        """Returns what all workers counted, of the keys that begin with `about`.

        Of a worker that does not answer in time or has ended, what it said last is counted.

        Raises:
            ServiceError: Too many calls wait.
            ConnectionError: The supervisor is gone.
            TimeoutError: The supervisor did not answer.
        """
        rows: list[Any] = await self._supervisor().call(
            "ask_counts",
            {"about": about, "timeout_seconds": timeout_seconds},
            timeout_seconds=timeout_seconds + 1,
        )
        return rows

    async def order(self, subject: str, method: str, *, timeout_seconds: float) -> None:
        """Has all workers do something about a subject, also those that come later.

        Raises:
            ServiceError: The first error of a worker; Unavailable when not all were done in time:
                they go on.
            InternalFailure: A worker failed by a defect.
            ConnectionError: The supervisor is gone.
            TimeoutError: The supervisor did not answer.
        """
        await self._supervisor().call(
            "order",
            {"subject": subject, "method": method, "timeout_seconds": timeout_seconds},
            timeout_seconds=timeout_seconds + 1,
        )

    def serving(self) -> None:
        """Says that this worker takes requests."""
        self._supervisor().tell("serving", {})

    async def open(self) -> Channel:
        """Connects with the supervisor; the channel is to be run by the caller."""
        # The socket object takes the descriptor over.
        ours = socket.socket(fileno=self.seat.descriptor)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        self._channel = Channel(reader, writer, self._serve)
        return self._channel

    async def beat(self) -> None:
        """Says again and again that the event loop of this process turns."""
        while True:
            self._supervisor().tell("alive", {})
            await asyncio.sleep(self.seat.heartbeat_seconds)

    async def report(self) -> None:
        """Reports metrics and counts from time to time: what a worker counted must outlive it."""
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            await self.report_once()

    async def report_once(self) -> None:
        """Reports metrics and counts, as far as the supervisor keeps up with reading."""
        # First the counts: a large text of metrics would keep them out every time.
        if self._answer.done():
            answer = self._answer.result()
            rows = await answer("changed_counts", {})
            if self._supervisor().offer("counts", {"rows": rows}):
                await answer("counts_told", {})
        self._supervisor().offer("metrics", {"text": await self._text()})

    async def _serve(self, method: str, arguments: Mapping[str, Any]) -> Any:
        if method == "metrics":
            return await self._text()
        if method == "parts":
            self.parts.told(arguments["states"])
            return None
        answer = await asyncio.shield(self._answer)
        return await answer(method, arguments)

    def _say(self, name: str, serving: bool | None) -> None:
        self._supervisor().tell("part", {"name": name, "serving": serving})

    async def _text(self) -> str:
        # Like any other scrape, off the event loop; one at a time, as the supervisor takes what
        # comes last for the present.
        async with self._rendering:
            return (await asyncio.to_thread(render, self._metrics)).decode()

    def _supervisor(self) -> Channel:
        if self._channel is None:
            raise ConnectionError("the supervisor is not connected")
        return self._channel


@asynccontextmanager
async def open_link(
    seat: Seat, metrics: CollectorRegistry, health: PartsSink
) -> AsyncIterator[Link]:
    """Connects a worker with its supervisor for the length of the context.

    When the supervisor ends, this process ends at once: nobody would replace it or stop it.

    Args:
        seat: The worker's place.
        metrics: What to report.
        health: What callers are told of the parts that all workers serve.
    """
    link = Link(seat, metrics, health)
    channel = await link.open()
    running = asyncio.create_task(_end_with(channel))
    tasks = [running, asyncio.create_task(link.beat()), asyncio.create_task(link.report())]
    try:
        yield link
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _end_with(channel: Channel) -> None:
    await channel.run()
    _log.error("the supervisor is gone")
    os._exit(1)
