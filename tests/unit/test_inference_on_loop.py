"""Requests of quick models run on the event loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.on_loop.quickness import Quickness
from modelrail_inference.statistics import Failure, Refusal
from modelrail_server.errors import (
    InvalidArgument,
    Unavailable,
)
from tests.unit.scheduling_house import (
    NAN,
    Houses,
    Session,
    Watched,
    here,
    numbers,
    serving_lane,
    statistics_of,
    taught,
)


async def test_a_quick_model_runs_on_the_event_loop_without_a_queue(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Watched()
    house = await houses.make({"m": session}, is_bounded=True)
    for value in range(3):  # on a thread it shows how quick it is
        await house.ask(float(value))
    # Half of that for an item would be the limit: the requests have two.
    taught(serving_lane(house), 0.00002)
    # A busy machine must not teach it otherwise meanwhile.
    monkeypatch.setattr(Quickness, "learn", lambda *arguments: None)
    tasks = [house.ask(float(i), float(i)) for i in range(10)]
    left = house.ask(77.0)
    broken = house.ask(NAN)
    left.cancel()
    replies = await asyncio.gather(*tasks)
    assert [numbers(reply) for reply in replies] == [[i + 1.0] * 2 for i in range(10)]
    with pytest.raises(InvalidArgument):
        await broken
    assert session.threads[:3] == ["session-0"] * 3
    assert set(session.threads[3:]) == {threading.current_thread().name}
    assert [77.0] not in session.batches
    assert house.scheduler.held_bytes == 0
    statistics = statistics_of(house)
    assert (statistics.success_count, statistics.execution_count) == (13, 13)
    assert statistics.failures[Failure.BACKEND] == 1
    assert statistics.in_flight == 0


async def test_a_quick_model_that_becomes_slow_leaves_the_event_loop(houses: Houses) -> None:
    session = Watched()
    house = await houses.make({"m": session}, is_bounded=True)
    await house.ask(1.0)
    taught(serving_lane(house), 0.2)
    assert numbers(await house.ask(2.0)) == [3.0]
    assert set(session.threads) == {"session-0"}


async def test_a_late_request_does_not_run_on_the_event_loop_either(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, is_bounded=True)
    await house.ask(1.0)
    taught(serving_lane(house), 0.00005)
    with pytest.raises(Unavailable, match="Request timeout expired"):
        await house.ask(2.0, seconds=-1.0)
    assert session.batches == [[1.0]]
    assert statistics_of(house).expired_count == 1


async def test_after_the_end_nothing_runs_on_the_event_loop(houses: Houses) -> None:
    house = await houses.make({"m": Session()}, is_bounded=True)
    await house.ask(1.0)
    taught(serving_lane(house), 0.00005)
    house.scheduler.close()
    with pytest.raises(Unavailable, match="Server exiting"):
        await house.ask(2.0)
    assert statistics_of(house).refusals[Refusal.SHUTTING_DOWN] == 1


async def test_quick_models_share_what_runs_may_take_of_the_event_loop(houses: Houses) -> None:
    first, second = Watched(), Watched()
    house = await houses.make({"a": first, "b": second}, is_bounded=True)
    for name in "ab":
        await house.ask(0.0, model=name)
        taught(serving_lane(house, name), 0.0005)
    serving_lane(house, "a").quickness.budget.spent(3600.0, time.monotonic())
    await house.ask(1.0, model="b")
    assert second.threads == ["session-0"] * 2
    serving_lane(house, "a").quickness.budget.spent(0.0, 0.0)
    await house.ask(2.0, model="b")
    assert second.threads[2:] == [here()]


async def test_runs_that_fail_take_of_the_event_loops_time_too(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await houses.make({"m": Session()}, is_bounded=True)
    await house.ask(1.0)
    taught(serving_lane(house), 0.00005)
    spent: list[float] = []
    monkeypatch.setattr(LoopBudget, "spent", lambda _, seconds, now: spent.append(seconds))
    with pytest.raises(InvalidArgument):
        await house.ask(NAN)
    assert len(spent) == 1
    assert spent[0] > 0
