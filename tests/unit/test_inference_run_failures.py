"""A batch whose run fails: which of its requests run again, and which do not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature, TensorSpec
from modelrail_inference.request.message import InferenceRequest, InputTensor
from modelrail_inference.runtime.session import DeviceError
from modelrail_inference.scheduling.batch import Batch, BatchRunner, Outcome
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.queue.queued import QueuedRequest

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))


class Session:
    """Returns x, or fails; remembers how many rows each run had."""

    metadata: Mapping[str, str] = {}

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.rows: list[int] = []

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Any
    ) -> list[NDArray[Any]]:
        self.rows.append(len(inputs["x"]))
        if self.error is not None:
            raise self.error
        return [inputs["x"]]


def lane_of(session: Session, **fields: Any) -> Lane:
    return Lane(
        LoadedModel("m", 1, SIGNATURE, 8, Provider.CPU, session, **fields),
        instances=1,
        budget=LoopBudget(),
    )


def outcomes(lane: Lane, count: int) -> list[Outcome]:
    """Runs a batch of so many requests of one row each."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    rows = np.ones((1, 2), "<f4")
    requests = []
    for _ in range(count):
        tensor = InputTensor("x", "FP32", rows.shape, rows.tobytes())
        feed = lane.checker.check(InferenceRequest("m", inputs=(tensor,)))
        feed.max_reply_bytes = 1 << 20
        requests.append(QueuedRequest(lane, feed, future, lambda: None, size_bytes=8))
    runner = BatchRunner(Batch(lane, requests, 0.0), lane.lend_buffers())
    runner.run()
    return [outcome for _, outcome in runner.outcomes]


async def test_a_batch_that_a_failing_device_broke_is_not_run_again() -> None:
    session = Session(DeviceError("the device failed: CUDA failure 700"))
    found = outcomes(lane_of(session), 4)
    assert session.rows == [4]
    assert [type(outcome.error) for outcome in found] == [DeviceError] * 4
