"""What cannot be answered in time is refused at once, going by the last waits and runs."""

from __future__ import annotations

import asyncio
import re

import pytest

from modelrail_inference.model.definition import (
    ModelSettings,
)
from modelrail_inference.scheduling import admission, scheduler
from modelrail_server.errors import (
    ResourceExhausted,
    Unavailable,
)
from tests.unit.scheduling_house import (
    MAX_BATCH,
    Houses,
    Session,
    began,
    declared,
    held,
    learned,
    numbers,
    queued,
    serving_lane,
)


async def test_what_cannot_be_answered_in_time_is_refused_at_once(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    await house.ask(0.0)
    await began(session)
    learned(serving_lane(house), {1: 10.0})
    with pytest.raises(ResourceExhausted) as refused:  # although it would run at once
        await house.ask(1.0, seconds=1.0)
    assert refused.value.reason == "DEADLINE_UNREACHABLE"
    assert re.fullmatch(
        r"the answer is predicted to take \d+ ms, but the deadline is in \d+ ms", str(refused.value)
    )
    assert refused.value.retry_after_seconds == pytest.approx(10, abs=1)
    with held(session):
        first = house.ask(2.0)
        await began(session)
        with pytest.raises(ResourceExhausted) as refused:
            await house.ask(3.0, seconds=1.0)
        assert refused.value.reason == "DEADLINE_UNREACHABLE"
        assert refused.value.retry_after_seconds == pytest.approx(20, abs=2)
        patient = house.ask(4.0, seconds=100.0)
        await queued(house, 1)
    await asyncio.gather(first, patient)
    assert session.batches == [[0.0], [2.0], [4.0]]


async def test_a_model_with_two_sessions_waits_half_as_long(houses: Houses) -> None:
    session = Session()
    settings = ModelSettings(max_batch_size=1)
    house = await houses.make({"m": session}, threads=2, settings=settings)
    await house.ask(0.0)
    await began(session)
    learned(serving_lane(house), {1: 10.0})
    with held(session):
        tasks = []
        for _ in range(2):
            tasks.append(house.ask(1.0))
            await began(session)
        tasks += [house.ask(1.0), house.ask(1.0)]
        await queued(house, 2)
        # Ten seconds for those that run and ten for those that wait; and then it runs itself.
        with pytest.raises(ResourceExhausted) as refused:
            await house.ask(1.0, seconds=29.0)
        assert refused.value.retry_after_seconds == pytest.approx(30, abs=0.9)
        tasks.append(house.ask(1.0, seconds=40.0))
        await queued(house, 3)
    await asyncio.gather(*tasks)


async def test_other_models_that_wait_share_all_threads(houses: Houses) -> None:
    sessions = {name: Session() for name in "abc"}
    house = await houses.make(sessions, threads=2)
    for name, session in sessions.items():
        await house.ask(0.0, model=name)
        await began(session)
        learned(serving_lane(house, name), {1: 0.001})
    with held(sessions["a"]), held(sessions["b"]):
        tasks = []
        for name in "ab":
            tasks.append(house.ask(1.0, model=name))
            await began(sessions[name])
        house.scheduler._work.mean_batch_seconds = 10.0
        # One batch of each of the two others, on two threads.
        with pytest.raises(ResourceExhausted) as refused:
            await house.ask(1.0, model="c", seconds=1.0)
        assert refused.value.retry_after_seconds == pytest.approx(10, abs=0.9)
    await asyncio.gather(*tasks)


async def test_a_batch_that_would_end_too_late_runs_without_those_that_are_late(
    houses: Houses,
) -> None:
    """Under overload those run that can be answered; else all would, and none in time."""
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        first = house.ask(0.0)
        await began(session)
        short = house.ask(1.0, seconds=10.0)
        long = house.ask(2.0, seconds=1000.0)
        await queued(house, 2)
        lane = serving_lane(house)
        learned(lane, {1: 60.0, 2: 60.0})  # only now: a run takes a minute, whatever its size
        for request in lane.queue.requests():
            request.queued_at -= 7.0  # they have waited for a while
    with pytest.raises(ResourceExhausted) as refused:
        await short
    assert refused.value.reason == "DEADLINE_UNREACHABLE"
    assert [numbers(await task) for task in (first, long)] == [[1.0], [3.0]]
    assert session.batches == [[0.0], [2.0]]


async def test_admission_counts_the_batch_that_a_request_joins(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        first = house.ask(0.0)
        await began(session)
        lane = serving_lane(house)
        learned(lane, {1: 1.0, 4: 4.0})  # a second for each item
        patient = house.ask(*[1.0] * 7, seconds=1000.0)
        await queued(house, 1)
        with pytest.raises(ResourceExhausted) as refused:
            await house.ask(2.0, seconds=5.0)
        assert refused.value.retry_after_seconds == pytest.approx(9, abs=0.5)
    await asyncio.gather(first, patient)


async def test_admission_tells_short_requests_from_long_ones(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, width=-1)
    await asyncio.gather(house.ask(0.0, length=3), house.ask(0.0))
    lane = serving_lane(house)
    for _ in range(100):
        lane.run_times.add(((2,),), 1, 1.0)
        lane.run_times.add(((3,),), 1, 60.0)
    with held(session):
        first = house.ask(0.0)
        await began(session)
        await began(session)
        await began(session)
        short = house.ask(1.0, seconds=5.0)
        await queued(house, 1)
        with pytest.raises(ResourceExhausted):
            await house.ask(1.0, seconds=50.0, length=3)
        long = house.ask(1.0, length=3)
        await queued(house, 2)
        with pytest.raises(ResourceExhausted):  # for the long one runs before it
            await house.ask(1.0, seconds=5.0)
    await asyncio.gather(first, short, long)


async def test_an_urgent_request_is_not_refused_for_what_waits_behind_it(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, settings=declared(priority_levels=2))
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        lane = serving_lane(house)
        learned(lane, {1: 1.0, MAX_BATCH: 1.0})
        backlog = [house.ask(1.0, parameters={"priority": 2}) for _ in range(10 * MAX_BATCH)]
        await queued(house, len(backlog))
        with pytest.raises(ResourceExhausted) as refused:
            await house.ask(2.0, seconds=5.0, parameters={"priority": 2})
        assert refused.value.retry_after_seconds == pytest.approx(12, abs=0.5)
        tasks.append(house.ask(3.0, seconds=5.0, parameters={"priority": 1}))
        await queued(house, len(backlog) + 1)
    await asyncio.gather(*tasks, *backlog)
    assert session.batches[1][0] == 3.0


async def test_admission_knows_that_another_model_has_every_thread(houses: Houses) -> None:
    sessions = {"m": Session(), "long": Session()}
    house = await houses.make(sessions)
    with held(sessions["long"]):
        running = house.ask(0.0, model="long")
        await began(sessions["long"])
        serving_lane(house, "long").run_times.add((), 1, 10.0)
        with pytest.raises(ResourceExhausted) as refused:
            await house.ask(1.0, seconds=5.0)
        assert refused.value.reason == "DEADLINE_UNREACHABLE"
        assert refused.value.retry_after_seconds == pytest.approx(10, abs=0.5)
        patient = house.ask(2.0, seconds=100.0)
        await queued(house, 1)
    await asyncio.gather(running, patient)


async def test_admission_knows_that_a_long_run_does_not_keep_other_models_waiting(
    houses: Houses,
) -> None:
    sessions = {"m": Session(), "long": Session()}
    house = await houses.make(sessions, long_run_seconds=0.01)
    with held(sessions["long"]):
        running = house.ask(0.0, model="long")
        await began(sessions["long"])
        serving_lane(house, "long").run_times.add((), 1, 3600.0)
        house.scheduler._work.mean_batch_seconds = 3600.0
        assert numbers(await house.ask(1.0, seconds=20.0)) == [2.0]
        with pytest.raises(ResourceExhausted):
            await house.ask(1.0, model="long", seconds=20.0)
    await running


async def test_a_run_counts_as_long_also_when_it_takes_longer_than_expected(
    houses: Houses,
) -> None:
    sessions = {"m": Session(), "long": Session()}
    house = await houses.make(sessions, long_run_seconds=10.0)
    work = house.scheduler._work
    with held(sessions["long"]):
        tasks = [house.ask(0.0, model="long")]
        await began(sessions["long"])
        work.mean_batch_seconds = 3600.0
        with pytest.raises(ResourceExhausted):
            await house.ask(1.0, seconds=60.0)
        (batch,) = work.running[serving_lane(house, "long")]
        batch.started_at -= 20.0
        tasks.append(house.ask(1.0, seconds=60.0))
        await queued(house, 1)
    await asyncio.gather(*tasks)


async def test_a_model_of_which_something_runs_counts_on_no_thread_that_stands_in(
    houses: Houses,
) -> None:
    sessions = {"m": Session(), "long": Session()}
    house = await houses.make(sessions, threads=2, long_run_seconds=10.0)
    with held(sessions["long"]), held(sessions["m"]):
        tasks = [house.ask(0.0, model=name) for name in sessions]
        for session in sessions.values():
            await began(session)
        serving_lane(house, "long").run_times.add((), 1, 3600.0)
        house.scheduler._work.mean_batch_seconds = 7200.0
        with pytest.raises(ResourceExhausted, match="predicted to take 3600000 ms"):
            await house.ask(1.0, seconds=60.0)
    await asyncio.gather(*tasks)


async def test_where_no_more_threads_stand_in_only_the_others_are_expected_to_become_free(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (admission, scheduler):
        monkeypatch.setattr(module, "MOST_STAND_INS", 1)
    sessions = {name: Session() for name in "abc"}
    house = await houses.make(sessions, long_run_seconds=0.01)
    with held(sessions["a"]), held(sessions["b"]):
        tasks = []
        for name in "ab":
            tasks.append(house.ask(1.0, model=name))
            await began(sessions[name])
        serving_lane(house, "a").run_times.add((), 1, 3600.0)
        # What runs on the thread that stands in may end at any moment: that is no thread for "c".
        with pytest.raises(ResourceExhausted, match=r"predicted to take 3[56]\d{5} ms"):
            await house.ask(1.0, model="c", seconds=60.0)
    await asyncio.gather(*tasks)


async def test_a_run_that_was_stopped_teaches_how_long_it_took_at_least(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        asked = house.ask(1.0, seconds=0.5)
        await began(session)
        with pytest.raises(Unavailable):
            await asked
    lane = serving_lane(house)
    for _ in range(1000):
        if lane.run_times.whole.runs:
            break
        await asyncio.sleep(0.001)
    assert lane.run_times.whole.seconds(1) >= session.terminated_seconds > 0


async def test_a_run_that_stands_in_keeps_no_thread_from_counting_as_free(houses: Houses) -> None:
    sessions = {name: Session() for name in "abc"}
    house = await houses.make(sessions, long_run_seconds=0.01)
    with held(sessions["b"]):
        with held(sessions["a"]):
            tasks = [house.ask(1.0, model="a")]
            await began(sessions["a"])
            tasks.append(house.ask(1.0, model="b"))
            await began(sessions["b"])
        await tasks[0]
        # The one thread is free again; what runs has a thread that stands in.
        house.scheduler._work.mean_batch_seconds = 3600.0
        serving_lane(house, "b").run_times.add((), 1, 3600.0)
        assert numbers(await house.ask(1.0, model="c", seconds=5.0)) == [2.0]
    await tasks[1]


async def test_where_no_run_takes_long_nobody_counts_on_a_thread_that_stands_in(
    houses: Houses,
) -> None:
    sessions = {name: Session() for name in "abc"}
    house = await houses.make(sessions, long_run_seconds=1000.0)
    with held(sessions["a"]):
        tasks = [house.ask(1.0, model=name) for name in "ab"]
        await began(sessions["a"])
        serving_lane(house, "a").run_times.add((), 1, 900.0)
        house.scheduler._work.mean_batch_seconds = 3000.0
        with pytest.raises(ResourceExhausted, match=r"predicted to take \d{7} ms"):
            await house.ask(1.0, model="c", seconds=2500.0)
    await asyncio.gather(*tasks)


async def test_a_run_that_would_end_right_before_the_deadline_is_refused(houses: Houses) -> None:
    """Every second one would end after it, and all of its run would be in vain."""
    house = await houses.make({"m": Session()})
    await house.ask(1.0)
    learned(serving_lane(house), {1: 20.0})
    with pytest.raises(ResourceExhausted, match="predicted to take 20000 ms, but the deadline is"):
        await house.ask(1.0, seconds=22.5)
    assert numbers(await house.ask(1.0, seconds=23.5)) == [2.0]


@pytest.mark.parametrize("rows", [1, 8])
async def test_requests_of_many_rows_that_run_alone_are_judged_by_all_of_their_rows(
    houses: Houses, rows: int
) -> None:
    """A guess that is wrong is found out, as of any other request."""
    session = Session()
    house = await houses.make({"m": session}, settings=ModelSettings(max_batch_size=MAX_BATCH))
    await house.ask(1.0)
    learned(serving_lane(house), {1: 0.01, 8: 20.0})
    values = [1.0] * rows
    if rows == 8:
        with pytest.raises(ResourceExhausted, match="predicted to take 20000 ms"):
            await house.ask(*values, seconds=1.0)
        run_time = serving_lane(house).run_times.of(())
        assert run_time._refused_since is not None
        run_time._refused_since -= 20.0
    assert numbers(await house.ask(*values, seconds=1.0)) == [2.0] * rows


async def test_the_wait_behind_requests_that_run_alone_is_one_run_for_each(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, settings=ModelSettings(max_batch_size=MAX_BATCH))
    await house.ask(1.0)
    await began(session)
    learned(serving_lane(house), {8: 10.0, 7: 10.0})
    with held(session):
        tasks = [house.ask(*[1.0] * 8)]
        await began(session)
        tasks += [house.ask(*[1.0] * 8) for _ in range(2)]
        await queued(house, 2)
        with pytest.raises(ResourceExhausted) as refused:
            await house.ask(*[1.0] * 8, seconds=39.0)
        assert refused.value.retry_after_seconds == pytest.approx(40.0, abs=0.5)
        tasks.append(house.ask(*[1.0] * 8, seconds=60.0))
        await queued(house, 3)
    await asyncio.gather(*tasks)
