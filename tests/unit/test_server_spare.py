"""How a process waits for a seat, and when the supervisor starts one that does; no processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from modelrail_server.supervision.frame import encode_frame, read_frame
from modelrail_server.supervision.seat import Parent, Seat
from modelrail_server.supervision.spare import Spare


async def test_a_process_says_that_it_lives_until_it_has_a_seat() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    place: dict[str, Any] = {
        "number": 3, "grpc_address": "a:1", "replacement": True, "orders": {"m": "load"},
    }  # fmt: skip
    later = encode_frame({"method": "load", "arguments": {"subject": "m"}})
    with theirs:
        parent = Parent(pid=os.getpid(), descriptor=theirs.fileno(), heartbeat_seconds=0.001)
        seated = asyncio.create_task(asyncio.to_thread(parent.wait_for_seat))
        try:
            async with asyncio.timeout(10):
                for _ in range(3):
                    assert await read_frame(reader) == {"method": "alive", "arguments": {}}
            writer.write(encode_frame({"method": "seat", "arguments": place}) + later)
            assert await seated == Seat(
                **place, descriptor=theirs.fileno(), heartbeat_seconds=0.001
            )
        finally:
            writer.close()  # a thread that waits still ends with it
            await writer.wait_closed()
        # The event loop that takes the channel over finds what came after the seat.
        assert theirs.recv(1000) == later


def test_a_process_that_waits_ends_with_its_supervisor() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        parent = Parent(pid=os.getpid(), descriptor=theirs.fileno(), heartbeat_seconds=10)
        ours.close()
        with pytest.raises(SystemExit, match="is gone"):
            parent.wait_for_seat()


class Waiting:
    """A process that waits for a seat, without a process."""

    def __init__(self) -> None:
        self.pid = 1
        self.seems_well = True
        self.signals: list[signal.Signals] = []
        self.end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)
        self.end.set_result(-number)

    async def ended(self) -> int:
        return await asyncio.shield(self.end)


class Spares:
    """A spare, and the processes that were started for it."""

    def __init__(self) -> None:
        self.started: list[Waiting] = []
        self.failures = 0
        self.wanted = asyncio.Event()
        self.spare = Spare(self._start, self.wanted)
        self._one_more = asyncio.Condition()

    async def _start(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise OSError("no process left")
        self.started.append(Waiting())
        async with self._one_more:
            self._one_more.notify_all()
        return self.started[-1]

    async def until(self, count: int) -> Waiting:
        async with asyncio.timeout(10), self._one_more:
            await self._one_more.wait_for(lambda: len(self.started) == count)
        return self.started[-1]


def taken_of(spare: Spare) -> object:
    return spare.take()


@asynccontextmanager
async def spares() -> AsyncIterator[Spares]:
    those = Spares()
    keeping = asyncio.create_task(those.spare.keep())
    yield those
    keeping.cancel()
    await asyncio.wait([keeping], timeout=10)
    assert keeping.cancelled()


async def turns() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_spare_is_started_when_all_workers_serve_and_taken_when_it_is_well() -> None:
    async with spares() as those:
        await turns()
        assert not those.started
        those.wanted.set()
        first = await those.until(1)
        first.seems_well = False
        assert those.spare.take() is None
        first.seems_well = True
        those.wanted.clear()
        assert taken_of(those.spare) is first
        assert those.spare.take() is None
        await turns()
        assert len(those.started) == 1  # not before the replacement serves
        those.wanted.set()
        second = await those.until(2)
        assert taken_of(those.spare) is second
    assert not first.signals
    assert not second.signals  # it belongs to the workers now


async def test_a_spare_that_ends_or_cannot_be_started_is_followed_by_another() -> None:
    async with spares() as those:
        those.failures = 1
        those.wanted.set()
        first = await those.until(1)
        first.end.set_result(-signal.SIGKILL)
        second = await those.until(2)
        assert not first.signals
    assert second.signals == [signal.SIGKILL]  # nobody is left that would wait


async def test_spares_that_die_early_are_replaced_later_and_later() -> None:
    with capture_logs() as logs:
        async with spares() as those:
            those.wanted.set()
            for count in (1, 2):
                (await those.until(count)).end.set_result(1)
            await turns()
            assert len(those.started) == 2  # the third one is not started at once
            await those.until(3)
    assert [entry["replaced_in_seconds"] for entry in logs] == [0.0, 0.1]
