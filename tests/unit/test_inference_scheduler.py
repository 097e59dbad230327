"""The scheduler's promises, driven through the data plane without gRPC and without ONNX Runtime."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from modelrail_inference.dataplane import DataPlane
from modelrail_inference.model.batching import (
    DynamicBatching,
    PaddedInput,
    Padding,
    QueuePolicy,
    TimeoutAction,
)
from modelrail_inference.model.definition import (
    LoadedModel,
    ModelSettings,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature, TensorSpec
from modelrail_inference.protocol.convert import config_to_pb
from modelrail_inference.repository.repository import Repository
from modelrail_inference.request.call import Call
from modelrail_inference.request.feed import Feed
from modelrail_inference.request.message import (
    InferenceReply,
    InferenceRequest,
    InputTensor,
    Parameter,
    TypedContents,
)
from modelrail_inference.runtime.session import RunError, RunTerminatedError
from modelrail_inference.scheduling import scheduler
from modelrail_inference.scheduling.admission import QueueLimits
from modelrail_inference.scheduling.batch import Batch, BatchRunner, Execution, Outcome
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.on_loop.crowd import MOST_REQUESTS
from modelrail_inference.scheduling.on_loop.gathering import Patience
from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.on_loop.loop_load import LoopLoad
from modelrail_inference.scheduling.on_loop.quickness import Quickness
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.run_time import RunTime
from modelrail_inference.scheduling.scheduler import Scheduler
from modelrail_inference.statistics import Failure, Refusal, Statistics
from modelrail_inference.thread_limit import ThreadLimitReached
from modelrail_server.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)

MAX_BATCH = 8
NAN = float("nan")


class Session:
    """Returns x + 1, row by row. Runs wait at the gate; a NaN breaks the whole run."""

    metadata: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)
        self.batches: list[list[float]] = []
        self.terminated = 0
        self.terminated_seconds = 0.0

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Any
    ) -> list[NDArray[Any]]:
        since = time.monotonic()
        x = inputs["x"]
        self.batches.append([float(row[0]) for row in x])
        self.started.release()
        while not self.gate.wait(0.01):
            if run.terminated:
                break
        if run.terminated:
            self.terminated += 1
            self.terminated_seconds = time.monotonic() - since
            raise RunTerminatedError
        if np.isnan(x).any():
            raise RunError("a number that is none")
        return [x + 1 for _ in outputs]


class Loader:
    """Loads sessions of the test."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        *,
        is_bounded: bool,
        datatype: str = "FP32",
        width: int = 2,
    ) -> None:
        self.sessions = sessions
        self.is_bounded = is_bounded
        self.datatype = datatype
        self.width = width

    def load(self, definition: VersionDefinition) -> LoadedModel:
        return LoadedModel(
            model=definition.model,
            number=definition.number,
            signature=Signature(
                (TensorSpec("x", self.datatype, (-1, self.width)),),
                (TensorSpec("y", self.datatype, (-1, self.width)),),
            ),
            max_batch_size=MAX_BATCH,
            provider=Provider.CPU,
            session=self.sessions[definition.model],
            settings=definition.settings,
            is_bounded=self.is_bounded,
        )


class House:
    """A data plane over sessions of the test."""

    def __init__(self, scheduler: Scheduler, repository: Repository) -> None:
        self.scheduler = scheduler
        self.repository = repository
        self.plane = DataPlane(repository, scheduler, max_reply_bytes=1 << 20)

    def ask(
        self,
        *values: float,
        model: str = "m",
        seconds: float | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        length: int = 2,
    ) -> asyncio.Task[InferenceReply]:
        """Sends rows that hold one number each, and waits until they are in the queue."""
        rows = np.array([[value] * length for value in values], "<f4")
        request = InferenceRequest(
            model,
            inputs=(InputTensor("x", "FP32", rows.shape, rows.tobytes()),),
            parameters=parameters or {},
        )
        return asyncio.create_task(self.plane.infer(request, Call.within(seconds)))

    def ask_raw(self, raw: bytes, datatype: str = "BOOL") -> asyncio.Task[InferenceReply]:
        """Sends one row as these bytes."""
        request = InferenceRequest("m", inputs=(InputTensor("x", datatype, (1, 2), raw),))
        return asyncio.create_task(self.plane.infer(request, Call.within(None)))


class Houses:
    """Makes data planes, and ends them."""

    def __init__(self) -> None:
        self.made: list[House] = []

    async def make(
        self,
        sessions: Mapping[str, Session],
        *,
        threads: int = 1,
        settings: ModelSettings | None = None,
        max_items: int = 1000,
        max_model_items: int = 1000,
        max_bytes: int = 1 << 20,
        max_model_bytes: int = 1 << 20,
        is_bounded: bool = False,
        datatype: str = "FP32",
        width: int = 2,
        load: LoopLoad | None = None,
        patience: Patience | None = None,
        long_run_seconds: float = 3600.0,
    ) -> House:
        scheduler = Scheduler(
            threads=threads,
            limits=QueueLimits(max_items, max_bytes, max_model_items, max_model_bytes),
            load=load,
            patience=patience,
            long_run_seconds=long_run_seconds,
        )
        repository = Repository(
            Loader(sessions, is_bounded=is_bounded, datatype=datatype, width=width)
        )
        for name in sessions:
            definition = VersionDefinition(
                name, 1, Path("unused"), fingerprint="1", settings=settings or ModelSettings()
            )
            await repository.reconcile(name, [definition])
        self.made.append(House(scheduler, repository))
        return self.made[-1]


@pytest.fixture
async def houses() -> Any:
    houses = Houses()
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    yield houses
    assert failures == []
    for house in houses.made:
        house.scheduler.close()
        assert house.scheduler.waiting == 0


def declared(**batching: Any) -> ModelSettings:
    return ModelSettings(max_batch_size=MAX_BATCH, batching=DynamicBatching(**batching))


async def began(session: Session) -> None:
    """Waits until one more run has begun."""
    assert await asyncio.to_thread(session.started.acquire, timeout=10)


async def queued(house: House, count: int) -> None:
    """Lets requests get into the queue, where they wait as the session is busy."""
    for _ in range(100):
        if house.scheduler.waiting == count:
            return
        await asyncio.sleep(0)
    assert house.scheduler.waiting == count


async def ended(house: House) -> None:
    """Waits until no run is under way any more."""
    for _ in range(1000):
        if not house.scheduler._work.running_count:
            return
        await asyncio.sleep(0.001)
    assert not house.scheduler._work.running_count


def serving_lane(house: House, model: str = "m") -> Lane:
    serving = house.repository.find(model, "1").serving
    assert serving is not None
    assert serving.lane is not None
    return serving.lane


def statistics_of(house: House) -> Statistics:
    return serving_lane(house).model.statistics


def taught(lane: Lane, cpu_seconds: float) -> None:
    """Makes a model as quick as its runs of the last minute would have."""
    for _ in range(100):
        lane.quickness.learn(1, cpu_seconds)


def learned(lane: Lane, seconds: Mapping[int, float]) -> None:
    """Makes a model's runs of so many rows take so long, as many runs would have shown."""
    for _ in range(100):
        for rows, taken in seconds.items():
            lane.run_times.add((), rows, taken)


def request_of(lane: Lane, deadline: float | None = None) -> QueuedRequest:
    """Returns a request of one row that nobody sent."""
    rows = np.zeros((1, 2), "<f4")
    tensor = InputTensor("x", "FP32", rows.shape, rows.tobytes())
    feed = lane.checker.check(InferenceRequest("m", inputs=(tensor,)))
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    return QueuedRequest(lane, feed, future, lambda: None, size_bytes=8, deadline=deadline)


def emptied(lane: Lane) -> None:
    """Takes out requests that nobody sent."""
    for request in list(lane.queue.requests()):
        lane.queue.discard(request)


def batch_of(lane: Lane, count: int) -> Batch:
    """Returns a batch of requests that nobody sent."""
    return Batch(lane, [request_of(lane) for _ in range(count)], time.monotonic())


def numbers(reply: InferenceReply) -> list[float]:
    array = np.frombuffer(reply.outputs[0].raw, "<f4").reshape(reply.outputs[0].shape)
    return [float(value) for value in array[:, 0]]


@contextmanager
def held(session: Session) -> Iterator[None]:
    """Keeps runs from ending for the length of the block."""
    session.gate.clear()
    try:
        yield
    finally:
        session.gate.set()


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
    [(0.001, 3), (0.050, 4)],
    ids=["some wait behind the sessions", "batches are as large as they can be"],
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


async def test_a_request_that_breaks_the_run_fails_alone(houses: Houses) -> None:
    session = Session()
    house = await houses.make({"m": session})
    with held(session):
        first = house.ask(0.0)
        await began(session)
        tasks = [house.ask(NAN if i in (2, 5) else float(i)) for i in range(7)]
        await queued(house, 7)
    await first
    for i, outcome in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
        if i in (2, 5):
            assert isinstance(outcome, InvalidArgument)
            assert outcome.reason == "MODEL_RUN_FAILED"
        else:
            assert isinstance(outcome, InferenceReply)
            assert numbers(outcome) == [i + 1.0]


class Negating(Session):
    """Returns not x."""

    def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
        super().run(inputs, outputs, run)
        return [~inputs["x"]]


@pytest.mark.parametrize("is_bounded", [False, True], ids=["thread", "event loop"])
async def test_numbers_that_are_not_finite_hurt_no_neighbour(
    houses: Houses, is_bounded: bool
) -> None:
    session = Session()
    settings = replace(declared(), rejects_nonfinite=True)
    house = await houses.make({"m": session}, settings=settings, is_bounded=is_bounded)
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks += [house.ask(value) for value in (1.0, NAN, 2.0)]
        await queued(house, 3)
    *good, wrong = [tasks[index] for index in (0, 1, 3, 2)]
    assert [numbers(await task) for task in good] == [[1.0], [2.0], [3.0]]
    taught(serving_lane(house), 0.00001)
    for task in (wrong, house.ask(NAN)):
        with pytest.raises(InvalidArgument, match="expected finite numbers, got nan at element 0"):
            await task
    assert not np.isnan(np.concatenate(session.batches)).any()
    assert statistics_of(house).failures[Failure.OTHER] == 2


async def test_a_flag_that_is_neither_0_nor_1_is_refused_without_its_neighbours(
    houses: Houses,
) -> None:
    session = Negating()
    house = await houses.make({"m": session}, datatype="BOOL")
    with held(session):
        first = house.ask_raw(b"\0\1")
        await began(session)
        tasks = [house.ask_raw(raw) for raw in (b"\0\0", b"\1\2", b"\1\1", b"\xff\0")]
        await queued(house, 4)
    assert bytes((await first).outputs[0].raw) == b"\1\0"
    good, wrong, also_good, also_wrong = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(good, InferenceReply)
    assert isinstance(also_good, InferenceReply)
    assert [bytes(reply.outputs[0].raw) for reply in (good, also_good)] == [b"\1\1", b"\0\0"]
    for refused, text in ((wrong, "got 2 at element 1"), (also_wrong, "got 255 at element 0")):
        assert isinstance(refused, InvalidArgument)
        assert f"input 'x': expected 0 or 1 for BOOL, {text}" in str(refused)
    assert [len(batch) for batch in session.batches] == [1, 2]


@pytest.mark.parametrize("is_bounded", [False, True])
@pytest.mark.parametrize("buckets", [(), (2, 8)])
async def test_a_flag_that_is_neither_0_nor_1_never_runs_alone(
    houses: Houses, is_bounded: bool, buckets: tuple[int, ...]
) -> None:
    session = Negating()
    settings = ModelSettings(max_batch_size=MAX_BATCH, batch_buckets=buckets)
    house = await houses.make(
        {"m": session}, datatype="BOOL", is_bounded=is_bounded, settings=settings
    )
    for _ in range(4):
        assert bytes((await house.ask_raw(b"\0\1")).outputs[0].raw) == b"\1\0"
    taught(serving_lane(house), 0.00001)
    with pytest.raises(InvalidArgument, match="got 3 at element 0"):
        await house.ask_raw(b"\3\0")
    assert bytes((await house.ask_raw(b"\1\1")).outputs[0].raw) == b"\0\0"
    assert len(session.batches) == 5


async def test_a_string_that_is_no_text_is_the_callers_mistake_where_rows_are_filled_up(
    houses: Houses,
) -> None:
    settings = ModelSettings(max_batch_size=MAX_BATCH, batch_buckets=(2, 8))
    house = await houses.make({"m": Session()}, datatype="BYTES", settings=settings)
    with pytest.raises(InvalidArgument, match="string 1 is not valid UTF-8"):
        await house.ask_raw(b"\0\0\0\0\1\0\0\0\xff", "BYTES")


class Short(Session):
    """Returns the first row of x + 1."""

    def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
        return [array[:1] for array in super().run(inputs, outputs, run)]


async def answers_together(house: House, session: Session) -> list[list[float]]:
    """Returns the answers to a request that runs, and to three that wait meanwhile."""
    with held(session):
        tasks = [house.ask(0.0)]
        await began(session)
        tasks += [house.ask(1.0), house.ask(2.0), house.ask(3.0)]
        await queued(house, 3)
    answers = [numbers(await task) for task in tasks]
    while session.started.acquire(blocking=False):
        pass
    return answers


@pytest.mark.parametrize("delay_seconds", [0.0, 0.001])
async def test_requests_run_alone_once_rows_could_not_be_told_apart(
    houses: Houses, delay_seconds: float
) -> None:
    session = Short()
    settings = declared(max_queue_delay_seconds=delay_seconds, preferred_sizes=(3,))
    house = await houses.make({"m": session}, settings=settings)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert await answers_together(house, session) == [[1.0], [2.0], [3.0], [4.0]]
    # Nobody can tell whose the one row is, so each runs again alone; then nobody tries any more.
    assert [len(batch) for batch in session.batches] == [1, 3, *[1] * 3, *[1] * 8]
    reason = "output 'y' has shape [1, 2] for a batch of 3; expected a first dimension of that size"
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("requests are not put together", reason)
    ]
    config = config_to_pb(serving_lane(house).model, instances=1).config
    assert config.parameters["batching_off"].string_value == reason


async def test_on_a_saturated_loop_too_requests_run_alone_once_rows_could_not_be_told_apart(
    houses: Houses,
) -> None:
    session = Short()
    house = await quick_house(houses, {"m": session})
    for _ in range(3):
        tasks = [house.ask(float(value)) for value in range(4)]
        assert [numbers(await task) for task in tasks] == [[1.0], [2.0], [3.0], [4.0]]
    assert serving_lane(house).max_rows == 1
    assert sum(len(batch) > 1 for batch in session.batches) == 1


async def test_outputs_without_a_row_for_each_row_that_was_filled_up_are_no_callers_fault(
    houses: Houses,
) -> None:
    settings = ModelSettings(max_batch_size=MAX_BATCH, batch_buckets=(4, 8))
    house = await houses.make({"m": Short()}, settings=settings)
    with pytest.raises(
        FailedPrecondition, match=r"'m' cannot be served .* for a batch of 4"
    ) as told:
        await house.ask(1.0, 2.0, 3.0)
    assert told.value.reason == "MODEL_OUTPUT_ROWS"
    assert statistics_of(house).failures[Failure.BACKEND] == 1


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
    await house.ask(2.0)
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
        tasks = [house.ask(1.0, model=name) for name in "a"]
        await began(sessions["a"])
        tasks.append(house.ask(1.0, model="b"))
        await began(sessions["b"])
        tasks.append(house.ask(1.0, model="c"))
        for _ in range(3):  # as often as it is looked whether one more is needed
            house.scheduler._relieve()
        assert len(stand_ins()) == 1
        assert not sessions["c"].batches
    assert [numbers(await task) for task in tasks] == [[2.0]] * 3


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


class Watched(Session):
    """Notes on which threads it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
        self.threads.append(threading.current_thread().name)
        return super().run(inputs, outputs, run)


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


class Saturated(LoopLoad):
    """An event loop that never has time to spare."""

    def __init__(self) -> None:
        super().__init__(lambda: 0)
        self.is_saturated = True

    def came(self, now: float) -> bool:
        return True


PATIENT = Patience(busy_seconds=3600, idle_seconds=3600, most_seconds=3600)
"""Ends no wait: only the number of requests does."""
UNTIL_IDLE = Patience(busy_seconds=3600, idle_seconds=0, most_seconds=3600)
"""The first turn of the event loop without a request ends every wait."""


@pytest.fixture
def constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on a busy machine teach nothing about how quick a model is."""
    monkeypatch.setattr(Quickness, "learn", lambda *arguments: None)


async def quick_house(
    houses: Houses,
    sessions: Mapping[str, Session],
    *,
    patience: Patience = PATIENT,
    row_seconds: float = 0.000_01,
    wanted: int = 4,
    **how: Any,
) -> House:
    """Makes a saturated server of models that have shown how quick they are, on a thread."""
    house = await houses.make(sessions, is_bounded=True, load=Saturated(), patience=patience, **how)
    for name, session in sessions.items():
        await house.ask(0.0, model=name)
        lane = serving_lane(house, name)
        shown(lane, row_seconds)
        lane.crowd.wanted = wanted
        session.batches.clear()
        if isinstance(session, Watched):
            session.threads.clear()
    return house


def shown(lane: Lane, row_seconds: float) -> None:
    """Makes a model as quick as its runs would have, also where they teach nothing any more."""
    lane.quickness._time = RunTime()
    for _ in range(100):
        lane.quickness._time.add(1, row_seconds)


def gathered_count(house: House) -> int:
    return house.scheduler._on_loop.gathering.count


async def gathered(house: House, count: int) -> None:
    """Lets requests come that wait for others."""
    for _ in range(100):
        if gathered_count(house) == count:
            return
        await asyncio.sleep(0)
    assert gathered_count(house) == count


async def kept_waiting(house: House, count: int) -> list[asyncio.Task[InferenceReply]]:
    """Sends so many requests, of 0, 1, 2 and so on; returns when all wait for others."""
    tasks = [house.ask(float(i)) for i in range(count)]
    await gathered(house, count)
    return tasks


def ask_typed(house: House, value: float) -> asyncio.Task[InferenceReply]:
    """Sends one row of typed contents, which have to be decoded on a thread."""
    contents = TypedContents("fp32_contents", (value, value), size_bytes=8)
    request = InferenceRequest("m", inputs=(InputTensor("x", "FP32", (1, 2), contents),))
    return asyncio.create_task(house.plane.infer(request, Call.within(None)))


def here() -> str:
    return threading.current_thread().name


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


@pytest.mark.parametrize(
    ("is_bounded", "load"),
    [(False, None), (True, None), (True, LoopLoad(lambda: 1))],
    ids=["on threads", "at once", "together on a loop that never waits"],
)
async def test_ten_thousand_requests_with_cancels_and_bad_inputs_hurt_nobody(
    houses: Houses, is_bounded: bool, load: LoopLoad | None
) -> None:
    """Marker values: whoever gets an answer gets its own, whatever the neighbours do."""
    chance = random.Random(20261125)  # noqa: S311
    sessions = {name: Session() for name in ("a", "b", "c")}
    house = await houses.make(
        sessions,
        threads=2,
        max_items=100_000,
        max_model_items=100_000,
        is_bounded=is_bounded,
        load=load,
    )
    tasks: list[tuple[str, float, asyncio.Task[InferenceReply]]] = []
    for marker in range(10_000):
        kind = chance.choices(("good", "cancelled", "broken"), (8, 1, 1))[0]
        value = NAN if kind == "broken" else float(marker)
        rows = chance.randint(1, 4)
        tasks.append((kind, value, house.ask(*[value] * rows, model=chance.choice("abc"))))
        if marker % 50 == 0:
            await asyncio.sleep(0)
        if kind == "cancelled":
            asyncio.get_running_loop().call_later(chance.random() / 20, tasks[-1][2].cancel)
    outcomes = await asyncio.gather(*(task for _, _, task in tasks), return_exceptions=True)
    answered = 0
    for (kind, value, _), outcome in zip(tasks, outcomes, strict=True):
        if isinstance(outcome, InferenceReply):
            assert kind != "broken"
            assert set(numbers(outcome)) == {value + 1}
            answered += 1
        elif kind == "cancelled":
            assert isinstance(outcome, asyncio.CancelledError)
        else:
            assert kind == "broken"
            assert isinstance(outcome, ServiceError)
            assert outcome.reason == "MODEL_RUN_FAILED"
    assert answered >= sum(kind == "good" for kind, _, _ in tasks)
    assert house.scheduler.waiting == 0
    assert house.scheduler.held_bytes == 0
    assert [model.statistics.in_flight for model in house.repository.serving()] == [0, 0, 0]


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
            house, "plane", DataPlane(house.repository, house.scheduler, max_reply_bytes=9)
        )
        with pytest.raises(ResourceExhausted, match="a reply of at most"):
            await house.ask(0.0)
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
        assert lane.predicted_output_bytes(1) < before  # so nothing is refused for ever
    await asyncio.gather(*tasks)


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


def urgency() -> int:
    """Returns how willingly the calling thread gives way: its niceness."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
async def test_runs_and_loads_give_way_to_the_event_loop(
    houses: Houses, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    load = Loader.load

    def watched(loader: Loader, definition: VersionDefinition) -> LoadedModel:
        seen.append(urgency())
        return load(loader, definition)

    class Urgent(Session):
        def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
            seen.append(urgency())
            return super().run(inputs, outputs, run)

    monkeypatch.setattr(Loader, "load", watched)
    before = urgency()
    house = await houses.make({"m": Urgent()})
    await house.ask(1.0)
    assert len(seen) == 2
    assert min(seen) > before
    assert urgency() == before
