"""What the statistics count of requests, whatever becomes of them."""

from __future__ import annotations

import asyncio
import errno
import threading
import time

import pytest

from modelrail_inference.dataplane import DataPlane
from modelrail_inference.model.batching import (
    QueuePolicy,
)
from modelrail_inference.request.call import Call
from modelrail_inference.scheduling import scheduler
from modelrail_inference.statistics import Failure, Refusal, Statistics
from modelrail_inference.threads.limit import ThreadLimitReached
from modelrail_server.errors import (
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from tests.unit.scheduling_house import (
    House,
    Houses,
    Session,
    began,
    declared,
    held,
    queued,
)


def counted(house: House) -> Statistics:
    return next(house.repository.serving()).statistics


async def test_refusals_are_counted_by_their_reason(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    house = await houses.make({"m": session}, max_model_items=2, max_bytes=60)  # 8 bytes a row

    def start_no_thread(thread: threading.Thread) -> None:
        raise ThreadLimitReached(errno.EAGAIN, "no thread")

    with monkeypatch.context() as limited:
        limited.setattr(scheduler, "start_thread", start_no_thread)
        with pytest.raises(Unavailable, match="no thread"):
            await house.ask(0.0)
    with monkeypatch.context() as limited:
        limited.setattr(
            house,
            "plane",
            DataPlane(house.repository, house.scheduler, house.unread, max_reply_bytes=9),
        )
        with pytest.raises(ResourceExhausted, match="a reply of at most"):
            await house.ask(0.0)
    unread = house.unread.of_call("")
    unread.hold(1 << 20)
    with pytest.raises(ResourceExhausted, match="wait to be read"):
        await house.ask(0.0)
    unread.close()
    await began(session)
    version = house.repository.find("m", "1")
    assert version.serving is not None
    version.serving.lane = house.scheduler.open_lane(version.serving.model)
    version.serving.lane.run_times.add((), 1, 10.0)  # what ten seconds of running would have taught
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks.append(house.ask(1.0, 1.0, 1.0))
        await queued(house, 1)
        with pytest.raises(ResourceExhausted):
            await house.ask(2.0, seconds=1.0)
        tasks.append(house.ask(2.0))
        await queued(house, 2)
        for rows in (1, 3, 8):
            with pytest.raises(ServiceError):
                await house.ask(*[3.0] * rows)
    await asyncio.gather(*tasks)
    house.scheduler.close()
    with pytest.raises(Unavailable, match="Server exiting"):
        await house.ask(4.0)
    statistics = counted(house)
    assert statistics.refusals == dict.fromkeys(Refusal, 1)
    assert statistics.failures[Failure.REJECTED] == statistics.fail.count == len(Refusal)


async def test_time_that_runs_out_in_the_queue_is_told_from_callers_who_leave(
    houses: Houses,
) -> None:
    session = Session()
    house = await houses.make(
        {"m": session},
        settings=declared(policy=QueuePolicy(timeout_seconds=0.5)),
    )
    with held(session):
        running = house.ask(0.0)
        await began(session)
        late, left = house.ask(1.0), house.ask(2.0)
        await queued(house, 2)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        with pytest.raises(Unavailable, match="Request timeout expired"):
            await late
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    statistics = counted(house)
    assert statistics.expired_count == 1
    assert statistics.failures[Failure.CANCELED] == 2
    assert statistics.failures[Failure.REJECTED] == 1


@pytest.mark.parametrize("first", ["the timer", "the transport"])
async def test_a_deadline_that_passes_during_the_run_is_counted_alike_whoever_sees_it_first(
    houses: Houses, first: str
) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        running = house.ask(0.0, seconds=0.5)
        latest = time.monotonic() + 0.5
        await began(session)
        if first == "the timer":
            with pytest.raises(Unavailable, match="Request timeout expired"):
                await running
        else:
            # The event loop is busy until then, so that its timer has no say before the transport.
            while time.monotonic() < latest:
                pass
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    statistics = counted(house)
    assert statistics.run_expired_count == 1
    assert (statistics.expired_count, statistics.failures[Failure.CANCELED]) == (0, 0)
    assert statistics.failures[Failure.REJECTED] == statistics.fail.count == 1


async def test_a_transport_that_cancels_at_the_deadline_is_no_caller_who_leaves(
    houses: Houses,
) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        running = house.ask(0.0)
        await began(session)
        moment = asyncio.get_running_loop().time()
        waiting = house.ask(1.0, seconds=0.02)
        await queued(house, 1)
        # The event loop is busy until then, so that its timer has no say before the transport.
        while asyncio.get_running_loop().time() < moment + 0.03:
            pass
        waiting.cancel()
        with pytest.raises((asyncio.CancelledError, Unavailable)):
            await waiting
    await running
    statistics = counted(house)
    assert (statistics.expired_count, statistics.failures[Failure.CANCELED]) == (1, 0)


@pytest.mark.parametrize(
    ("left_seconds", "is_over"), [(-1.0, True), (0.0, True), (9.0, True), (20.0, False)]
)
def test_a_caller_whose_time_was_rounded_up_on_its_way_is_at_its_end_a_little_earlier(
    left_seconds: float, is_over: bool
) -> None:
    call = Call(time.monotonic() + left_seconds, given_seconds=1000.0)
    assert call.expired() is is_over


def test_a_call_without_a_deadline_never_expires() -> None:
    assert not Call.within(None).expired()
    assert not Call.within(3600.0).expired()


async def test_pending_is_what_no_session_has_taken(houses: Houses) -> None:
    """As Triton counts: what runs is not pending. A run that is given up is not either."""
    session = Session()
    house = await houses.make({"m": session})

    def counts() -> tuple[int, int]:
        return counted(house).pending, counted(house).in_flight

    session.gate.clear()
    runs = house.ask(1.0)
    await began(session)
    assert counts() == (0, 1)
    waiting = [house.ask(2.0), house.ask(3.0)]
    await queued(house, 2)
    assert counts() == (2, 3)
    for task in (waiting.pop(), runs):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    session.gate.set()
    await waiting[0]
    assert counts() == (0, 0)
