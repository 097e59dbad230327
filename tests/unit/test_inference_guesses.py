"""A guess by which requests are refused is tried now and then, and unlearnt when it was wrong."""

from __future__ import annotations

import asyncio

import pytest

from modelrail_inference.model.definition import (
    ModelSettings,
)
from modelrail_inference.scheduling.batch import Execution
from modelrail_server.errors import (
    ResourceExhausted,
    Unavailable,
)
from tests.unit.scheduling_house import (
    MAX_BATCH,
    House,
    Houses,
    Session,
    batch_of,
    began,
    ended,
    held,
    learned,
    numbers,
    queued,
    serving_lane,
)


async def test_a_guess_that_has_refused_all_for_a_while_is_tried_and_unlearnt(
    houses: Houses,
) -> None:
    house = await houses.make({"m": Session()})
    await house.ask(0.0)
    lane = serving_lane(house)
    learned(lane, {1: 10.0})  # as one slow run would have taught
    with pytest.raises(ResourceExhausted):
        await house.ask(1.0, seconds=1.0)
    refused_since = lane.run_times.whole._refused_since
    assert refused_since is not None
    lane.run_times.whole._refused_since = refused_since - 10.0
    assert numbers(await house.ask(2.0, seconds=1.0)) == [3.0]
    assert numbers(await house.ask(3.0, seconds=1.0)) == [4.0]


async def test_a_shape_that_is_tried_in_vain_is_not_tried_again_at_once(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session}, width=-1)
    await asyncio.gather(house.ask(0.0, length=3), house.ask(0.0))
    lane = serving_lane(house)
    for _ in range(100):
        lane.run_times.add(((2,),), 1, 60.0)
    with held(session):
        with pytest.raises(Unavailable):
            await house.ask(1.0, seconds=0.2, length=5)
        await ended(house)
        with pytest.raises(ResourceExhausted):
            await house.ask(1.0, seconds=0.2, length=5)
    assert session.terminated == 1


async def house_of_two_shapes(houses: Houses) -> tuple[House, Session]:
    """A model whose rows of three take a moment, and those of two an hour, as far as it knows."""
    session = Session()
    house = await houses.make({"m": session}, width=-1)
    await asyncio.gather(house.ask(0.0, length=3), house.ask(0.0))
    for _ in range(2):
        await began(session)
    lane = serving_lane(house)
    for _ in range(100):
        lane.run_times.add(((3,),), 1, 0.001)
        lane.run_times.add(((2,),), 1, 3600.0)
    return house, session


async def test_a_shape_that_has_never_run_is_tried_by_one_request_at_a_time(
    houses: Houses,
) -> None:
    house, session = await house_of_two_shapes(houses)
    with held(session):
        tasks = [house.ask(0.0, length=3)]
        await began(session)
        tasks.append(house.ask(1.0, seconds=60.0, length=5))
        await queued(house, 1)
        with pytest.raises(ResourceExhausted, match="predicted to take"):
            await house.ask(2.0, seconds=60.0, length=5)
    await asyncio.gather(*tasks)
    assert numbers(await house.ask(3.0, seconds=60.0, length=5)) == [4.0]


async def test_a_shape_that_runs_for_the_first_time_is_not_tried_on_another_thread_too(
    houses: Houses,
) -> None:
    session = Session()
    house = await houses.make({"m": session}, width=-1, threads=2)
    await house.ask(0.0)
    await began(session)
    learned(serving_lane(house), {1: 3600.0})
    with held(session):
        trial = house.ask(1.0, seconds=60.0, length=5)
        await began(session)
        with pytest.raises(ResourceExhausted, match="predicted to take"):
            await house.ask(2.0, seconds=60.0, length=5)
        another = house.ask(3.0, seconds=60.0, length=7)
        await began(session)
    assert numbers(await trial) == [2.0]
    assert numbers(await another) == [4.0]


async def test_a_trial_behind_others_in_its_batch_shows_too_that_a_guess_is_wrong(
    houses: Houses,
) -> None:
    house, session = await house_of_two_shapes(houses)
    lane = serving_lane(house)
    with held(session):
        tasks = [house.ask(0.0, length=3)]
        await began(session)
        tasks.append(house.ask(1.0))
        await queued(house, 1)
        with pytest.raises(ResourceExhausted):
            await house.ask(2.0, seconds=60.0)
        run_time = lane.run_times.of(((2,),))
        assert run_time._refused_since is not None
        run_time._refused_since -= 600.0
        tasks.append(house.ask(2.0, seconds=60.0))
        await queued(house, 2)
    await asyncio.gather(*tasks)
    assert session.batches[-1] == [1.0, 2.0]
    assert numbers(await house.ask(3.0, seconds=60.0)) == [4.0]


async def test_after_a_trial_behind_others_that_was_stopped_the_next_waits_as_for_any_other(
    houses: Houses,
) -> None:
    house = await houses.make({"m": Session()})
    await house.ask(0.0)
    lane = serving_lane(house)
    learned(lane, {1: 60.0, 2: 60.0})
    batch = batch_of(lane, 2)
    batch.requests[1].is_trial = True
    tries = [lane.run_times.tries((), now, seconds=0.1) for now in (50.0, 51.5)]
    lane.stopped(batch, 3.0)
    tries += [lane.run_times.tries((), now, seconds=0.1) for now in (81.0, 82.0)]
    assert tries == [False, True, False, True]


async def test_a_trial_that_takes_as_long_as_was_guessed_unlearns_nothing(houses: Houses) -> None:
    house = await houses.make({"m": Session()})
    await house.ask(0.0)
    lane = serving_lane(house)
    learned(lane, {1: 2.0})
    batch = batch_of(lane, 1)
    batch.requests[0].is_trial = True
    lane.ran(batch, [Execution(1, 0, 0, 12_000_000_000, 0, 0)])
    # A tenth of the way to what it took.
    assert lane.run_times.whole.seconds(1) == pytest.approx(3.0, abs=0.01)


async def test_a_guess_is_tried_also_while_another_model_has_work(houses: Houses) -> None:
    sessions = {"m": Session(), "busy": Session()}
    settings = ModelSettings(max_batch_size=MAX_BATCH, instances=1)
    house = await houses.make(sessions, threads=2, settings=settings)
    await house.ask(1.0)
    run_times = serving_lane(house).run_times
    for _ in range(100):
        run_times.add((), 1, 0.3)
    with held(sessions["busy"]):
        tasks = [house.ask(0.0, model="busy")]
        await began(sessions["busy"])
        tasks.append(house.ask(1.0, model="busy"))
        await queued(house, 1)
        with pytest.raises(ResourceExhausted):
            await house.ask(1.0, seconds=0.2)
        refused_since = run_times.of(())._refused_since
        assert refused_since is not None
        run_times.of(())._refused_since = refused_since - 3.0
        assert numbers(await house.ask(1.0, seconds=0.2)) == [2.0]
    await asyncio.gather(*tasks)
