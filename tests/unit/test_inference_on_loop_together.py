"""On a saturated event loop requests of quick models wait for each other and run together."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from modelrail_inference.model.batching import (
    DynamicBatching,
    QueuePolicy,
)
from modelrail_inference.model.definition import (
    ModelSettings,
)
from modelrail_inference.request.message import (
    InferenceReply,
)
from modelrail_inference.scheduling import scheduler
from modelrail_inference.scheduling.admission import QueueLimits
from modelrail_inference.scheduling.batch import BatchRunner
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.on_loop.crowd import MOST_REQUESTS
from modelrail_inference.scheduling.on_loop.gathering import Patience
from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.on_loop.loop_load import LoopLoad
from modelrail_inference.scheduling.on_loop.quickness import Quickness
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.statistics import Failure, Refusal
from modelrail_server.errors import (
    InvalidArgument,
    Unavailable,
)
from tests.unit.scheduling_house import (
    MAX_BATCH,
    NAN,
    UNTIL_IDLE,
    Houses,
    Session,
    Watched,
    ask_typed,
    began,
    declared,
    gathered,
    gathered_count,
    held,
    here,
    kept_waiting,
    learned,
    numbers,
    queued,
    quick_house,
    serving_lane,
    statistics_of,
)


@pytest.mark.usefixtures("constant")
async def test_on_a_saturated_loop_requests_of_a_quick_model_run_there_together(
    houses: Houses,
) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    before = (statistics_of(house).success_count, statistics_of(house).execution_count)
    tasks = await kept_waiting(house, 3)
    assert session.batches == []
    tasks.append(house.ask(3.0))
    assert [numbers(await task) for task in tasks] == [[i + 1.0] for i in range(4)]
    assert session.batches == [[0.0, 1.0, 2.0, 3.0]]
    assert session.threads == [here()]
    statistics = statistics_of(house)
    assert (statistics.success_count, statistics.execution_count) == (before[0] + 4, before[1] + 1)
    assert statistics.in_flight == 0
    assert gathered_count(house) == 0


@pytest.mark.usefixtures("constant")
async def test_requests_that_wait_for_others_run_when_the_loop_turns_idle(houses: Houses) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session}, patience=UNTIL_IDLE)
    replies = await asyncio.gather(*[house.ask(float(i)) for i in range(3)])
    assert [numbers(reply) for reply in replies] == [[1.0], [2.0], [3.0]]
    assert session.batches == [[0.0, 1.0, 2.0]]
    assert session.threads == [here()]


@pytest.mark.usefixtures("constant")
async def test_a_crowd_is_found_and_then_waited_for(houses: Houses) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session}, patience=UNTIL_IDLE, wanted=1)
    await asyncio.gather(*[house.ask(float(i)) for i in range(4)])
    assert serving_lane(house).crowd.wanted == MOST_REQUESTS
    for _ in range(3):
        await asyncio.gather(*[house.ask(float(i)) for i in range(4)])
        assert serving_lane(house).crowd.wanted == 4
    assert [len(batch) for batch in session.batches] == [1, 1, 1, 1, 4, 4, 4]
    assert set(session.threads) == {here()}


@pytest.mark.usefixtures("constant")
async def test_a_loop_with_time_to_spare_is_asked_before_anything_else_and_runs_at_once(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    house.scheduler._on_loop._load = LoopLoad(lambda: 0)
    monkeypatch.delattr(Lane, "gathers")  # whoever asks for it fails
    monkeypatch.delattr(Lane, "came_alone")
    assert numbers(await house.ask(1.0)) == [2.0]
    assert session.threads == [here()]


@pytest.mark.usefixtures("constant")
async def test_the_limits_of_the_queue_concern_nothing_that_waits_for_others(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session}, threads=2)

    def start_no_thread(thread: threading.Thread) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(scheduler, "start_thread", start_no_thread)
    house.scheduler._admission._limits = QueueLimits(0, 0, 0, 0)
    learned(serving_lane(house), {1: 1000.0, 2: 1000.0})  # no deadline could be met on a thread
    tasks = [house.ask(float(i), seconds=60.0) for i in range(3)]
    await gathered(house, 3)
    tasks.append(house.ask(3.0, seconds=60.0))
    assert [numbers(await task) for task in tasks] == [[i + 1.0] for i in range(4)]
    assert session.batches == [[0.0, 1.0, 2.0, 3.0]]


@pytest.mark.usefixtures("constant")
async def test_threads_know_nothing_of_what_waits_for_others(houses: Houses) -> None:
    session, other = Watched(), Session()
    house = await quick_house(houses, {"m": session, "other": other}, threads=2)
    lane = serving_lane(house)
    tasks = await kept_waiting(house, 3)
    assert (house.scheduler.waiting, house.scheduler.held_bytes) == (0, 0)
    assert (lane.queue.count, lane.in_flight) == (0, 0)
    assert not house.scheduler._work.active
    assert not house.scheduler._looks  # no thread is woken
    assert house.scheduler._admission._takes_at_once(serving_lane(house, "other"))
    house.scheduler._look()
    assert house.scheduler._work.choose(time.monotonic()) == (None, None)
    tasks.append(house.ask(3.0))
    await asyncio.gather(*tasks)
    assert session.threads == [here()]


@pytest.mark.usefixtures("constant")
async def test_a_batch_on_the_loop_teaches_as_much_as_any_and_costs_no_share_of_the_threads(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await quick_house(houses, {"m": Session()})
    lane = serving_lane(house)
    mean, virtual = house.scheduler._work.mean_batch_seconds, lane.virtual_seconds
    taught_with, ran = list[int](), list[float]()
    monkeypatch.setattr(Quickness, "learn", lambda _, items, cpu: taught_with.append(items))
    monkeypatch.setattr(LoopBudget, "spent", lambda _, seconds, now: ran.append(seconds))
    runs = lane.run_times.whole.runs
    await asyncio.gather(*[house.ask(float(i), float(i)) for i in range(4)])
    assert taught_with == [8]
    assert lane.run_times.whole.runs == runs + 1
    assert len(ran) == 1
    assert ran[0] > 0
    assert house.scheduler._work.mean_batch_seconds == mean
    assert lane.virtual_seconds == virtual
    assert (lane.in_flight, lane.running_rows, house.scheduler._work.running_count) == (0, 0, 0)


@pytest.mark.usefixtures("constant")
async def test_a_batch_that_is_full_waits_for_nobody(houses: Houses) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session}, wanted=MOST_REQUESTS)
    replies = await asyncio.gather(*[house.ask(*[float(i)] * 2) for i in range(8)])
    assert [numbers(reply) for reply in replies] == [[i + 1.0] * 2 for i in range(8)]
    assert [len(batch) for batch in session.batches] == [8, 8]
    assert set(session.threads) == {here()}


@pytest.mark.usefixtures("constant")
async def test_a_request_that_does_not_fit_beside_the_others_lets_them_run_first(
    houses: Houses,
) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    tasks = await kept_waiting(house, 2)
    tasks.append(house.ask(*[2.0] * 7))
    await asyncio.gather(*tasks)
    assert session.batches == [[0.0, 1.0], [2.0] * 7]
    assert set(session.threads) == {here()}


@pytest.mark.usefixtures("constant")
async def test_a_request_that_takes_a_thread_lets_those_run_first_that_wait_for_others(
    houses: Houses,
) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    tasks = await kept_waiting(house, 2)
    tasks.append(ask_typed(house, 2.0))
    await asyncio.gather(*tasks)
    assert session.batches == [[0.0, 1.0], [2.0]]
    assert session.threads == [here(), "session-0"]


@pytest.mark.usefixtures("constant")
async def test_what_comes_while_a_thread_runs_the_model_waits_for_the_thread(
    houses: Houses,
) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    await began(session)
    with held(session):
        tasks = [ask_typed(house, 0.0)]
        await began(session)
        tasks += [house.ask(1.0), house.ask(2.0)]
        await queued(house, 2)
        assert gathered_count(house) == 0
    await asyncio.gather(*tasks)
    assert session.batches == [[0.0], [1.0, 2.0]]
    assert set(session.threads) == {"session-0"}


@pytest.mark.usefixtures("constant")
async def test_a_model_whose_run_the_loop_may_not_do_yet_does_not_spill_to_the_threads(
    houses: Houses,
) -> None:
    """Runs of more than a tenth of a millisecond leave the loop half of its time."""
    session = Watched()
    house = await quick_house(houses, {"m": session}, row_seconds=0.0002)
    lane = serving_lane(house)
    lane.quickness.budget.spent(3600.0, time.monotonic())
    tasks = await kept_waiting(house, 4)
    lane.quickness.budget.spent(0.0, 0.0)
    await asyncio.gather(*tasks)
    assert session.batches == [[0.0, 1.0, 2.0, 3.0]]
    assert session.threads == [here()]


@pytest.mark.usefixtures("constant")
async def test_requests_that_waited_in_vain_are_left_to_a_thread_and_the_next_do_not_wait(
    houses: Houses,
) -> None:
    session = Watched()
    patience = Patience(busy_seconds=3600, idle_seconds=3600, most_seconds=0.01)
    house = await quick_house(
        houses, {"m": session}, patience=patience, row_seconds=0.0002, wanted=MOST_REQUESTS
    )
    lane = serving_lane(house)
    house.scheduler._admission._limits = QueueLimits(0, 0, 0, 0)  # they were let in already
    lane.quickness.budget.spent(3600.0, time.monotonic())
    tasks = [house.ask(float(i), seconds=60.0) for i in range(2)]
    await gathered(house, 2)
    assert [numbers(await task) for task in tasks] == [[1.0], [2.0]]
    assert session.batches == [[0.0, 1.0]]
    assert session.threads == ["session-0"]
    assert (lane.crowd.wanted, gathered_count(house)) == (1, 0)
    assert house.scheduler.held_bytes == 0
    assert not house.scheduler._timeouts
    lane.quickness.budget.spent(0.0, 0.0)
    assert numbers(await house.ask(2.0)) == [3.0]
    assert session.threads == ["session-0", here()]


@pytest.mark.usefixtures("constant")
async def test_what_is_left_to_a_thread_is_told_of_its_deadline_there(
    houses: Houses,
) -> None:
    session = Watched()
    patience = Patience(busy_seconds=3600, idle_seconds=3600, most_seconds=0.0)
    house = await quick_house(houses, {"m": session}, patience=patience, row_seconds=0.0002)
    serving_lane(house).quickness.budget.spent(3600.0, time.monotonic())
    with held(session), pytest.raises(Unavailable, match="Request timeout expired"):
        async with asyncio.timeout(20):
            await house.ask(1.0, seconds=0.1)
    assert here() not in session.threads


@pytest.mark.usefixtures("constant")
async def test_a_crowd_that_a_misfit_sends_to_a_thread_is_not_forgotten(houses: Houses) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session}, row_seconds=0.0002)
    lane = serving_lane(house)
    lane.quickness.budget.spent(3600.0, time.monotonic())
    tasks = await kept_waiting(house, 2)
    house.scheduler._on_loop.gathering.end(lane)
    assert [numbers(await task) for task in tasks] == [[1.0], [2.0]]
    assert session.threads == ["session-0"]
    assert lane.crowd.wanted == 4


@pytest.mark.usefixtures("constant")
async def test_whose_caller_went_in_this_very_step_does_not_run(houses: Houses) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    tasks = await kept_waiting(house, 3)
    tasks[1].cancel()
    house.scheduler._on_loop.gathering.end(serving_lane(house))
    assert session.batches == [[0.0, 2.0]]
    assert numbers(await tasks[0]) == [1.0]
    assert numbers(await tasks[2]) == [3.0]
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert house.scheduler.held_bytes == 0


@pytest.mark.usefixtures("constant")
async def test_a_request_that_soon_times_out_runs_at_once(houses: Houses) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    waits = house.ask(0.0)
    await gathered(house, 1)
    assert numbers(await house.ask(1.0, seconds=0.015)) == [2.0]
    assert session.batches == [[1.0]]
    with pytest.raises(Unavailable, match="Request timeout expired"):
        await house.ask(2.0, seconds=-1.0)
    house.scheduler._on_loop.gathering.end(serving_lane(house))
    assert numbers(await waits) == [1.0]
    assert set(session.threads) == {here()}


@pytest.mark.parametrize(("microseconds", "waits"), [(15_000, False), (3_600_000_000, True)])
@pytest.mark.usefixtures("constant")
async def test_a_request_whose_queue_policy_soon_loses_patience_runs_at_once(
    houses: Houses, microseconds: int, waits: bool
) -> None:
    session = Watched()
    settings = declared(policy=QueuePolicy(allow_timeout_override=True))
    house = await quick_house(houses, {"m": session}, settings=settings)
    task = house.ask(1.0, parameters={"timeout": microseconds})
    if waits:
        await gathered(house, 1)
        assert session.batches == []
        house.scheduler._on_loop.gathering.end(serving_lane(house))
    assert numbers(await task) == [2.0]
    assert session.threads == [here()]


@pytest.mark.usefixtures("constant")
async def test_what_waited_for_others_past_its_deadline_does_not_run(houses: Houses) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    tasks = [house.ask(0.0), house.ask(1.0, seconds=60.0)]
    await gathered(house, 2)
    (held,) = house.scheduler._on_loop.gathering._held.values()
    held.requests[1].deadline = time.monotonic()  # as if the loop had been held for a minute
    house.scheduler._on_loop.gathering.end(serving_lane(house))
    assert numbers(await tasks[0]) == [1.0]
    with pytest.raises(Unavailable, match="Request timeout expired"):
        await tasks[1]
    assert session.batches == [[0.0]]


@pytest.mark.usefixtures("constant")
async def test_a_request_that_waits_for_others_is_gone_as_soon_as_its_caller(
    houses: Houses,
) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    tasks = await kept_waiting(house, 3)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert gathered_count(house) == 2
    assert statistics_of(house).failures[Failure.CANCELED] == 1
    more = [house.ask(3.0), house.ask(4.0)]
    await asyncio.gather(tasks[0], tasks[2], *more)
    assert session.batches == [[0.0, 2.0, 3.0, 4.0]]


@pytest.mark.usefixtures("constant")
async def test_closing_answers_what_waits_for_others(houses: Houses) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session})
    tasks = await kept_waiting(house, 2)
    house.scheduler.close()
    for task in (*tasks, house.ask(2.0)):
        with pytest.raises(Unavailable, match="Server exiting"):
            await task
    assert session.batches == []
    assert gathered_count(house) == 0
    assert statistics_of(house).refusals[Refusal.SHUTTING_DOWN] == 3


@pytest.mark.usefixtures("constant")
async def test_of_many_broken_requests_that_run_together_each_runs_again_once(
    houses: Houses,
) -> None:
    """Halves of halves would be twice as many runs, and hold the event loop as long."""
    session = Watched()
    house = await quick_house(houses, {"m": session}, wanted=8)
    tasks = [house.ask(NAN) for _ in range(8)]
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, InvalidArgument)
        assert outcome.reason == "MODEL_RUN_FAILED"
    assert [len(batch) for batch in session.batches] == [8] + [1] * 8
    assert set(session.threads) == {here()}


@pytest.mark.usefixtures("constant")
async def test_a_broken_request_that_runs_together_with_others_fails_alone(
    houses: Houses,
) -> None:
    house = await quick_house(houses, {"m": Session()})
    tasks = [house.ask(NAN if i == 2 else float(i)) for i in range(4)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes.pop(2), InvalidArgument)
    assert [numbers(reply) for reply in outcomes if isinstance(reply, InferenceReply)] == [
        [1.0],
        [2.0],
        [4.0],
    ]


@pytest.mark.usefixtures("constant")
async def test_a_defect_in_the_run_of_one_model_strands_no_request_of_any(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await quick_house(houses, {"a": Session(), "b": Session()}, patience=UNTIL_IDLE)
    break_runs_of(monkeypatch, "a")
    tasks = [house.ask(float(i), model=name) for i in range(2) for name in "ab"]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError, InferenceReply] * 2
    assert gathered_count(house) == 0


async def test_a_defect_in_the_run_of_one_model_ends_no_thread(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await houses.make({"a": Session(), "b": Session()})
    break_runs_of(monkeypatch, "a")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await house.ask(1.0, 2.0, model="a")
    assert numbers(await house.ask(1.0, model="b")) == [2.0]
    assert house.scheduler.held_bytes == 0


def break_runs_of(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    run = BatchRunner._run

    def breaking(runner: BatchRunner, requests: list[QueuedRequest]) -> None:
        if runner._model.model == model:
            raise ZeroDivisionError
        run(runner, requests)

    monkeypatch.setattr(BatchRunner, "_run", breaking)


@pytest.mark.parametrize(
    "settings",
    [
        ModelSettings(max_batch_size=MAX_BATCH),
        declared(preserve_ordering=True),
        declared(priority_levels=2, default_priority=1),
        declared(max_queue_delay_seconds=0.001),
        declared(preferred_sizes=(4,)),
        ModelSettings(max_batch_size=MAX_BATCH, batching=DynamicBatching(), batch_buckets=(1, 8)),
    ],
    ids=["batching off", "ordering", "priorities", "delay", "preferred sizes", "buckets"],
)
@pytest.mark.usefixtures("constant")
async def test_models_that_say_how_they_batch_or_that_they_do_not_wait_for_no_others(
    houses: Houses, settings: ModelSettings
) -> None:
    session = Watched()
    house = await quick_house(houses, {"m": session}, settings=settings)
    assert numbers(await house.ask(1.0)) == [2.0]  # although nothing but the number ends a wait
    assert serving_lane(house).crowd.wanted == 4
