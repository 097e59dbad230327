"""Which requests run together, and when they do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Hashable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from modelrail_inference.model.batching import (
    DynamicBatching,
)
from modelrail_inference.model.definition import (
    ModelSettings,
)
from modelrail_inference.request.feed import Feed
from modelrail_inference.request.message import (
    InferenceReply,
)
from modelrail_inference.scheduling.run_time import RunTimes
from modelrail_server.errors import (
    InvalidArgument,
    Unavailable,
)
from tests.unit.scheduling_house import (
    MAX_BATCH,
    NAN,
    Houses,
    Session,
    batch_of,
    began,
    declared,
    emptied,
    held,
    learned,
    numbers,
    queued,
    request_of,
    serving_lane,
    taught,
)


async def test_an_idle_session_takes_a_request_at_once(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    assert numbers(await house.ask(1.0)) == [2.0]
    assert session.batches == [[1.0]]


async def test_a_batch_grows_until_the_session_takes_it(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        first = house.ask(0.0)
        await began(session)
        others = [house.ask(float(i), float(i)) for i in range(1, 4)]
        await queued(house, 3)
    assert numbers(await first) == [1.0]
    assert [numbers(await other) for other in others] == [[i + 1.0] * 2 for i in range(1, 4)]
    assert session.batches == [[0.0], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]]
    counters = next(house.repository.serving()).statistics
    assert (counters.execution_count, counters.inference_count) == (2, 7)


async def test_a_batch_is_never_larger_than_the_model_takes(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks += [house.ask(*[float(i)] * 3) for i in range(6)]
        await queued(house, 6)
    await asyncio.gather(*tasks)
    assert [len(batch) for batch in session.batches] == [1, 6, 6, 6]


async def test_what_waits_is_shared_among_the_sessions(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, threads=2)
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks.append(house.ask(0.0))
        await began(session)
        tasks += [house.ask(float(i)) for i in range(6)]
        await queued(house, 6)
    await asyncio.gather(*tasks)
    assert sum(map(len, session.batches)) == 8
    assert max(map(len, session.batches)) <= 4


@pytest.mark.parametrize(
    ("fixed_seconds", "items"),
    [(0.001, 2), (0.004, 3), (0.050, 4)],
    ids=["no session waits", "sessions wait a little", "batches are as large as they can be"],
)
async def test_smaller_batches_keep_sessions_busy_where_they_cost_little(
    houses: Houses, fixed_seconds: float, items: int
) -> None:
    house = await houses.make({"m": Session()}, threads=2)
    await house.ask(0.0)
    lane = serving_lane(house)
    for size in (1, 4) * 50:
        lane.run_times.add((), size, fixed_seconds + 0.008 * size)
    lane.running_rows = 4
    for _ in range(4):
        lane.queue.push(request_of(lane))
    assert lane.share() == items


class Taught(RunTimes):
    """What is known of runs, which those of the test do not change."""

    def __init__(self) -> None:
        super().__init__()
        for rows in (1, 8) * 50:
            super().add((), rows, 0.008 * rows)

    def add(self, key: Hashable, items: int, seconds: float) -> None:
        pass


async def test_whoever_was_answered_a_moment_ago_counts_among_those_who_share(
    houses: Houses,
) -> None:
    session = Session()
    house = await houses.make({"m": session})
    await house.ask(0.0)
    await began(session)
    serving_lane(house).run_times = Taught()
    del session.batches[:]
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks += [house.ask(float(i)) for i in range(9)]
        await queued(house, 9)
    await asyncio.gather(*tasks)
    # A third of the ten that there were; of nine, as the first does not come again; and of five.
    assert [len(batch) for batch in session.batches] == [1, 4, 3, 2]


async def test_a_session_waits_a_moment_for_callers_that_were_just_answered(
    houses: Houses,
) -> None:
    house = await houses.make({"m": Session()})
    await house.ask(0.0)
    lane = serving_lane(house)
    learned(lane, {4: 0.08})
    lane.answered(batch_of(lane, 4), now=100.0)
    assert lane.ready_at(100.0) is None  # nobody is there
    lane.queue.push(request_of(lane))
    assert lane.ready_at(100.0) == pytest.approx(100.004)
    for _ in range(3):
        lane.queue.push(request_of(lane))
    assert lane.ready_at(100.003) == 0.0  # they are all there
    emptied(lane)


async def test_a_session_waits_for_nobody_beyond_a_preferred_size(houses: Houses) -> None:
    settings = declared(preferred_sizes=(3,))
    house = await houses.make({"m": Session()}, settings=settings)
    await house.ask(0.0)
    lane = serving_lane(house)
    learned(lane, {4: 0.08})
    for _ in range(2):
        lane.queue.push(request_of(lane))
    lane.answered(batch_of(lane, 3), now=100.0)
    ready_at = lane.ready_at(100.0)
    assert ready_at is not None
    assert ready_at > 100.0
    lane.queue.push(request_of(lane))
    assert lane.ready_at(100.0) == 0.0
    emptied(lane)


async def test_an_idle_session_waits_for_nobody_who_did_not_come_before(houses: Houses) -> None:
    house = await houses.make({"m": Session()})
    await house.ask(0.0)
    lane = serving_lane(house)
    learned(lane, {4: 0.08})
    lane.queue.push(request_of(lane))
    lane.answered(batch_of(lane, 4), now=100.0)
    assert lane.ready_at(100.0) == pytest.approx(100.004)
    assert lane.ready_at(100.005) == 0.0  # nobody else has come
    lane.answered(batch_of(lane, 4), now=101.0)
    assert lane.ready_at(101.0) == 0.0
    emptied(lane)


async def test_a_request_with_a_near_deadline_waits_for_nobody(houses: Houses) -> None:
    house = await houses.make({"m": Session()})
    await house.ask(0.0)
    lane = serving_lane(house)
    learned(lane, {1: 0.08, 4: 0.08})
    lane.queue.push(request_of(lane, deadline=100.1))
    lane.answered(batch_of(lane, 4), now=100.0)
    ready_at = lane.ready_at(100.0)
    assert ready_at is not None
    assert ready_at < 100.0
    emptied(lane)


async def test_where_there_are_priorities_no_session_waits(houses: Houses) -> None:
    house = await houses.make({"m": Session()}, settings=declared(priority_levels=2))
    await house.ask(0.0)
    lane = serving_lane(house)
    learned(lane, {4: 0.08})
    lane.queue.push(request_of(lane))
    lane.answered(batch_of(lane, 4), now=100.0)
    assert lane.ready_at(100.0) == 0.0
    emptied(lane)


async def test_no_more_callers_are_waited_for_than_were_answered(houses: Houses) -> None:
    house = await houses.make({"m": Session()}, threads=2)
    await house.ask(0.0)
    lane = serving_lane(house)
    for _ in range(100):
        lane.run_times.add((), 2, 0.08)
    lane.running_rows = 6  # of the other session
    lane.answered(batch_of(lane, 2), now=100.0)
    lane.queue.push(request_of(lane))
    assert lane.ready_at(100.0) == pytest.approx(100.004)
    lane.queue.push(request_of(lane))
    assert lane.ready_at(100.0) == 0.0  # of an even share of four, two run elsewhere
    emptied(lane)
    lane.running_rows = 0


async def test_a_model_whose_configuration_does_not_batch_runs_each_request_alone(
    houses: Houses,
) -> None:
    session = Session()
    house = await houses.make({"m": session}, settings=ModelSettings(max_batch_size=MAX_BATCH))
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks += [house.ask(float(i)) for i in range(3)]
        await queued(house, 3)
    await asyncio.gather(*tasks)
    assert [len(batch) for batch in session.batches] == [1, 1, 1, 1]


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_queue_delay_waits_for_a_preferred_size(houses: Houses, threads: int) -> None:
    session = Session()
    settings = declared(preferred_sizes=(4,), max_queue_delay_seconds=3600)
    house = await houses.make({"m": session}, settings=settings, threads=threads)
    tasks = [house.ask(float(i)) for i in range(3)]
    await queued(house, 3)
    assert session.batches == []
    tasks.append(house.ask(3.0))
    await asyncio.gather(*tasks)
    assert session.batches == [[0.0, 1.0, 2.0, 3.0]]


async def test_a_queue_delay_ends(houses: Houses) -> None:
    session = Session()
    house = await houses.make(
        {"m": session}, settings=declared(preferred_sizes=(4,), max_queue_delay_seconds=0.01)
    )
    assert numbers(await house.ask(1.0)) == [2.0]


async def test_a_queue_delay_is_cut_short_for_a_deadline(houses: Houses) -> None:
    settings = declared(preferred_sizes=(4,), max_queue_delay_seconds=3600)
    house = await houses.make({"m": Session()}, settings=settings)
    assert numbers(await house.ask(1.0, seconds=1.0)) == [2.0]
    learned(serving_lane(house), {1: 0.7})
    assert numbers(await house.ask(2.0, seconds=1.0)) == [3.0]


async def test_higher_priorities_run_first(houses: Houses) -> None:
    session = Session()
    settings = ModelSettings(
        max_batch_size=MAX_BATCH,
        batching=DynamicBatching(preferred_sizes=(1,), priority_levels=3, default_priority=2),
    )
    house = await houses.make({"m": session}, settings=settings)
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        for value, priority in ((3.0, 3), (2.0, 0), (1.0, 1), (2.5, 99)):
            tasks.append(house.ask(value, parameters={"priority": priority}))
            await queued(house, len(tasks) - 1)
    await asyncio.gather(*tasks)
    order = [value for batch in session.batches for value in batch]
    assert order == [0.0, 1.0, 2.0, 2.5, 3.0]


async def test_replies_keep_the_order_of_the_requests_where_that_is_asked_for(
    houses: Houses,
) -> None:
    slow_gate, answered = threading.Event(), list[float]()

    class Uneven(Session):
        def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
            if inputs["x"][0, 0] == 0.0:
                self.started.release()
                assert slow_gate.wait(10)
            return super().run(inputs, outputs, run)

    session = Uneven()
    settings = declared(preserve_ordering=True, preferred_sizes=(1,))
    house = await houses.make({"m": session}, settings=settings, threads=2)

    async def ask(value: float) -> None:
        await house.ask(value)
        answered.append(value)

    slow = asyncio.create_task(ask(0.0))
    await began(session)
    fast = asyncio.create_task(ask(1.0))
    await began(session)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert answered == []
    slow_gate.set()
    await asyncio.gather(slow, fast)
    assert answered == [0.0, 1.0]


async def test_replies_keep_the_order_of_requests_that_do_not_fit_into_one_batch(
    houses: Houses,
) -> None:
    session, answered = Session(), list[float]()
    house = await houses.make({"m": session}, settings=declared(preserve_ordering=True), width=-1)

    async def ask(value: float, length: int) -> None:
        await house.ask(value, length=length)
        answered.append(value)

    async with asyncio.TaskGroup() as asked:
        with held(session):
            asked.create_task(ask(0.0, 2))
            await began(session)
            for value, length in ((1.0, 2), (2.0, 3), (3.0, 2)):
                asked.create_task(ask(value, length))
            await queued(house, 3)
    assert session.batches == [[0.0], [1.0, 3.0], [2.0]]
    assert answered == [0.0, 1.0, 2.0, 3.0]


async def test_a_request_that_cannot_be_decoded_keeps_its_place_too(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, answered = Session(), list[float]()
    house = await houses.make({"m": session}, settings=declared(preserve_ordering=True))

    def decode(feed: Feed) -> None:
        if np.isnan(feed.array(0)).any():
            raise InvalidArgument("no number")

    monkeypatch.setattr(Feed, "decode", decode)

    async def ask(value: float) -> None:
        with suppress(InvalidArgument):
            await house.ask(value)
        answered.append(value)

    async with asyncio.TaskGroup() as asked:
        with held(session):
            asked.create_task(ask(0.0))
            await began(session)
            for value in (1.0, NAN, 3.0):
                asked.create_task(ask(value))
            await queued(house, 3)
    assert session.batches == [[0.0], [1.0, 3.0]]
    assert answered == pytest.approx([0.0, 1.0, NAN, 3.0], nan_ok=True)


async def test_no_run_on_the_event_loop_overtakes_a_reply_that_is_due(houses: Houses) -> None:
    session, answered = Session(), list[float]()
    house = await houses.make(
        {"m": session}, settings=declared(preserve_ordering=True), is_bounded=True
    )

    def ask(value: float) -> asyncio.Task[InferenceReply]:
        task = house.ask(value)
        task.add_done_callback(lambda _: answered.append(value))
        return task

    with held(session):
        first = ask(0.0)
        await began(session)
        taught(serving_lane(house), 0.00001)
    # The run ends while the event loop is busy, so that its reply is due and not yet there.
    while serving_lane(house).in_flight:
        pass
    await asyncio.gather(first, ask(1.0))
    assert answered == [0.0, 1.0]


async def test_a_reply_that_waits_for_its_turn_is_not_waited_for_beyond_the_deadline(
    houses: Houses,
) -> None:
    gate = threading.Event()

    class Uneven(Session):
        def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
            if inputs["x"].shape[1] == 3:
                assert gate.wait(10)
            return super().run(inputs, outputs, run)

    session = Uneven()
    house = await houses.make({"m": session}, settings=declared(preserve_ordering=True), width=-1)
    with held(session):
        first = house.ask(0.0)
        await began(session)
        second, slow = house.ask(1.0), house.ask(2.0, length=3)
        hasty = house.ask(3.0, seconds=0.5)  # runs with the second, and is answered after the slow
        await queued(house, 3)
    assert [numbers(await task) for task in (first, second)] == [[1.0], [2.0]]
    with pytest.raises(Unavailable, match="Request timeout expired"):
        async with asyncio.timeout(5):
            await hasty
    assert session.batches == [[0.0], [1.0, 3.0]]
    gate.set()
    assert numbers(await slow) == [3.0]
