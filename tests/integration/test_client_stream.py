"""Streams of the clients against servers that break them off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from modelrail.client import (
    AsyncInferenceClient,
    AsyncTrainerClient,
    InferFailure,
    InferRequest,
    InferResult,
    NotFound,
    Unavailable,
)
from modelrail.oip.v2 import grpc_service_pb2 as oip
from modelrail.oip.v2 import grpc_service_pb2_grpc as oip_grpc
from modelrail.tensor import TensorError
from modelrail.trainer.v1 import trainer_pb2 as pb
from modelrail.trainer.v1 import trainer_pb2_grpc as pb_grpc


class BreakingTrainer(pb_grpc.TrainerServiceServicer):
    """Sends one event a stream, and ends every other stream with UNAVAILABLE."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.positions: list[int] = []

    async def WatchTrainingJob(  # type: ignore[no-untyped-def]  # noqa: N802
        self, request, context
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        self.positions.append(request.after_sequence)
        if request.name == "trainingJobs/nope":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such job")
        sequence = request.after_sequence + 1
        if sequence <= self.events:
            event = pb.TrainingJobEvent(sequence=sequence)
            if sequence == self.events:
                event.state_change.new_state = pb.TrainingJob.STATE_SUCCEEDED
            yield pb.WatchTrainingJobResponse(event=event)
        if sequence % 2 and sequence <= self.events:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    async def GetTrainingJob(  # type: ignore[no-untyped-def]  # noqa: N802
        self, request, context
    ) -> pb.TrainingJob:
        del context
        return pb.TrainingJob(name=request.name, state=pb.TrainingJob.STATE_SUCCEEDED)


class Doubling(oip_grpc.GRPCInferenceServiceServicer):
    """Doubles FP32 inputs, and refuses others without ending the stream."""

    async def ModelStreamInfer(  # type: ignore[no-untyped-def]  # noqa: N802
        self, requests, context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        del context
        async for request in requests:
            response = oip.ModelInferResponse(id=request.id, model_version="1")
            if request.inputs[0].datatype != "FP32":
                yield oip.ModelStreamInferResponse(error_message="FP32!", infer_response=response)
                continue
            values = np.frombuffer(request.raw_input_contents[0], dtype="<f4") * 2
            response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
            response.raw_output_contents.append(values.tobytes())
            yield oip.ModelStreamInferResponse(infer_response=response)


class Leaving(oip_grpc.GRPCInferenceServiceServicer):
    """Answers one request, reads some more, and ends the stream as if all were well."""

    def __init__(self, reads: int) -> None:
        self.reads = reads

    async def ModelStreamInfer(  # type: ignore[no-untyped-def]  # noqa: N802
        self, requests, context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        del context
        for index in range(self.reads):
            await anext(requests)
            if index == 0:
                yield oip.ModelStreamInferResponse()


@asynccontextmanager
async def serving(
    service: oip_grpc.GRPCInferenceServiceServicer, tmp_path: Path
) -> AsyncIterator[str]:
    server = grpc.aio.server()
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{tmp_path / 'socket'}")
    await server.start()
    try:
        yield f"unix:{tmp_path / 'socket'}"
    finally:
        await server.stop(None)


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    async with serving(Doubling(), tmp_path) as address:  # type: ignore[abstract]
        yield address


async def test_a_watch_that_breaks_goes_on_after_the_last_event(tmp_path: Path) -> None:
    trainer = BreakingTrainer(events=4)  # type: ignore[abstract]
    server = grpc.aio.server()
    pb_grpc.add_TrainerServiceServicer_to_server(trainer, server)
    server.add_insecure_port(f"unix:{tmp_path / 'trainer'}")
    await server.start()
    async with AsyncTrainerClient(f"unix:{tmp_path / 'trainer'}") as client:
        events = [event.sequence async for event in client.watch_job("trainingJobs/a")]
        assert events == [1, 2, 3, 4]
        assert trainer.positions == [0, 1, 2, 3]
        # Everything was handled before: nothing comes, and the watch ends all the same.
        assert [event async for event in client.watch_job("trainingJobs/a", after_sequence=4)] == []
        with pytest.raises(NotFound):
            await anext(client.watch_job("trainingJobs/nope"))
    await server.stop(None)


async def requests(*arrays: Any) -> AsyncIterator[InferRequest]:
    for index, array in enumerate(arrays):
        yield InferRequest(model="m", inputs={"x": array}, request_id=str(index))


async def test_a_stream_answers_in_order_and_survives_a_refused_request(address: str) -> None:
    ones = np.ones((1, 2), dtype=np.float32)
    async with AsyncInferenceClient(address) as client:
        stream = client.stream_infer(requests(ones, np.ones(1, dtype=np.int64), 2 * ones))
        answers = [answer async for answer in stream]
    assert [answer.request_id for answer in answers] == ["0", "1", "2"]
    assert answers[1] == InferFailure(message="FP32!", request_id="1")
    assert isinstance(answers[2], InferResult)
    assert answers[2].outputs["y"].tolist() == [[4.0, 4.0]]


async def test_a_request_that_cannot_be_encoded_is_the_error_of_the_stream(address: str) -> None:
    async with AsyncInferenceClient(address) as client:
        with pytest.raises(TensorError):
            async for _ in client.stream_infer(requests(np.ones(1, dtype=np.complex64))):
                pass


async def test_a_stream_that_is_left_early_ends(address: str) -> None:
    async def endless() -> AsyncIterator[InferRequest]:
        while True:
            yield InferRequest(model="m", inputs={"x": np.ones(1, dtype=np.float32)})
            await asyncio.sleep(0)

    async with (
        AsyncInferenceClient(address) as client,
        aclosing(client.stream_infer(endless())) as answers,
    ):
        assert isinstance(await anext(answers), InferResult)
    names = {getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
    assert not any("stream_infer" in name for name in names)


async def test_a_stream_that_the_server_ends_while_nothing_is_sent_is_an_error(
    tmp_path: Path,
) -> None:
    closed = asyncio.Event()

    async def idle() -> AsyncIterator[InferRequest]:
        try:
            yield InferRequest(model="m", inputs={"x": np.ones(1, dtype=np.float32)})
            await asyncio.Event().wait()
        finally:
            closed.set()

    service = Leaving(reads=1)  # type: ignore[abstract]
    async with serving(service, tmp_path) as address, AsyncInferenceClient(address) as client:
        answers = client.stream_infer(idle())
        assert isinstance(await anext(answers), InferResult)
        with pytest.raises(Unavailable, match="ended the stream before all requests were sent"):
            await anext(answers)
    assert closed.is_set()


async def test_requests_behind_the_end_of_a_stream_are_not_lost_in_silence(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[InferRequest]:
        while True:
            yield InferRequest(model="m", inputs={"x": np.ones(1, dtype=np.float32)})

    service = Leaving(reads=1)  # type: ignore[abstract]
    async with serving(service, tmp_path) as address, AsyncInferenceClient(address) as client:
        with pytest.raises(Unavailable, match="the server ended the"):
            async for _ in client.stream_infer(endless()):
                pass


async def test_requests_that_a_stream_leaves_without_an_answer_are_told(tmp_path: Path) -> None:
    ones = np.ones(1, dtype=np.float32)
    service = Leaving(reads=3)  # type: ignore[abstract]
    async with serving(service, tmp_path) as address, AsyncInferenceClient(address) as client:
        with pytest.raises(Unavailable, match="with 1 of 3 requests answered"):
            async for _ in client.stream_infer(requests(ones, ones, ones)):
                pass
