"""Orders to all workers: one after the other, and callers who come again pile up none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from modelrail_server.errors import NotFound, Unavailable
from modelrail_server.supervision.siblings import Siblings
from modelrail_server.supervision.worker_process import WorkerProcess


class Worker:
    """Has done what was ordered when the test says so."""

    def __init__(self) -> None:
        self.number = 0
        self.channel = self
        self.got: list[str] = []
        self.done: asyncio.Queue[Exception | None] = asyncio.Queue()

    async def call(
        self, method: str, arguments: Mapping[str, Any], *, timeout_seconds: float | None
    ) -> Any:
        assert arguments == {"subject": "a"}
        self.got.append(method)
        async with asyncio.timeout(timeout_seconds):
            if error := await self.done.get():
                raise error


def siblings_of(worker: Worker, *followed: Callable[[str, str], None]) -> Siblings:
    siblings = Siblings(*followed)
    siblings.workers = {0: cast(WorkerProcess, worker)}
    return siblings


async def turns() -> None:
    """Lets everything go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def ordered(siblings: Siblings, method: str, times: int = 1) -> list[asyncio.Task[None]]:
    orders = []
    for _ in range(times):
        orders.append(asyncio.create_task(siblings.order("a", method, timeout_seconds=20)))
        await turns()
    return orders


async def test_callers_who_come_again_wait_for_one_order_that_begins_after_they_came() -> None:
    worker = Worker()
    siblings = siblings_of(worker)
    orders = await ordered(siblings, "load", times=30)
    assert worker.got == ["load"]
    for _ in range(2):
        worker.done.put_nowait(None)
    async with asyncio.timeout(20):
        await asyncio.gather(*orders)
    # The first may have looked at older files than the others mean: they share the second.
    assert worker.got == ["load", "load"]


async def test_all_who_wait_for_an_order_are_told_its_error() -> None:
    worker = Worker()
    siblings = siblings_of(worker)
    first, *others = await ordered(siblings, "load", times=3)
    worker.done.put_nowait(None)
    worker.done.put_nowait(NotFound("no such model"))
    async with asyncio.timeout(20):
        await first
        for other in others:
            with pytest.raises(NotFound, match="no such model"):
                await other
    assert siblings.orders == {"a": "load"}


async def test_orders_of_two_kinds_keep_their_turns() -> None:
    worker = Worker()
    siblings = siblings_of(worker)
    methods = ("load", "unload", "load", "load", "unload")
    orders = [order for method in methods for order in await ordered(siblings, method)]
    for _ in range(4):
        worker.done.put_nowait(None)
    async with asyncio.timeout(20):
        await asyncio.gather(*orders)
    assert worker.got == ["load", "unload", "load", "unload"]
    assert siblings.orders == {"a": "unload"}


async def test_a_worker_gets_no_order_while_it_is_busy_with_one_whose_callers_have_left() -> None:
    worker = Worker()
    siblings = siblings_of(worker)
    (leaving,) = await ordered(siblings, "load")
    leaving.cancel()
    for _ in range(30):
        with pytest.raises(Unavailable, match="not every worker was done in time") as slow:
            await siblings.order("a", "load", timeout_seconds=0)
        assert slow.value.reason == "WORKER_SLOW"
    await turns()
    assert worker.got == ["load"]
    for _ in range(2):
        worker.done.put_nowait(None)
    await turns()
    assert worker.got == ["load", "load"]


async def test_orders_that_are_under_way_when_the_event_loop_ends_end_with_it() -> None:
    """The one that waits ends first, and then the one before it, which is the last no more."""
    failures: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context)
        )
        worker = Worker()
        await ordered(siblings_of(worker), "load", times=2)
        assert worker.got == ["load"]

    # On a thread of its own: here it would take the loop of the tests away.
    await asyncio.to_thread(asyncio.run, main())
    assert failures == []


async def test_what_follows_an_order_is_done_once_and_before_the_next_begins() -> None:
    worker = Worker()
    seen: list[tuple[str, str, list[str]]] = []
    siblings = siblings_of(
        worker, lambda subject, method: seen.append((subject, method, [*worker.got]))
    )
    orders = [
        asyncio.create_task(siblings.order("a", method, timeout_seconds=20))
        for method in ("unload", "unload", "load")
    ]
    for _ in range(2):
        worker.done.put_nowait(None)
    async with asyncio.timeout(20):
        await asyncio.gather(*orders)
    assert seen == [("a", "unload", ["unload"]), ("a", "load", ["unload", "load"])]
