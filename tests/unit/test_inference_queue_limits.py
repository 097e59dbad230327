"""What may wait, in number and in memory, and what comes of it at the end."""

from __future__ import annotations

import asyncio
import gc

import pytest

from modelrail_inference.model.batching import (
    PaddedInput,
    Padding,
    QueuePolicy,
)
from modelrail_inference.model.definition import (
    ModelSettings,
)
from modelrail_inference.request.message import InferenceReply
from modelrail_inference.scheduling.batch import Execution
from modelrail_inference.scheduling.queue.queued import QueuedRequest
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
    numbers,
    queued,
    serving_lane,
)


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, max_model_items=2)
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks += [house.ask(1.0), house.ask(2.0)]
        await queued(house, 2)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size") as refused:
            await house.ask(3.0)
        assert refused.value.reason == "QUEUE_FULL"
        assert refused.value.retry_after_seconds
    await asyncio.gather(*tasks)


async def test_what_runs_at_once_needs_no_room_to_wait(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, threads=2, max_items=0)
    with held(session):
        tasks = []
        for _ in range(2):
            tasks.append(house.ask(1.0))
            await began(session)
        with pytest.raises(Unavailable, match="maximum queue size"):
            await house.ask(1.0)
    await asyncio.gather(*tasks)


async def test_a_free_thread_is_no_room_for_a_model_whose_sessions_are_busy(
    houses: Houses,
) -> None:
    sessions = {name: Session() for name in "ab"}
    settings = ModelSettings(max_batch_size=MAX_BATCH, instances=1)
    house = await houses.make(sessions, threads=2, max_items=0, settings=settings)
    with held(sessions["a"]):
        task = house.ask(1.0, model="a")
        await began(sessions["a"])
        with pytest.raises(Unavailable, match="maximum queue size"):
            await house.ask(1.0, model="a")
        assert numbers(await house.ask(1.0, model="b")) == [2.0]
    await task


async def test_a_free_thread_is_promised_to_one_request_only(houses: Houses) -> None:
    sessions = {name: Session() for name in "ab"}
    house = await houses.make(sessions, max_items=0)
    # Both come in one step of the event loop, before the thread can take the first.
    with held(sessions["a"]):
        first, second = [house.ask(1.0, model=name) for name in sessions]
        with pytest.raises(Unavailable, match="maximum queue size"):
            await second
    assert numbers(await first) == [2.0]


async def test_a_level_has_a_bound_of_its_own(houses: Houses) -> None:
    session = Session()
    settings = declared(
        priority_levels=2, default_priority=2, level_policies={2: QueuePolicy(max_items=1)}
    )
    house = await houses.make({"m": session}, settings=settings)
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks.append(house.ask(1.0))
        await queued(house, 1)
        with pytest.raises(Unavailable):
            await house.ask(2.0)
        tasks.append(house.ask(3.0, parameters={"priority": 1}))
        await queued(house, 2)
    await asyncio.gather(*tasks)


async def test_requests_hold_no_more_bytes_than_they_may(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, max_bytes=40)
    with pytest.raises(ResourceExhausted, match="48 bytes") as refused:
        await house.ask(*[0.0] * 6)
    assert refused.value.reason == "REQUEST_TOO_LARGE"
    with held(session):
        running = house.ask(0.0, 0.0, 0.0)
        await began(session)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            await house.ask(1.0, 1.0, 1.0)
    await running
    await house.ask(1.0, 1.0, 1.0)
    assert house.scheduler.held_bytes == 0


async def test_outputs_as_large_as_the_last_are_held_too(houses: Houses) -> None:
    """Of a model that makes much of little, a queue of small requests would fill the memory."""
    session = Session()
    house = await houses.make({"m": session}, max_bytes=40)
    await house.ask(0.0)
    await began(session)
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks.append(house.ask(1.0))
        await queued(house, 1)
        assert house.scheduler.held_bytes == 2 * (8 + 8)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            await house.ask(2.0)
    await asyncio.gather(*tasks)
    assert numbers(await house.ask(*[1.0] * 5)) == [2.0] * 5  # a guess refuses nothing for ever
    assert house.scheduler.held_bytes == 0


@pytest.mark.parametrize(
    ("max_bytes", "max_model_bytes", "who"),
    [(40, 1000, "all requests together"), (1000, 40, "all requests for one model")],
)
async def test_a_request_that_is_too_large_is_told_which_limit_binds(
    houses: Houses, max_bytes: int, max_model_bytes: int, who: str
) -> None:
    house = await houses.make(
        {"m": Session()}, max_bytes=max_bytes, max_model_bytes=max_model_bytes
    )
    with pytest.raises(ResourceExhausted, match=f"48 bytes once .*, and {who} may hold 40$"):
        await house.ask(*[0.0] * 6)


async def test_a_request_holds_what_it_becomes_by_padding(houses: Houses) -> None:
    padding = Padding(edges=(64,), inputs={"x": PaddedInput(1)}, outputs={"y": 1})
    settings = ModelSettings(max_batch_size=MAX_BATCH, padding=padding)
    house = await houses.make({"m": Session()}, settings=settings, max_bytes=300, width=-1)
    assert numbers(await house.ask(1.0)) == [2.0]  # 256 bytes
    with pytest.raises(ResourceExhausted, match="512 bytes") as refused:
        await house.ask(1.0, 2.0)
    assert refused.value.reason == "REQUEST_TOO_LARGE"
    assert house.scheduler.held_bytes == 0


@pytest.mark.parametrize("is_bounded", [False, True], ids=["on a thread", "in a step"])
async def test_what_a_request_held_is_given_back_with_its_answer(
    houses: Houses, is_bounded: bool
) -> None:
    """And not when the garbage collector comes by: a large request holds many bytes."""
    house = await houses.make({"m": Session()}, is_bounded=is_bounded)
    gc.collect()
    gc.disable()
    try:
        for number in range(10):
            assert numbers(await house.ask(float(number))) == [number + 1.0]
        await asyncio.sleep(0)
        requests = [found for found in gc.get_objects() if type(found) is QueuedRequest]
        lane = serving_lane(house)
        assert (
            sum(request.lane is lane for request in requests) <= 1
        )  # a thread's last may be on its way
    finally:
        gc.enable()


async def test_closing_answers_what_waits(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        first = house.ask(0.0)
        await began(session)
        waits = house.ask(1.0)
        await queued(house, 1)
        house.scheduler.close()
        with pytest.raises(Unavailable, match="Server exiting"):
            await waits
    await first
    with pytest.raises(Unavailable, match="Server exiting"):
        await house.ask(2.0)


async def test_one_large_reply_leaves_room_for_others(houses: Houses) -> None:
    sessions = {"m": Session(), "n": Session()}
    house = await houses.make(sessions, max_bytes=400)
    await house.ask(0.0)
    await began(sessions["m"])
    lane = serving_lane(house)
    lane._row_output_bytes = 1e9
    with held(sessions["m"]):
        tasks = [house.ask(0.0)]
        await began(sessions["m"])
        assert house.scheduler.held_bytes == 8 + 100
        tasks.append(house.ask(1.0))
        await queued(house, 1)
        tasks.append(house.ask(2.0, model="n"))
        await queued(house, 2)
        tasks.append(house.ask(3.0))
        await queued(house, 3)
        before = lane.predicted_output_bytes(1)
        with pytest.raises(Unavailable):
            await house.ask(4.0)
        assert lane.predicted_output_bytes(1) == before  # the next run will tell
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("threads", [1, 3], ids=["one waits", "one runs"])
async def test_a_guess_about_outputs_is_not_doubted_while_a_run_is_to_come(
    houses: Houses, threads: int
) -> None:
    sessions = {"m": Session(), "n": Session()}
    house = await houses.make(sessions, threads=threads, max_bytes=400)
    for name, session in sessions.items():
        await house.ask(0.0, model=name)
        await began(session)
        serving_lane(house, name)._row_output_bytes = 1e9  # 100 bytes are what one may hold
    tasks: list[asyncio.Task[InferenceReply]] = []
    with held(sessions["n"]), held(sessions["m"]):
        for name in ("n", "n", "m"):
            tasks.append(house.ask(1.0, model=name))
            if len(tasks) <= threads:
                await began(sessions[name])
            else:
                await queued(house, len(tasks) - threads)
        lane = serving_lane(house)
        before = lane.predicted_output_bytes(1)
        with pytest.raises(Unavailable):
            await house.ask(2.0)
        assert lane.predicted_output_bytes(1) == before
    await asyncio.gather(*tasks)


async def test_no_outputs_are_expected_to_be_larger_than_a_reply_may_be(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, max_bytes=1 << 24, max_model_bytes=1 << 24)
    await house.ask(0.0)
    await began(session)
    serving_lane(house)._row_output_bytes = 1e9
    with held(session):
        task = house.ask(0.0)
        await began(session)
        assert (1 << 20) - 100 < house.scheduler.held_bytes <= (1 << 20) + 8
    await task


async def test_outputs_are_expected_to_be_as_large_as_the_largest_of_the_last_runs(
    houses: Houses,
) -> None:
    house = await houses.make({"m": Session()})
    await house.ask(0.0)
    lane = serving_lane(house)
    expected = []
    for size in (1000, 10):
        lane.learn(Execution(1, 0, 0, 1, 0, 0, output_bytes=size))
        expected.append(lane.predicted_output_bytes(1))
    assert expected == [1000, 950]
    for _ in range(200):
        lane.learn(Execution(1, 0, 0, 1, 0, 0, output_bytes=10))
    assert lane.predicted_output_bytes(3) == 30


async def test_a_guess_about_outputs_that_no_run_corrects_refuses_nothing_for_ever(
    houses: Houses,
) -> None:
    sessions = {"m": Session(), "n": Session()}
    house = await houses.make(sessions, max_bytes=400)
    for name, session in sessions.items():
        await house.ask(0.0, model=name)
        await began(session)
        serving_lane(house, name)._row_output_bytes = 1e3
    with held(sessions["n"]):
        tasks = [house.ask(0.0, model="n")]
        await began(sessions["n"])
        tasks += [house.ask(value, model="n") for value in (1.0, 2.0)]
        await queued(house, 2)
        lane, refusals = serving_lane(house), 0
        while not lane.queue.count and refusals < 100:  # for the inputs alone there is room
            tasks.append(house.ask(3.0))
            await asyncio.sleep(0)
            refusals += tasks[-1].done()
        assert 0 < refusals < 100
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, Unavailable) for outcome in outcomes) == refusals
