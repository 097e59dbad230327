"""All models share the threads, and none waits for ever because of another."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from numpy.typing import NDArray

from modelrail_inference.model.definition import (
    LoadedModel,
    ModelSettings,
    VersionDefinition,
)
from modelrail_inference.scheduling import scheduler
from modelrail_inference.scheduling.batch import Execution
from tests.unit.scheduling_house import (
    MAX_BATCH,
    Houses,
    Loader,
    Session,
    Watched,
    began,
    declared,
    held,
    long_runs,
    numbers,
    queued,
    serving_lane,
)


async def test_no_model_starves_another(houses: Houses) -> None:
    """Nine models with thirty requests each share one thread: none runs ahead of the others."""
    order: list[str] = []

    class Named(Session):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
            order.append(self.name)
            return super().run(inputs, outputs, run)

    sessions = {name: Named(name) for name in "abcdefghi"}
    house = await houses.make(sessions, settings=ModelSettings(max_batch_size=MAX_BATCH))
    with held(sessions["a"]):
        tasks = [house.ask(0.0, model="a")]
        await began(sessions["a"])
        tasks += [house.ask(1.0, model=name) for name in sessions for _ in range(30)]
        await queued(house, 270)
    await asyncio.gather(*tasks)
    # Time is what is shared, and single runs differ; one model after the other would give thirty.
    counts = Counter(order[1:61])
    assert max(counts.values()) <= 20, counts
    assert len(counts) >= 8, counts


async def test_a_model_has_as_many_runs_at_a_time_as_it_has_instances(houses: Houses) -> None:
    """Below the number of threads: another model finds one free."""
    sessions = {"m": Session(), "other": Session()}
    settings = ModelSettings(max_batch_size=MAX_BATCH, instances=2)
    house = await houses.make(sessions, threads=3, settings=settings)
    with held(sessions["m"]):
        tasks = [house.ask(float(i)) for i in range(4)]
        for _ in range(2):
            await began(sessions["m"])
        await queued(house, 2)
        assert numbers(await house.ask(1.0, model="other")) == [2.0]
        assert len(sessions["m"].batches) == serving_lane(house).in_flight == 2
    assert [numbers(await task) for task in tasks] == [[i + 1.0] for i in range(4)]


async def test_a_run_that_takes_long_keeps_no_other_model_from_running(houses: Houses) -> None:
    """Neither do two of them; but of the model itself there are no more runs than before."""
    sessions = {name: Watched() for name in "abc"}
    house = await houses.make(sessions, long_run_seconds=0.01)
    with held(sessions["a"]), held(sessions["b"]):
        tasks = [house.ask(1.0, model="a")]
        await began(sessions["a"])
        tasks += [house.ask(value, model="a") for value in (2.0, 3.0)]
        tasks.append(house.ask(1.0, model="b"))
        await began(sessions["b"])
        async with asyncio.timeout(20):
            assert numbers(await house.ask(1.0, model="c")) == [2.0]
            assert numbers(await house.ask(2.0, model="c")) == [3.0]
        assert sessions["a"].batches == [[1.0]]
    assert [numbers(await task) for task in tasks] == [[2.0], [3.0], [4.0], [2.0]]
    assert set(sessions["a"].threads) == {"session-0"}
    assert {*sessions["b"].threads, *sessions["c"].threads} == {"session-stand-in"}


async def test_threads_that_stand_in_end_with_the_long_runs(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"long": session, "m": Session()}, long_run_seconds=0.01)
    with held(session):
        long = house.ask(1.0, model="long")
        await began(session)
        async with asyncio.timeout(20):
            await house.ask(1.0)
        (stand_in,) = stand_ins()
    await long
    await asyncio.to_thread(stand_in.join, 20)
    assert not stand_in.is_alive()
    assert house.scheduler._stand_ins == 0


async def test_the_threads_that_stand_in_are_bounded(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MOST_STAND_INS", 1)
    sessions = {name: Session() for name in "abc"}
    house = await houses.make(sessions, long_run_seconds=0.01)
    with held(sessions["b"]), held(sessions["a"]):
        tasks = await long_runs(house, sessions, "ab")
        tasks.append(house.ask(1.0, model="c"))
        await queued(house, 1)
        for _ in range(3):  # as often as it is looked whether one more is needed
            house.scheduler._relieve()
        assert len(stand_ins()) == 1
        assert not sessions["c"].batches
    assert [numbers(await task) for task in tasks] == [[2.0]] * 3


async def test_while_a_thread_is_idle_none_stands_in(houses: Houses) -> None:
    sessions = {name: Session() for name in "ab"}
    settings = declared(max_queue_delay_seconds=3600.0)
    house = await houses.make(sessions, threads=2, settings=settings)
    with held(sessions["a"]):
        tasks = [house.ask(*range(MAX_BATCH), model="a")]
        await began(sessions["a"])
        (running,) = house.scheduler._work.running.values()
        running[0].started_at -= 7200.0  # it has run for long
        tasks.append(house.ask(1.0, model="b"))  # waits for others, as it is configured
        await queued(house, 1)
        for _ in range(1000):
            if house.scheduler._idle:
                break
            await asyncio.sleep(0.001)
        assert house.scheduler._idle == 1
        house.scheduler._relieve()
        assert not stand_ins()
        tasks.append(house.ask(*range(MAX_BATCH - 1), model="b"))
        await began(sessions["b"])
    await asyncio.gather(*tasks)


async def test_a_thread_that_stands_in_leaves_a_model_that_runs_to_the_others(
    houses: Houses,
) -> None:
    """Although the model may have two runs at a time."""
    sessions = {name: Session() for name in "abc"}
    house = await houses.make(sessions, threads=2, long_run_seconds=0.01)
    with held(sessions["a"]), held(sessions["b"]):
        tasks = [house.ask(1.0, model=name) for name in "ab"]
        for name in "ab":
            await began(sessions[name])
        tasks.append(house.ask(2.0, model="a"))
        await queued(house, 1)
        async with asyncio.timeout(20):
            for _ in range(2):
                assert numbers(await house.ask(1.0, model="c")) == [2.0]
        assert sessions["a"].batches == [[1.0]]
    await asyncio.gather(*tasks)


async def test_closing_waits_also_for_threads_that_stand_in(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = {name: Session() for name in "ab"}
    house = await houses.make(sessions, long_run_seconds=0.01)
    with held(sessions["b"]):
        with held(sessions["a"]):
            tasks = [house.ask(1.0, model="a")]
            await began(sessions["a"])
            tasks.append(house.ask(1.0, model="b"))
            await began(sessions["b"])
        await tasks[0]
        (stand_in,) = house.scheduler._stand_in_threads
        waits: list[float] = []
        monkeypatch.setattr(stand_in, "join", waits.append)
        house.scheduler.close()
        assert len(waits) == 1
    assert numbers(await tasks[1]) == [2.0]


def stand_ins() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "session-stand-in"]


async def test_runs_on_the_event_loop_take_nothing_from_a_models_share_of_the_threads(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first run on the thread ends, both models wait; then time alone decides."""
    clock, order = SimpleNamespace(seconds=0.0), list[str]()

    class Timed(Session):
        def __init__(self, name: str, seconds: float) -> None:
            super().__init__()
            self.name, self.seconds = name, seconds

        def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
            order.append(self.name)
            clock.seconds += self.seconds
            return super().run(inputs, outputs, run)

    monkeypatch.setattr(
        scheduler,
        "time",
        SimpleNamespace(monotonic=lambda: clock.seconds, perf_counter_ns=time.perf_counter_ns),
    )
    sessions = {"quick": Timed("quick", 0.7), "busy": Timed("busy", 1.0)}
    house = await houses.make(sessions, settings=ModelSettings(max_batch_size=MAX_BATCH))
    await house.ask(0.0, model="quick")
    lane = serving_lane(house, "quick")
    for _ in range(1000):
        lane.learn(Execution(1, 0, 0, 3_000_000, 0, 3_000_000))
    order.clear()
    with held(sessions["busy"]):
        tasks = [house.ask(0.0, model="busy")]
        await began(sessions["busy"])
        tasks += [house.ask(float(i), model=name) for name in sessions for i in range(4)]
        await queued(house, 8)
    await asyncio.gather(*tasks)
    # Neither is ahead of the other by more than one run.
    assert "".join(name[0] for name in order) == "bqbqbqqbb"


def niceness() -> int:
    """Returns how willingly the calling thread gives way."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness of threads")
async def test_runs_and_loads_give_way_to_the_event_loop(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    load = Loader.load

    def watched(loader: Loader, definition: VersionDefinition) -> LoadedModel:
        seen.append(niceness())
        return load(loader, definition)

    class Urgent(Session):
        def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
            seen.append(niceness())
            return super().run(inputs, outputs, run)

    monkeypatch.setattr(Loader, "load", watched)
    before = niceness()
    house = await houses.make({"m": Urgent()})
    await house.ask(1.0)
    assert len(seen) == 2
    assert min(seen) > before
    assert niceness() == before
