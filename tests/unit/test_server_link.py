"""What a worker says of itself arrives, also beside metrics that fill the way to its supervisor."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modelrail_server.application import Runtime
from modelrail_server.supervision.channel import Channel
from modelrail_server.supervision.link import Link
from modelrail_server.supervision.seat import Seat


class ManyModels(Collector):
    """Metrics of several MiB, more than a channel keeps unsent."""

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("waiting", "Waiting", labels=["model"])
        for number in range(4096):
            family.add_metric([f"{number:01000}"], 1)
        return [family]


class Counting:
    """Stands in for what a service answers of its counts."""

    def __init__(self) -> None:
        self.asked = self.told = 0

    async def answer(self, method: str, arguments: Mapping[str, Any]) -> Any:
        if method == "counts_told":
            self.told += 1
            return None
        assert method == "changed_counts"
        self.asked += 1
        return [[["a", "1"], {"count": self.asked}]]


class Supervisor:
    """The other end: it reads only when it is told to."""

    def __init__(self, channel: Channel, heard: asyncio.Queue[tuple[str, Any]]) -> None:
        self._channel = channel
        self._heard = heard
        self.reading: asyncio.Task[None] | None = None

    def read(self) -> None:
        self.reading = asyncio.create_task(self._channel.run())

    async def hears(self) -> tuple[str, Any]:
        """The next message; of metrics only that they came."""
        async with asyncio.timeout(20):
            method, arguments = await self._heard.get()
        return (method, None) if method == "metrics" else (method, arguments)


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, Supervisor]]:
    """A worker with a socket to a supervisor that does not read yet."""
    ours, theirs = socket.socketpair()
    registry, heard = CollectorRegistry(), asyncio.Queue[tuple[str, Any]]()
    registry.register(ManyModels())

    async def hear(method: str, arguments: Mapping[str, Any]) -> None:
        heard.put_nowait((method, dict(arguments)))

    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    supervisor = Supervisor(Channel(reader, writer, hear), heard)
    seat = Seat(
        number=0,
        grpc_address="",
        replacement=False,
        orders={},
        descriptor=ours.detach(),
        heartbeat_seconds=1.0,
    )
    link = Link(seat, registry, Runtime().health)
    channel = await link.open()
    try:
        yield link, supervisor
    finally:
        if supervisor.reading is None:
            supervisor.read()
        channel.close()
        assert supervisor.reading is not None
        await supervisor.reading


def counts(number: int) -> tuple[str, Any]:
    return "counts", {"rows": [[["a", "1"], {"count": number}]]}


async def test_counts_are_not_lost_beside_large_metrics() -> None:
    counting = Counting()
    async with linked() as (link, supervisor):
        link.attach(counting.answer)
        await link.report_once()
        await link.report_once()  # the metrics of the first fill the way
        assert (counting.asked, counting.told) == (2, 1)
        supervisor.read()
        assert await supervisor.hears() == counts(1)
        assert await supervisor.hears() == ("metrics", None)
        await link.report_once()
        assert await supervisor.hears() == counts(3)
        assert counting.told == 2


async def test_that_a_worker_serves_and_which_parts_is_not_lost_behind_large_metrics() -> None:
    async with linked() as (link, supervisor):
        await link.report_once()
        link.parts.set("infer/a", True)
        link.serving()
        supervisor.read()
        assert await supervisor.hears() == ("metrics", None)
        assert await supervisor.hears() == ("part", {"name": "infer/a", "serving": True})
        assert await supervisor.hears() == ("serving", {})
