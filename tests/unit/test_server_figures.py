"""What the supervisor makes of what workers say, in whatever order they say it; no processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping
from typing import Any, cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from modelrail_server.application import Runtime
from modelrail_server.supervision.figures import Figures
from modelrail_server.supervision.link import Link
from modelrail_server.supervision.seat import Seat
from modelrail_server.supervision.siblings import Siblings
from modelrail_server.supervision.worker_process import WorkerProcess

KEY = ["a", "1"]


class Worker:
    """Answers a question when it is told to."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.serving = asyncio.Event()
        self.serving.set()
        self.channel = self
        self.asked, self.answered = asyncio.Event(), asyncio.Event()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def call(
        self, method: str, arguments: Mapping[str, Any], *, timeout_seconds: float
    ) -> Any:
        self.asked.set()
        async with asyncio.timeout(timeout_seconds):
            answer = await self.answers.get()
        self.answered.set()
        return answer

    def seated(self) -> WorkerProcess:
        return cast(WorkerProcess, self)


def calls(count: int) -> str:
    return f"# HELP calls_total Calls\n# TYPE calls_total counter\ncalls_total {count}\n"


async def total_of(figures: Figures, *, timeout_seconds: float = 10) -> str:
    (family,) = await figures.metrics(timeout_seconds=timeout_seconds)
    return "".join(family.text()).splitlines()[-1]


async def test_what_a_worker_says_when_another_has_its_place_is_counted_once() -> None:
    siblings = Siblings()
    figures = Figures(siblings)
    first, second = Worker(), Worker()
    siblings.workers[0] = first.seated()
    figures.take_metrics(first.seated(), calls(40))
    figures.take_counts(first.seated(), [(KEY, {"count": 40})])
    metrics = asyncio.create_task(total_of(figures))
    counts = asyncio.create_task(figures.counts([], timeout_seconds=10))
    async with asyncio.timeout(10):
        await first.asked.wait()
        siblings.workers[0] = second.seated()
        figures.retire(0)
        figures.take_metrics(second.seated(), calls(2))
        figures.take_counts(second.seated(), [(KEY, {"count": 2})])
        for answer in (calls(41), [(KEY, {"count": 41})]):
            first.answers.put_nowait(answer)
        assert await metrics == "calls_total 42"
        assert await counts == [(("a", "1"), {"count": 42})]


async def test_an_answer_counts_when_it_comes_not_when_all_have_answered() -> None:
    siblings = Siblings()
    figures = Figures(siblings)
    quick, slow = Worker(0), Worker(1)
    siblings.workers = {0: quick.seated(), 1: slow.seated()}
    figures.take_metrics(slow.seated(), calls(1))
    scrape = asyncio.create_task(total_of(figures))
    async with asyncio.timeout(10):
        await slow.asked.wait()
        quick.answers.put_nowait(calls(5))
        await quick.answered.wait()
        figures.take_metrics(quick.seated(), calls(7))
        slow.answers.put_nowait(calls(1))
        assert await scrape == "calls_total 8"


async def test_of_a_silent_worker_the_last_figures_are_shown() -> None:
    siblings = Siblings()
    figures = Figures(siblings)
    silent = Worker()
    siblings.workers = {0: silent.seated()}
    figures.take_metrics(silent.seated(), calls(3))
    assert await total_of(figures, timeout_seconds=0) == "calls_total 3"


class Gated(Collector):
    """Counts how often it was looked at; the first look waits for the gate."""

    def __init__(self) -> None:
        self.looks = 0
        self.looked, self.gate = threading.Event(), threading.Event()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        self.looks += 1
        look = self.looks
        self.looked.set()
        if look == 1:
            self.gate.wait(10)
        return [CounterMetricFamily("looks", "Looks", value=look)]


async def test_a_worker_says_no_older_figures_after_younger_ones() -> None:
    registry, gated = CollectorRegistry(), Gated()
    registry.register(gated)
    seat = Seat(
        number=0,
        grpc_address="",
        replacement=False,
        orders={},
        descriptor=-1,
        heartbeat_seconds=1.0,
    )
    link = Link(seat, registry, Runtime().health)
    first = asyncio.create_task(link._serve("metrics", {}))
    await asyncio.to_thread(gated.looked.wait, 10)
    second = asyncio.create_task(link._serve("metrics", {}))
    await asyncio.to_thread(lambda: None)
    assert gated.looks == 1
    gated.gate.set()
    async with asyncio.timeout(10):
        assert "looks_total 1.0" in await first
        assert "looks_total 2.0" in await second
