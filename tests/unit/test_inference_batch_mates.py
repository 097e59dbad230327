"""One bad request in a batch neither changes nor fails the others."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from modelrail_inference.model.definition import (
    ModelSettings,
)
from modelrail_inference.protocol.convert import config_to_pb
from modelrail_inference.request.message import (
    InferenceReply,
)
from modelrail_inference.scheduling.on_loop.loop_load import LoopLoad
from modelrail_inference.statistics import Failure
from modelrail_server.errors import (
    FailedPrecondition,
    InvalidArgument,
    ServiceError,
)
from tests.unit.scheduling_house import (
    MAX_BATCH,
    NAN,
    House,
    Houses,
    Session,
    began,
    declared,
    held,
    numbers,
    queued,
    quick_house,
    serving_lane,
    statistics_of,
    taught,
)


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


class ShortTogether(Short):
    """Has two batches of several rows end at the same moment."""

    def __init__(self) -> None:
        super().__init__()
        self.both = threading.Barrier(2, timeout=20)

    def run(self, inputs: Any, outputs: Any, run: Any) -> list[NDArray[Any]]:
        if len(inputs["x"]) > 1:
            self.both.wait()
        return super().run(inputs, outputs, run)


async def test_of_two_batches_whose_rows_could_not_be_told_apart_one_is_news(
    houses: Houses,
) -> None:
    session = ShortTogether()
    house = await houses.make({"m": session}, threads=2, settings=declared(preferred_sizes=(2,)))
    with structlog.testing.capture_logs() as logs:
        with held(session):
            tasks = []
            for _ in range(2):
                tasks.append(house.ask(0.0))
                await began(session)
            tasks += [house.ask(float(value)) for value in range(1, 5)]
            await queued(house, 4)
        answers = [numbers(await task) for task in tasks]
    assert answers == [[1.0], [1.0], [2.0], [3.0], [4.0], [5.0]]
    assert sum(len(batch) > 1 for batch in session.batches) == 2
    assert [line["event"] for line in logs] == ["requests are not put together"]


async def test_on_a_saturated_loop_too_requests_run_alone_once_rows_could_not_be_told_apart(
    houses: Houses,
) -> None:
    session = Short()
    house = await quick_house(houses, {"m": session})
    for _ in range(3):
        tasks = [house.ask(float(value)) for value in range(4)]
        assert [numbers(await task) for task in tasks] == [[1.0], [2.0], [3.0], [4.0]]
    assert serving_lane(house).queue.max_rows == 1
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
