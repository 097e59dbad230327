"""A scheduler over sessions of the test: no gRPC, and no ONNX Runtime."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail_inference.dataplane import DataPlane
from modelrail_inference.model.batching import (
    DynamicBatching,
)
from modelrail_inference.model.definition import (
    LoadedModel,
    ModelSettings,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature, TensorSpec
from modelrail_inference.repository.repository import Repository
from modelrail_inference.request.call import Call
from modelrail_inference.request.message import (
    InferenceReply,
    InferenceRequest,
    InputTensor,
    Parameter,
    TypedContents,
)
from modelrail_inference.request.unread import UnreadReplies
from modelrail_inference.runtime.session import RunError, RunTerminatedError
from modelrail_inference.scheduling.admission import QueueLimits
from modelrail_inference.scheduling.batch import Batch, Outcome
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.on_loop.gathering import Patience
from modelrail_inference.scheduling.on_loop.loop_load import LoopLoad
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.run_time import RunTime
from modelrail_inference.scheduling.scheduler import Scheduler
from modelrail_inference.statistics import Statistics

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
        self.unread = UnreadReplies(1 << 20)
        self.plane = DataPlane(repository, scheduler, self.unread, max_reply_bytes=1 << 20)

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
        cpus: Sequence[int] = (),
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
            cpus=cpus,
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


def declared(**batching: Any) -> ModelSettings:
    return ModelSettings(max_batch_size=MAX_BATCH, batching=DynamicBatching(**batching))


async def began(session: Session) -> None:
    """Waits until one more run has begun."""
    assert await asyncio.to_thread(session.started.acquire, timeout=10)


async def long_runs(
    house: House, sessions: Mapping[str, Session], models: str
) -> list[asyncio.Task[InferenceReply]]:
    """Has a run of each of these models under way that has taken long; their gates are closed."""
    tasks = []
    for model in models:
        tasks.append(house.ask(1.0, model=model))
        await began(sessions[model])
    for batches in house.scheduler._work.running.values():
        batches[0].started_at -= 7200.0
    return tasks


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


class Watched(Session):
    """Notes on which threads it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
        self.threads.append(threading.current_thread().name)
        return super().run(inputs, outputs, run)


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
