"""Callers who leave and deadlines that pass: what is late does not run, nor does what is left."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from numpy.typing import NDArray

from modelrail_inference.model.batching import (
    QueuePolicy,
    TimeoutAction,
)
from modelrail_inference.scheduling.batch import Batch
from modelrail_server.errors import (
    Unavailable,
)
from tests.unit.scheduling_house import (
    Houses,
    Session,
    began,
    declared,
    held,
    numbers,
    queued,
    serving_lane,
)


async def test_work_whose_caller_has_gone_never_runs(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        first = house.ask(0.0)
        await began(session)
        left = house.ask(1.0)
        stays = house.ask(2.0)
        await queued(house, 2)
        left.cancel()
        await queued(house, 1)
    assert numbers(await stays) == [3.0]
    await first
    assert session.batches == [[0.0], [2.0]]
    with pytest.raises(asyncio.CancelledError):
        await left


async def test_a_run_is_stopped_only_when_its_last_caller_has_gone(houses: Houses) -> None:
    session = Session()
    settings = declared(preferred_sizes=(2,), max_queue_delay_seconds=3600)
    house = await houses.make({"m": session}, settings=settings)
    session.gate.clear()
    one, other = house.ask(1.0), house.ask(2.0)
    await began(session)
    one.cancel()
    await asyncio.sleep(0)
    assert session.terminated == 0
    session.gate.set()
    assert numbers(await other) == [3.0]

    session.gate.clear()
    one, other = house.ask(1.0), house.ask(2.0)
    await began(session)
    one.cancel()
    other.cancel()
    await asyncio.gather(one, other, return_exceptions=True)
    session.gate.set()
    # The next batch finds the thread free: the stopped run has given it back.
    assert [numbers(r) for r in await asyncio.gather(house.ask(5.0), house.ask(6.0))] == [
        [6.0],
        [7.0],
    ]
    assert session.terminated == 1


async def test_a_deadline_that_passes_in_the_queue_is_answered_without_a_run(
    houses: Houses,
) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        first = house.ask(0.0)
        await began(session)
        with pytest.raises(Unavailable, match="Request timeout expired"):
            await house.ask(1.0, seconds=0.02)
        assert house.scheduler.waiting == 0
    await first
    assert session.batches == [[0.0]]


async def test_a_deadline_that_passes_during_the_run_stops_it(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        task = house.ask(1.0, seconds=0.5)
        await began(session)
        with pytest.raises(Unavailable, match="Request timeout expired"):
            await task
    await house.ask(2.0)
    assert session.terminated == 1


async def test_a_caller_whose_deadline_and_transport_end_together_is_gone_once(
    houses: Houses,
) -> None:
    """Twice would stop the run, for which another caller still waits."""
    session = Session()
    settings = declared(preferred_sizes=(2,), max_queue_delay_seconds=3600)
    house = await houses.make({"m": session}, settings=settings)
    with held(session):
        patient, late = house.ask(1.0), house.ask(2.0, seconds=0.5)
        latest = time.monotonic() + 0.5
        await began(session)
        # Both are due in the same step of the event loop, the timer before the transport.
        asyncio.get_running_loop().call_at(latest, late.cancel)
        while time.monotonic() < latest:
            pass
        with pytest.raises(asyncio.CancelledError):
            await late
    assert numbers(await patient) == [2.0]
    assert session.terminated == 0


async def test_a_run_outlasts_the_patience_of_the_queue(houses: Houses) -> None:
    gates = [threading.Event(), threading.Event()]

    class Gated(Session):
        def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
            gate = gates[int(inputs["x"][0, 0])]
            self.started.release()
            assert gate.wait(10)
            return [inputs["x"] + 1]

    session = Gated()
    policy = QueuePolicy(timeout_seconds=0.05)
    house = await houses.make({"m": session}, settings=declared(policy=policy))
    first = house.ask(0.0)
    await began(session)
    waits = house.ask(1.0)
    await queued(house, 1)
    gates[0].set()
    await began(session)
    for _ in range(10_000):
        if not house.scheduler._timeouts.is_armed:  # it has fired, and found nothing that is late
            break
        await asyncio.sleep(0.001)
    gates[1].set()
    assert [numbers(await task) for task in (first, waits)] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("asked", "override", "refused"), [(10_000, True, True), (10_000, False, False)]
)
async def test_the_timeout_of_a_request_counts_where_the_policy_lets_it(
    houses: Houses, asked: int, override: bool, refused: bool
) -> None:
    session = Session()
    settings = declared(policy=QueuePolicy(allow_timeout_override=override))
    house = await houses.make({"m": session}, settings=settings)
    with held(session):
        first = house.ask(0.0)
        await began(session)
        waits = house.ask(1.0, parameters={"timeout": asked})
        if refused:
            with pytest.raises(Unavailable, match="Request timeout expired"):
                await waits
        else:
            await queued(house, 1)
    await first
    if not refused:
        assert numbers(await waits) == [2.0]


async def test_the_action_delay_puts_a_late_request_behind_the_others(houses: Houses) -> None:
    session = Session()
    policy = QueuePolicy(
        timeout_seconds=3600, on_timeout=TimeoutAction.DELAY, allow_timeout_override=True
    )
    settings = declared(preferred_sizes=(1,), policy=policy)
    house = await houses.make({"m": session}, settings=settings)
    lane_of = house.repository.find("m", "1").serving
    assert lane_of is not None
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks.append(house.ask(1.0, parameters={"timeout": 1}))
        await queued(house, 1)
        tasks.append(house.ask(2.0))
        await queued(house, 2)
        assert lane_of.lane is not None
        for _ in range(10_000):
            if any(waiting.is_delayed for waiting in lane_of.lane.queue.requests()):
                break
            await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert [value for batch in session.batches for value in batch] == [0.0, 2.0, 1.0]


class Meddled:
    """A lock behind whose release something happens before anybody else moves on, once."""

    def __init__(self, lock: threading.Condition, happens: Callable[[], None]) -> None:
        self._lock, self._happens = lock, happens

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._happens()


@pytest.mark.parametrize("moved_before", [True, False], ids=["once moved", "in place of moving"])
async def test_a_request_that_runs_after_the_queue_has_lost_patience_is_answered(
    houses: Houses, monkeypatch: pytest.MonkeyPatch, moved_before: bool
) -> None:
    """A thread may take it in the very moment in which the action DELAY puts it behind others."""
    session = Session()
    policy = QueuePolicy(timeout_seconds=3600, on_timeout=TimeoutAction.DELAY)
    house = await houses.make({"m": session}, settings=declared(policy=policy))
    with held(session):
        first = house.ask(0.0)
        await began(session)
        waits = house.ask(1.0)
        await queued(house, 1)
        lane, batches = serving_lane(house), list[Batch | None]()
        (request,) = lane.queue.requests()

        def take() -> None:
            monkeypatch.undo()
            with house.scheduler._changed:
                batches.append(house.scheduler._take_from(lane, time.monotonic(), False))

        if moved_before:
            meddled = Meddled(house.scheduler._changed, take)
            monkeypatch.setattr(house.scheduler, "_changed", meddled)
        else:
            take()
        house.scheduler._time_out(request, now=time.monotonic() + 4000)
        assert not waits.done()
    (batch,) = batches
    assert batch is not None
    assert not batch.run.terminated
    house.scheduler._deliver(batch, house.scheduler._run(batch))
    assert [numbers(await task) for task in (first, waits)] == [[1.0], [2.0]]
