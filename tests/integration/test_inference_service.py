"""The inference service as callers see it: a real server, real ONNX files, no other process."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import onnx
import pytest
import structlog
from google.protobuf import text_format
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from onnx import TensorProto, helper
from prometheus_client import generate_latest

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from modelrail.tensor import datatype_of, from_raw, to_raw
from modelrail_inference import service as service_module
from modelrail_inference.config import InferenceConfig
from modelrail_inference.model.provider import Provider
from modelrail_inference.protocol.policy import POLICY, SERVICE
from modelrail_inference.request import encode, feed
from modelrail_inference.runtime import loader as loader_module
from modelrail_inference.runtime import session as session_module
from modelrail_inference.runtime.cuda import provider_chain
from modelrail_inference.runtime.provider import loads
from modelrail_inference.scheduling.scheduler import THREAD_NAME
from modelrail_inference.service import build
from modelrail_inference.sources.folder import FolderSource
from modelrail_inference.threads.plan import Optimize, allowed_cpus, usable_cpus
from modelrail_server.application import Runtime
from modelrail_server.config import ConfigError
from modelrail_server.server import start_server
from tests.thread_gate import Gate

FLOAT, STRING, INT64, BFLOAT16 = (
    TensorProto.FLOAT,
    TensorProto.STRING,
    TensorProto.INT64,
    TensorProto.BFLOAT16,
)


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **kw: Any) -> None:
    graph = helper.make_graph(nodes, "g", inputs, outputs, **kw)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"modelrail.output_spec": '{"labels": ["a", "b"]}'})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def value(name: str, kind: int, shape: Sequence[int | str]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def affine(path: Path, added: float = 1.0) -> None:
    """y = x + added for rows of 4."""
    constant = helper.make_tensor("c", FLOAT, [1], [added])
    save(
        path,
        [helper.make_node("Add", ["x", "c"], ["y"])],
        [value("x", FLOAT, ["n", 4])],
        [value("y", FLOAT, ["n", 4])],
        initializer=[constant],
    )


def endless(path: Path) -> None:
    """Counts to the number given, one loop step after the other."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["v", "one"], ["w"]),
        ],
        "body",
        [value("i", INT64, []), value("go", TensorProto.BOOL, []), value("v", FLOAT, [1])],
        [value("go_on", TensorProto.BOOL, []), value("w", FLOAT, [1])],
        initializer=[helper.make_tensor("one", FLOAT, [1], [1.0])],
    )
    save(
        path,
        [helper.make_node("Loop", ["steps", "yes", "x"], ["y"], body=body)],
        [value("steps", INT64, []), value("x", FLOAT, [1])],
        [value("y", FLOAT, [1])],
        initializer=[helper.make_tensor("yes", TensorProto.BOOL, [], [True])],
    )


def echo(path: Path, kind: int, shape: Sequence[int | str]) -> None:
    save(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", kind, shape)],
        [value("y", kind, shape)],
    )


class Harness:
    """A running server, its stub, and what the server is made of."""

    def __init__(self, address: str, runtime: Runtime, repository: Path) -> None:
        self.address = address
        self.runtime = runtime
        self.repository = repository
        self.channel = grpc.aio.insecure_channel(address)
        self.stub: Any = GRPCInferenceServiceStub(self.channel)

    async def infer(
        self, request: pb.ModelInferRequest, **kw: Any
    ) -> dict[str, np.ndarray[Any, Any]]:
        response = await self.stub.ModelInfer(request, **kw)
        assert len(response.raw_output_contents) == len(response.outputs)
        return {
            tensor.name: from_raw(raw, tensor.datatype, tensor.shape)
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }

    async def load(self, name: str) -> None:
        await self.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name))

    async def wait_ready(self) -> None:
        async with asyncio.timeout(30):
            while not (await self.stub.ServerReady(pb.ServerReadyRequest())).ready:  # noqa: ASYNC110
                await asyncio.sleep(0)


def request_for(
    model: str, *, request_id: str = "", version: str = "", **inputs: Any
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in inputs.items():
        datatype = datatype_of(array)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(to_raw(array, datatype))
    return request


@asynccontextmanager
async def serving(config: InferenceConfig, repository: Path) -> AsyncIterator[Harness]:
    runtime = Runtime("inference")
    async with build(config, runtime) as application:
        server, address = await start_server(application, config, runtime)
        harness = Harness(address, runtime, repository)
        try:
            yield harness
        finally:
            await harness.channel.close()
            runtime.stopping.set()
            await server.stop(0)


def configured(tmp_path: Path, **settings: Any) -> InferenceConfig:
    values: dict[str, Any] = {
        "grpc_address": f"unix:{tmp_path}/s",
        "data_dir": tmp_path / "data",
        "provider": Provider.CPU,
        "vouched": True,  # trial loads have tests of their own
        **settings,
    }
    return InferenceConfig(**values)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Harness]:
    folder = tmp_path / "models"
    affine(folder / "affine" / "1" / "model.onnx")
    echo(folder / "strings" / "1" / "model.onnx", STRING, ["n", 2])
    echo(folder / "half" / "1" / "model.onnx", TensorProto.FLOAT16, ["n", 2])
    echo(folder / "brain" / "1" / "model.onnx", BFLOAT16, ["n", 2])
    endless(folder / "endless" / "1" / "model.onnx")
    async with serving(configured(tmp_path, model_repository=folder), folder) as harness:
        await harness.wait_ready()
        yield harness


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


ROW = np.ones((1, 4), np.float32)


async def test_a_model_answers_with_its_version_and_the_callers_id(server: Harness) -> None:
    response = await server.stub.ModelInfer(request_for("affine", request_id="r7", x=ROW))
    assert (response.model_name, response.model_version, response.id) == ("affine", "1", "r7")
    assert (await server.infer(request_for("affine", x=ROW)))["y"].tolist() == [[2.0] * 4]


async def test_a_good_answer_carries_a_request_id_only_for_who_sent_one(server: Harness) -> None:
    request = request_for("affine", x=ROW)
    call = server.stub.ModelInfer(request)
    await call
    assert "x-request-id" not in dict(await call.trailing_metadata())
    call = server.stub.ModelInfer(request, metadata=(("x-request-id", "job-7"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "job-7"


async def test_typed_contents_give_the_same_answer_as_raw_bytes(server: Harness) -> None:
    request = pb.ModelInferRequest(model_name="affine")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend(
        [1, 2, 3, 4]
    )
    assert (await server.infer(request))["y"].tolist() == [[2, 3, 4, 5]]


async def test_half_and_brain_floats_pass_unchanged(server: Harness) -> None:
    half = np.array([[1.5, -2]], np.float16)
    assert (await server.infer(request_for("half", x=half)))["y"].tolist() == half.tolist()
    brain = from_raw(b"\xc0\x3f\x00\xc0", "BF16", [1, 2])
    got = (await server.infer(request_for("brain", x=brain)))["y"]
    assert got.astype(np.float32).tolist() == [[1.5, -2.0]]


async def test_strings_keep_nul_and_every_character(server: Harness) -> None:
    strings = np.array([[b"a\0b", "žluť 🐎".encode()]], dtype=object)
    assert (await server.infer(request_for("strings", x=strings)))["y"].tolist() == strings.tolist()


def broken(**changes: Any) -> pb.ModelInferRequest:  # noqa: PLR0912
    request = request_for("affine", request_id="bad", x=ROW)
    for key, change in changes.items():
        match key:
            case "datatype" | "name":
                setattr(request.inputs[0], key, change)
            case "shape":
                request.inputs[0].shape[:] = change
            case "raw":
                request.raw_input_contents[:] = change
            case "typed":
                getattr(request.inputs[0].contents, change).append(1)
            case "outputs":
                for name in change:
                    request.outputs.add(name=name)
            case "version":
                request.model_version = change
            case "model":
                request.model_name = change
            case "twice":
                request.inputs.append(request.inputs[0])
                request.raw_input_contents.append(request.raw_input_contents[0])
            case "parameters":
                for name, (kind, content) in change.items():
                    setattr(request.parameters[name], kind, content)
            case "classification":
                request.outputs.add(name="y").parameters["classification"].int64_param = 1
    return request


def strings(raw: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="strings", id="bad")
    request.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    request.raw_input_contents.append(raw)
    return request


ARGUMENT, MISSING, NOT_OFFERED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
)
BAD = {
    "unknown model": (broken(model="nope"), MISSING, "unknown model: 'nope' is not found"),
    "path as a name": (broken(model="../affine"), MISSING, "is not found"),
    "unknown version": (broken(version="9"), MISSING, "'affine' version 9 is not found"),
    "version is no number": (broken(version="v1"), ARGUMENT, "expected a number"),
    "negative version": (broken(version="-1"), ARGUMENT, "expected a number"),
    "wrong datatype": (broken(datatype="INT32"), ARGUMENT, "'INT32', but model 'affine' expects"),
    "wrong shape": (broken(shape=[1, 3]), ARGUMENT, "Expected [-1,4], got [1,3]"),
    "wrong rank": (broken(shape=[4]), ARGUMENT, "Expected [-1,4], got [4]"),
    "negative size": (broken(shape=[-1, 4]), ARGUMENT, "got [-1,4]"),
    "huge shape": (broken(shape=[2**60, 4]), ARGUMENT, "byte size mismatch"),
    "batch too large": (
        request_for("affine", request_id="bad", x=np.ones((65, 4), np.float32)),
        ARGUMENT,
        "batch-size must be <= 64 for 'affine'",
    ),
    "empty batch": (broken(shape=[0, 4], raw=[b""]), ARGUMENT, "batch-size must be >= 1"),
    "too few bytes": (broken(raw=[b"123"]), ARGUMENT, "Expected 16, got 3"),
    "no bytes": (broken(raw=[]), ARGUMENT, "unable to find data for input tensor 'x'"),
    "raw and typed": (broken(typed="fp32_contents"), ARGUMENT, "when using raw_input_contents"),
    "typed field of another type": (
        broken(raw=[], typed="int_contents"),
        ARGUMENT,
        "expected fp32_contents",
    ),
    "wrong input name": (broken(name="z"), ARGUMENT, "missing ['x']"),
    "the same input twice": (broken(twice=True), ARGUMENT, "already exists"),
    "unknown output": (broken(outputs=["q"]), ARGUMENT, "unexpected inference output 'q'"),
    "the same output twice": (broken(outputs=["y", "y"]), ARGUMENT, "already requested"),
    "unknown triton parameter": (
        broken(parameters={"triton_x": ("bool_param", True)}),
        ARGUMENT,
        "reserved",
    ),
    "parameter of a wrong type": (
        broken(parameters={"timeout": ("string_param", "1")}),
        ARGUMENT,
        "expected an integer",
    ),
    "classification": (broken(classification=True), NOT_OFFERED, "classification"),
    "a sequence": (
        broken(parameters={"sequence_id": ("int64_param", 1)}),
        NOT_OFFERED,
        "sequence",
    ),
    "truncated string length": (strings(b"\1\0\0\0a\1\0"), ARGUMENT, "input 'x'"),
    "string longer than the bytes": (strings(b"\1\0\0\0a\xff\0\0\0b"), ARGUMENT, "claims 255"),
    "too many strings": (strings(b"\0\0\0\0" * 3), ARGUMENT, "4 more bytes"),
    "text that is not UTF-8": (strings(b"\1\0\0\0\xff\0\0\0\0"), ARGUMENT, "input 'x': string 0"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_request_is_refused_and_named(server: Harness, case: str) -> None:
    request, code, text = BAD[case]
    error = await refusal(server.stub.ModelInfer(request))
    assert error.code() is code, error.details()
    assert text in str(error.details())
    assert str(error.details()).startswith("[request id: bad] ")
    assert "/" not in str(error.details()).replace(request.model_name, "")
    assert (await server.infer(request_for("affine", x=ROW)))["y"].tolist() == [[2.0] * 4]


async def test_what_perf_analyzer_sends_on_every_request_is_accepted(server: Harness) -> None:
    request = broken(
        parameters={
            "triton_enable_empty_final_response": ("bool_param", True),
            "priority": ("uint64_param", 0),
            "mine": ("string_param", "anything"),
        }
    )
    assert (await server.infer(request))["y"].shape == (1, 4)
    await server.stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
    await server.stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())


async def test_many_callers_at_once_each_get_their_own_answer(server: Harness) -> None:
    # Below the server's limit of streams on one connection, beyond which gRPC refuses some.
    connection = asyncio.Semaphore(64)

    async def one(marker: int) -> None:
        row = np.full((1 + marker % 3, 4), marker, np.float32)
        async with connection:
            got = await server.infer(request_for("affine", x=row))
        assert (got["y"] == marker + 1).all()
        assert got["y"].shape == row.shape

    async with asyncio.TaskGroup() as tasks:
        for marker in range(200):
            tasks.create_task(one(marker))


LONG = request_for("endless", steps=np.array(2**40), x=np.zeros(1, np.float32))
SHORT = request_for("endless", steps=np.array(1), x=np.zeros(1, np.float32))


async def test_a_caller_who_leaves_frees_the_thread(server: Harness) -> None:
    call = server.stub.ModelInfer(LONG)
    async with asyncio.timeout(20):
        while server_in_flight(server, "endless") == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        call.cancel()
        await server.infer(SHORT)
    assert failures(server, "endless", "CANCELED") >= 1


async def test_a_deadline_ends_the_run(server: Harness) -> None:
    error = await refusal(server.stub.ModelInfer(LONG, timeout=0.3))
    assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    async with asyncio.timeout(20):
        await server.infer(SHORT)


@pytest.mark.skipif(
    not 1 < usable_cpus() == len(allowed_cpus()),
    reason="runs are kept apart on two CPUs or more that no quota limits",
)
async def test_for_throughput_as_many_runs_as_cpus_are_kept_apart(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    endless(folder / "endless" / "1" / "model.onnx")
    config = configured(tmp_path, model_repository=folder, optimize=Optimize.THROUGHPUT)
    async with serving(config, folder) as server:
        await server.wait_ready()
        calls = [server.stub.ModelInfer(LONG) for _ in allowed_cpus()]
        async with asyncio.timeout(30):
            while not runs_kept_apart():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def runs_kept_apart() -> list[int]:
    """Returns the CPUs on which a thread stays."""
    masks = [
        os.sched_getaffinity(thread.native_id)
        for thread in threading.enumerate()
        if thread.name.startswith(THREAD_NAME) and thread.native_id is not None
    ]
    return [cpu for mask in masks if len(mask) == 1 for cpu in mask]


async def test_an_endless_run_stops_no_other_model(server: Harness) -> None:
    call = server.stub.ModelInfer(LONG)
    async with asyncio.timeout(20):
        while server_in_flight(server, "endless") == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        texts = np.array([[b"a", b"b"]], object)  # texts never run on the event loop
        assert (await server.infer(request_for("strings", x=texts)))["y"].tolist() == texts.tolist()
    assert not call.done()
    call.cancel()


def metric(server: Harness, start: str) -> float:
    lines = generate_latest(server.runtime.metrics).decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def server_in_flight(server: Harness, model: str) -> float:
    return metric(server, f'modelrail_inference_in_flight{{model="{model}"')


def failures(server: Harness, model: str, reason: str) -> float:
    start = f'nv_inference_request_failure{{model="{model}",reason="{reason}"'
    return metric(server, start)


async def test_a_stream_answers_in_order_and_outlives_errors(server: Harness) -> None:
    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for index in range(50):
            row = ROW * index if index % 7 else np.ones((1, 3), np.float32)
            yield request_for("affine", request_id=str(index), x=row)

    responses = [response async for response in server.stub.ModelStreamInfer(requests())]
    assert [response.infer_response.id for response in responses] == [str(i) for i in range(50)]
    for index, response in enumerate(responses):
        assert bool(response.error_message) == (index % 7 == 0)
        if index % 7:
            assert response.infer_response.parameters["triton_final_response"].bool_param
            got = from_raw(response.infer_response.raw_output_contents[0], "FP32", [1, 4])
            assert (got == index + 1).all()


async def test_a_stream_with_triton_grpc_error_ends_with_the_status(server: Harness) -> None:
    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        yield request_for("nope", x=ROW)

    call = server.stub.ModelStreamInfer(requests(), metadata=(("triton_grpc_error", "true"),))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is MISSING


def retry_seconds(error: grpc.aio.AioRpcError) -> float:
    """When the caller is told to come again."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    retry = RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    return retry.retry_delay.ToTimedelta().total_seconds()


async def test_an_open_stream_ends_when_the_server_stops(server: Harness) -> None:
    call = server.stub.ModelStreamInfer()
    await call.write(request_for("affine", x=ROW))
    assert not (await call.read()).error_message
    server.runtime.stopping.set()
    for answer in (call.read(), server.stub.ServerLive(pb.ServerLiveRequest())):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "Server exiting"
        # Another server may answer at once.
        assert ("grpc-retry-pushback-ms", "100") in list(caught.value.trailing_metadata())
        assert retry_seconds(caught.value) == 0.1


async def test_metadata_and_configuration_say_what_the_graph_says(server: Harness) -> None:
    metadata = await server.stub.ModelMetadata(pb.ModelMetadataRequest(name="affine"))
    assert (metadata.platform, list(metadata.versions)) == ("onnxruntime_onnx", ["1"])
    assert dict(metadata.properties) == {"execution_provider": "cpu"}
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("x", "FP32", [-1, 4])
    ]
    config = (await server.stub.ModelConfig(pb.ModelConfigRequest(name="affine"))).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (64, [4])
    assert config.parameters["execution_provider"].string_value == "cpu"
    assert "labels" in config.parameters["modelrail.output_spec"].string_value
    unbatched = await server.stub.ModelConfig(pb.ModelConfigRequest(name="endless"))
    assert unbatched.config.max_batch_size == 0


def masked(path: Path) -> None:
    """y = x · mask, of any length."""
    save(
        path,
        [helper.make_node("Mul", ["x", "mask"], ["y"])],
        [value("x", FLOAT, ["n", "length"]), value("mask", FLOAT, ["n", "length"])],
        [value("y", FLOAT, ["n", "length"])],
    )


MASKED = """
max_batch_size: 8
dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 10 }
instance_group { count: 8 }
model_warmup { name: "s" batch_size: 2
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [4] zero_data: true } } }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
parameters { key: "batch_buckets" value { string_value: "[2, 8]" } }
parameters { key: "reject_nonfinite" value { string_value: "true" } }
parameters { key: "padding" value { string_value:
  '{"edges": [4, 8], "inputs": {"x": {"axis": 1, "value": 3}}, "outputs": {"y": 1}, "mask": "mask"}'
} }
"""


@pytest.mark.parametrize(
    ("make", "text"), [(masked, MASKED), (affine, ""), (endless, ""), (affine, "max_batch_size: 2")]
)
async def test_the_configuration_that_is_shown_can_be_used_as_one(
    tmp_path: Path, make: Any, text: str
) -> None:
    folder = tmp_path / "models" / "m"
    make(folder / "1" / "model.onnx")
    if text:
        (folder / "config.pbtxt").write_text(text)
    config = configured(tmp_path, model_repository=folder.parent, run_threads=2)
    async with serving(config, folder.parent) as server:
        await server.wait_ready()
        shown = (await server.stub.ModelConfig(pb.ModelConfigRequest(name="m"))).config
        assert shown.instance_group[0].count == 2
        if make is masked:
            assert shown.parameters["batch_buckets"].string_value == "[2, 8]"
            assert shown.parameters["reject_nonfinite"].string_value == "true"
            assert '"value": 3' in shown.parameters["padding"].string_value
            assert [tensor.name for tensor in shown.input] == ["x"]
        (folder / "config.pbtxt").write_text(text_format.MessageToString(shown))
        await server.load("m")
        again = (await server.stub.ModelConfig(pb.ModelConfigRequest(name="m"))).config
        shown.parameters.pop("batching_off", None)  # now the configuration decides
        assert again == shown


@pytest.mark.parametrize(("count", "expected"), [(0, 3), (1, 1), (2, 2), (8, 3)])
async def test_as_many_instances_are_shown_as_there_are(
    tmp_path: Path, count: int, expected: int
) -> None:
    folder = tmp_path / "models" / "m"
    affine(folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(
        f"max_batch_size: 8 instance_group {{ kind: KIND_CPU count: {count} }}"
    )
    config = configured(tmp_path, model_repository=folder.parent, run_threads=3)
    async with serving(config, folder.parent) as server:
        await server.wait_ready()
        shown = (await server.stub.ModelConfig(pb.ModelConfigRequest(name="m"))).config
        assert shown.instance_group[0].count == expected


async def test_statistics_count_items_runs_and_failures(server: Harness) -> None:
    await server.infer(request_for("affine", x=np.ones((3, 4), np.float32)))
    await server.infer(request_for("affine", x=ROW))
    await refusal(server.stub.ModelInfer(broken(shape=[1, 3])))
    reply = await server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="affine"))
    (found,) = reply.model_stats
    stats = found.inference_stats
    assert (found.inference_count, found.execution_count, found.version) == (4, 2, "1")
    assert stats.success.count == stats.queue.count == 2
    assert stats.compute_input.count == stats.compute_infer.count == stats.compute_output.count == 2
    assert stats.fail.count == 1
    assert [batch.batch_size for batch in found.batch_stats] == [1, 3]
    assert found.last_inference > 1_600_000_000_000
    error = await refusal(server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="nope")))
    assert error.code() is ARGUMENT
    assert error.details() == "requested model 'nope' is not available"


async def test_only_loaded_models_become_labels(server: Harness) -> None:
    before = len(generate_latest(server.runtime.metrics))
    for index in range(50):
        await refusal(server.stub.ModelInfer(request_for(f"random-{index}", x=ROW)))
    text = generate_latest(server.runtime.metrics).decode()
    assert "random-" not in text
    assert len(text) < before + 5000
    assert "nv_inference_count_total" not in text
    assert 'nv_inference_count{model="affine",version="1"}' in text
    assert (
        'modelrail_inference_provider_info{model="affine",provider="cpu",version="1"} 1.0' in text
    )


async def test_the_size_of_a_version_has_its_weights_in_it_wherever_they_lie(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "models" / "m" / "1"
    affine(folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    weights = np.ones(4096, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.save(
        model, str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data"
    )
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert written > weights.nbytes
    async with serving(
        configured(tmp_path, model_repository=tmp_path / "models"), folder
    ) as server:
        await server.wait_ready()
        text = generate_latest(server.runtime.metrics).decode()
        name = 'modelrail_inference_loaded_file_bytes{model="m",version="1"}'
        assert f"{name} {float(written)}\n" in text


async def test_readiness_of_models_and_server(server: Harness) -> None:
    ready = await server.stub.ModelReady(pb.ModelReadyRequest(name="affine"))
    unknown = await server.stub.ModelReady(pb.ModelReadyRequest(name="nope"))
    assert (ready.ready, unknown.ready) == (True, False)
    assert server.runtime.health.serving("infer/affine")
    metadata = await server.stub.ServerMetadata(pb.ServerMetadataRequest())
    assert "statistics" in metadata.extensions
    assert "classification" not in metadata.extensions


async def test_an_unloaded_model_is_unavailable_until_it_is_loaded(server: Harness) -> None:
    await server.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="affine"))
    error = await refusal(server.stub.ModelInfer(request_for("affine", x=ROW)))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "is not at ready state" in str(error.details())
    assert (await server.stub.ServerReady(pb.ServerReadyRequest())).ready
    await server.load("affine")
    assert (await server.infer(request_for("affine", x=ROW)))["y"].shape == (1, 4)


async def index_of(server: Harness, model: str) -> list[tuple[str, str, str]]:
    index = await server.stub.RepositoryIndex(pb.RepositoryIndexRequest())
    return [(m.version, m.state, m.reason) for m in index.models if m.name == model]


@pytest.mark.parametrize("content", [b"", b"not an onnx file", b"\0" * 500, b"\x08\x08:\xff"])
async def test_a_failed_version_never_disturbs_the_one_that_serves(
    server: Harness, content: bytes
) -> None:
    stop = asyncio.Event()

    async def ask() -> int:
        count = 0
        while not stop.is_set():
            assert (await server.infer(request_for("affine", x=ROW)))["y"].tolist() == [[2.0] * 4]
            count += 1
        return count

    asking = asyncio.create_task(ask())
    path = server.repository / "affine" / "2" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(content)
    error = await refusal(
        server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="affine"))
    )
    stop.set()
    assert await asking > 0
    assert error.code() is ARGUMENT
    assert str(path.parent) not in str(error.details())
    rows = await index_of(server, "affine")
    assert rows[0] == ("1", "READY", "")
    assert rows[1][:2] == ("2", "UNAVAILABLE")
    assert rows[1][2]


async def test_a_swap_loses_no_request(server: Harness) -> None:
    stop = asyncio.Event()
    seen: list[list[float]] = [[] for _ in range(4)]

    async def ask(answers: list[float]) -> None:
        while not stop.is_set():
            answers.append(float((await server.infer(request_for("affine", x=ROW)))["y"][0, 0]))

    async with asyncio.TaskGroup() as tasks:
        for answers in seen:
            tasks.create_task(ask(answers))
        affine(server.repository / "affine" / "2" / "model.onnx", added=100)
        await server.load("affine")
        assert (await server.infer(request_for("affine", x=ROW)))["y"][0, 0] == 101
        stop.set()
    for answers in seen:  # nobody gets an answer of the old version after one of the new
        assert set(answers) <= {2.0, 101.0}
        assert answers == sorted(answers)


async def test_a_load_that_outlasts_its_caller_serves_afterwards(
    server: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load, loads = Gate(), loader_module.SessionLoader.load, []

    def held(loader: Any, definition: Any) -> Any:
        loads.append(definition.number)
        gate.wait()
        return load(loader, definition)

    monkeypatch.setattr(loader_module.SessionLoader, "load", held)
    affine(server.repository / "affine" / "2" / "model.onnx", added=100)
    request = pb.RepositoryModelLoadRequest(model_name="affine")
    call = server.stub.RepositoryModelLoad(request, timeout=5)
    await gate.reached.wait()
    call.cancel()
    await refusal(server.stub.RepositoryModelLoad(request, timeout=0.2))
    gate.open()
    await server.load("affine")
    assert (await server.infer(request_for("affine", x=ROW)))["y"].tolist() == [[101.0] * 4]
    assert loads == [2]


async def test_loads_and_unloads_at_the_same_time_end_in_one_of_the_two(server: Harness) -> None:
    unload = pb.RepositoryModelUnloadRequest(model_name="affine")
    calls = [
        server.load("affine") if turn % 2 else server.stub.RepositoryModelUnload(unload)
        for turn in range(20)
    ]
    await asyncio.gather(*calls)
    await server.load("affine")
    assert (await server.infer(request_for("affine", x=ROW)))["y"].shape == (1, 4)


async def test_overrides_and_foreign_repositories_are_refused(server: Harness) -> None:
    for key in ("config", "file:1/model.onnx", "other"):
        request = pb.RepositoryModelLoadRequest(model_name="affine")
        request.parameters[key].string_param = "{}"
        assert (await refusal(server.stub.RepositoryModelLoad(request))).code() is ARGUMENT
    request = pb.RepositoryModelLoadRequest(model_name="affine", repository_name="other")
    assert (await refusal(server.stub.RepositoryModelLoad(request))).code() is NOT_OFFERED
    for name in ("nope", "../models", "a" * 300, ""):
        load = pb.RepositoryModelLoadRequest(model_name=name)
        assert (await refusal(server.stub.RepositoryModelLoad(load))).code() is MISSING


@pytest.mark.parametrize(
    "method",
    ["SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings"],
)
async def test_methods_that_are_not_offered_say_so(server: Harness, method: str) -> None:
    error = await refusal(getattr(server.stub, method)(getattr(pb, f"{method}Request")()))
    assert error.code() is NOT_OFFERED
    assert method in str(error.details())


def test_every_method_has_a_policy_row() -> None:
    methods = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert set(POLICY) == {f"/{SERVICE}/{method.name}" for method in methods}


async def test_a_single_file_is_served_under_its_name(tmp_path: Path) -> None:
    affine(tmp_path / "My Model.onnx")
    config = configured(tmp_path, model=tmp_path / "My Model.onnx")
    async with serving(config, tmp_path) as server:
        assert (await server.infer(request_for("my-model", x=ROW)))["y"].tolist() == [[2.0] * 4]


@pytest.mark.parametrize("content", [b"", b"not an onnx file"])
async def test_a_file_that_is_no_model_stops_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ConfigError, match="failed to load 'bad'"):
        async with build(configured(tmp_path, model=tmp_path / "bad.onnx"), Runtime("inference")):
            pass


@pytest.mark.skipif(loads(Provider.CUDA), reason="CUDA loads on this machine")
async def test_a_provider_that_does_not_load_stops_the_start(tmp_path: Path) -> None:
    affine(tmp_path / "m.onnx")
    config = configured(tmp_path, model=tmp_path / "m.onnx", provider=Provider.CUDA)
    with pytest.raises(ConfigError, match="'cuda' does not load"):
        async with build(config, Runtime("inference")):
            pass


async def provider_that_answers(server: Harness) -> str:
    assert (await server.infer(request_for("m", x=ROW)))["y"].tolist() == [[2.0] * 4]
    found = (await server.stub.ModelConfig(pb.ModelConfigRequest(name="m"))).config
    return str(found.parameters["execution_provider"].string_value)


@pytest.mark.gpu
@pytest.mark.skipif(not loads(Provider.CUDA), reason="CUDA does not load here")
async def test_cuda_runs_the_model_and_says_so(tmp_path: Path) -> None:
    affine(tmp_path / "m.onnx")
    config = configured(tmp_path, model=tmp_path / "m.onnx", provider=Provider.AUTO)
    async with serving(config, tmp_path) as server:
        assert await provider_that_answers(server) == "cuda"


async def test_auto_serves_on_the_processor_what_a_gpu_runs_nothing_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a GPU that loads and takes no operator: the sessions for it are the processor's."""
    for module in (service_module, loader_module):
        monkeypatch.setattr(
            module, "resolve", lambda wanted: Provider.CUDA if wanted is Provider.AUTO else wanted
        )
    on_cpu = provider_chain(Provider.CPU, None)
    monkeypatch.setattr(session_module, "provider_chain", lambda *_: on_cpu)
    affine(tmp_path / "m.onnx")
    config = configured(tmp_path, model=tmp_path / "m.onnx", provider=Provider.AUTO)
    async with serving(config, tmp_path) as server:
        assert await provider_that_answers(server) == "cpu"
    config = configured(tmp_path, model=tmp_path / "m.onnx", provider=Provider.CUDA)
    with pytest.raises(ConfigError, match="'cuda' takes no operator of the model"):
        async with build(config, Runtime("inference")):
            pass


async def test_a_full_queue_refuses_with_a_hint(tmp_path: Path) -> None:
    endless(tmp_path / "m.onnx")
    config = configured(tmp_path, model=tmp_path / "m.onnx", max_queue_items=0)
    long = request_for("m", steps=np.array(2**40), x=np.zeros(1, np.float32))
    async with serving(config, tmp_path) as server, asyncio.timeout(20):
        first = server.stub.ModelInfer(long)
        while server_in_flight(server, "m") == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        error = await refusal(server.stub.ModelInfer(long))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "Exceeds maximum queue size"
        assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata() or ())
        first.cancel()


async def test_tritonclient_works_in_the_same_process(server: Harness) -> None:
    client_module = pytest.importorskip("tritonclient.grpc.aio")
    async with client_module.InferenceServerClient(server.address) as client:
        assert await client.is_server_ready()
        tensor = client_module.InferInput("x", [1, 2], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"a\0b", b""]], dtype=object))
        result = await client.infer("strings", [tensor], request_id="7")
        assert result.as_numpy("y").tolist() == [[b"a\0b", b""]]

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for index in range(5):
                row = client_module.InferInput("x", [1, 4], "FP32")
                row.set_data_from_numpy(ROW * index)
                yield {"model_name": "affine", "inputs": [row], "request_id": str(index)}

        seen = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            seen.append(float(result.as_numpy("y")[0, 0]))
        assert seen == [1, 2, 3, 4, 5]


def negation(path: Path) -> None:
    """y = not x for rows of 4."""
    save(
        path,
        [helper.make_node("Not", ["x"], ["y"])],
        [value("x", TensorProto.BOOL, ["n", 4])],
        [value("y", TensorProto.BOOL, ["n", 4])],
    )


async def test_flags_on_the_wire_are_0_or_1(tmp_path: Path) -> None:
    negation(tmp_path / "m.onnx")
    async with serving(configured(tmp_path, model=tmp_path / "m.onnx"), tmp_path) as server:
        request = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\0\1\2\xff"])
        request.inputs.add(name="x", datatype="BOOL", shape=[1, 4])
        error = await refusal(server.stub.ModelInfer(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "input 'x': expected 0 or 1 for BOOL, got 2 at element 2"
        request.raw_input_contents[0] = b"\0\1\1\0"
        response = await server.stub.ModelInfer(request)
        assert response.raw_output_contents[0] == b"\1\0\0\1"
        # Typed flags are numbers of protobuf, which are true where they are not 0.
        typed = pb.ModelInferRequest(model_name="m")
        tensor = typed.inputs.add(name="x", datatype="BOOL", shape=[1, 4])
        tensor.contents.MergeFromString(b"\x0a\x05\x00\x01\x02\xff\x01")
        response = await server.stub.ModelInfer(typed)
        assert response.raw_output_contents[0] == b"\1\0\0\0"


async def test_the_server_answers_while_flags_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    negation(tmp_path / "m.onnx")
    reached, let_go = threading.Event(), threading.Event()
    real = feed._check_flags

    def slow(array: Any) -> None:
        reached.set()
        assert let_go.wait(10), "the event loop did this itself"
        real(array)

    async with serving(configured(tmp_path, model=tmp_path / "m.onnx"), tmp_path) as server:
        monkeypatch.setattr(feed, "_check_flags", slow)
        flags = np.zeros((64, 4), bool)
        asked = asyncio.create_task(server.infer(request_for("m", x=flags)))
        async with asyncio.timeout(10):
            while not reached.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert (await server.stub.ServerLive(pb.ServerLiveRequest())).live
        let_go.set()
        assert (await asked)["y"].all()


@pytest.mark.parametrize("where", ["decode", "encode"])
async def test_the_server_answers_while_strings_are_turned_over(
    server: Harness, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    reached, let_go = threading.Event(), threading.Event()
    module, name = (feed, "_to_strings") if where == "decode" else (encode, "to_raw")
    real = getattr(module, name)

    def slow(*arguments: Any) -> Any:
        reached.set()
        assert let_go.wait(10), "the event loop did this itself"
        return real(*arguments)

    monkeypatch.setattr(module, name, slow)
    text = np.array([[b"a", b"b"]], dtype=object)
    asked = asyncio.create_task(server.infer(request_for("strings", x=text)))
    async with asyncio.timeout(10):
        while not reached.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (await server.stub.ServerLive(pb.ServerLiveRequest())).live
    let_go.set()
    assert (await asked)["y"].tolist() == text.tolist()


async def test_what_is_refused_is_not_decoded_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo(tmp_path / "m.onnx", STRING, ["n", 2])
    config = configured(tmp_path, model=tmp_path / "m.onnx", max_queue_bytes=10_000)

    def never(*arguments: Any) -> Any:
        raise AssertionError("decoded")

    async with serving(config, tmp_path) as server:
        monkeypatch.setattr(feed, "array_of", never)
        typed = pb.ModelInferRequest(model_name="m")
        text = typed.inputs.add(name="x", datatype="BYTES", shape=[1, 2]).contents.bytes_contents
        text.extend([b"a" * 20_000, b""])
        many = request_for("m", x=np.full((50, 2), b"a", dtype=object))
        for request in (typed, many):
            expected = grpc.StatusCode.RESOURCE_EXHAUSTED, "bytes once they are decoded"
            error = await refusal(server.stub.ModelInfer(request))
            assert (error.code(), expected[1] in str(error.details())) == (expected[0], True)
        late = request_for("m", x=np.full((1, 2), b"a", dtype=object))
        error = await refusal(server.stub.ModelInfer(late, timeout=0))
        # The server may say so before the client notices by itself.
        assert error.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}


async def test_a_reply_beyond_the_limit_names_its_outputs(tmp_path: Path) -> None:
    save(
        tmp_path / "m.onnx",
        [helper.make_node("Concat", ["x"] * 8, ["y"], axis=1)],
        [value("x", FLOAT, ["n", 64])],
        [value("y", FLOAT, ["n", 512])],
    )
    config = configured(tmp_path, model=tmp_path / "m.onnx", max_message_bytes=4096)
    async with serving(config, tmp_path) as server:
        one = request_for("m", x=np.ones((1, 64), np.float32))
        assert (await server.infer(one))["y"].shape == (1, 512)
        two = request_for("m", request_id="r", x=np.ones((2, 64), np.float32))
        error = await refusal(server.stub.ModelInfer(two))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "reply of at most" in str(error.details())
        assert "'y' 4" in str(error.details())
        responses = server.stub.ModelStreamInfer(iter_of(two, one))
        assert [bool(response.error_message) async for response in responses] == [True, False]


async def iter_of(*requests: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    for request in requests:
        yield request


async def test_a_folder_that_cannot_be_read_keeps_no_other_from_serving(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    affine(folder / "b" / "1" / "model.onnx")
    (folder / "a" / "1").mkdir(parents=True)
    (folder / "a" / "1" / "model.onnx").symlink_to(tmp_path / "nothing")
    (folder / "not a name").mkdir()
    with structlog.testing.capture_logs() as logs:
        async with (
            serving(configured(tmp_path, model_repository=folder), folder) as server,
            asyncio.timeout(20),
        ):
            while not server.runtime.health.serving("infer/b"):  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert (await server.infer(request_for("b", x=ROW)))["y"].shape == (1, 4)
            assert not (await server.stub.ServerReady(pb.ServerReadyRequest())).ready
            reasons = [row[2] for _ in range(3) for row in await index_of(server, "a")]
            error = await refusal(server.load("a"))
    assert reasons == ["the model's files cannot be read: No such file or directory"] * 3
    assert reasons[0] in str(error.details())
    assert error.code() is ARGUMENT
    assert sum(line["event"] == "folder skipped" for line in logs) == 1


async def test_a_model_whose_folder_is_gone_is_forgotten_when_it_is_unloaded(
    server: Harness,
) -> None:
    unload = pb.RepositoryModelUnloadRequest(model_name="affine")
    await server.stub.RepositoryModelUnload(unload)
    assert server.runtime.health.serving("infer/affine") is False
    await server.load("affine")
    shutil.rmtree(server.repository / "affine")
    await server.stub.RepositoryModelUnload(unload)
    assert server.runtime.health.serving("infer/affine") is None
    assert await index_of(server, "affine") == []


async def test_a_source_that_dies_is_told_at_once_and_not_when_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(source: FolderSource) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(FolderSource, "run", die)
    with structlog.testing.capture_logs() as logs:
        async with serving(configured(tmp_path, model_repository=tmp_path), tmp_path) as server:
            await server.stub.ServerLive(pb.ServerLiveRequest())
            told = [line for line in logs if line["event"] == "models are no longer followed"]
            assert isinstance(told[0]["exc_info"], KeyError)


async def test_a_file_inside_the_folder_of_copies_stays(tmp_path: Path) -> None:
    mine = tmp_path / "data" / "files" / "mine" / "copy-1" / "model.onnx"
    affine(mine)
    config = configured(tmp_path, model=mine, model_name="mine")
    for _ in range(2):
        async with serving(config, tmp_path) as server:
            assert (await server.infer(request_for("mine", x=ROW)))["y"].tolist() == [[2.0] * 4]
    assert mine.is_file()
    assert len([path for path in mine.parents[1].iterdir() if path.is_dir()]) == 2


async def test_loads_of_one_file_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    affine(tmp_path / "m.onnx")
    async with serving(configured(tmp_path, model=tmp_path / "m.onnx"), tmp_path) as server:
        affine(tmp_path / "m.onnx", added=5)
        await asyncio.gather(*(server.load("m") for _ in range(8)))
        assert (await server.infer(request_for("m", x=ROW)))["y"].tolist() == [[6.0] * 4]
        # External data changes the model as much as the graph does.
        before = await copies(tmp_path)
        (tmp_path / "m.onnx.data").write_bytes(b"x")
        await server.load("m")
        assert await copies(tmp_path) != before


async def copies(folder: Path) -> list[str]:
    return [path.name for path in (folder / "data" / "files" / "m").iterdir() if path.is_dir()]


async def test_a_model_that_finds_any_number_of_things_answers_with_what_it_finds(
    tmp_path: Path,
) -> None:
    """Its output has a first dimension of any size that is no batch: nobody's rows are mixed."""
    save(
        tmp_path / "found.onnx",
        [
            helper.make_node("NonZero", ["x"], ["i"]),
            helper.make_node("Transpose", ["i"], ["y"], perm=[1, 0]),
        ],
        [value("x", FLOAT, ["n", 4])],
        [value("y", INT64, ["found", 2])],
    )
    async with serving(configured(tmp_path, model=tmp_path / "found.onnx"), tmp_path) as server:
        rows = np.array([[0, 5, 0, 6]], np.float32)
        found = await server.infer(request_for("found", x=rows))
        assert found["y"].tolist() == [[0, 1], [0, 3]]
        config = (await server.stub.ModelConfig(pb.ModelConfigRequest(name="found"))).config
        assert not config.HasField("dynamic_batching")
        assert config.parameters["batching_off"].string_value


@pytest.mark.parametrize(
    ("node", "domain", "reason"),
    [
        (
            helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example"),
            "com.example",
            "com.example:Frobnicate(-1) is not a registered function/op",
        ),
        (
            helper.make_node(
                "EPContext",
                ["x"],
                ["y"],
                domain="com.microsoft",
                embed_mode=0,
                ep_cache_context="/etc/hostname",
                source="CPUExecutionProvider",
            ),
            "com.microsoft",
            "EPContext node",
        ),
    ],
    ids=["operator of a library", "compiled for a provider, in another file"],
)
async def test_a_graph_that_asks_for_code_beside_it_is_refused_with_the_reason(
    tmp_path: Path, node: Any, domain: str, reason: str
) -> None:
    folder = tmp_path / "models"
    affine(folder / "affine" / "1" / "model.onnx")
    graph = helper.make_graph(
        [node], "g", [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 4])]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    bad = folder / "bad" / "1" / "model.onnx"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    )
    async with serving(configured(tmp_path, model_repository=folder), folder) as server:
        await server.load("affine")
        error = await refusal(
            server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="bad"))
        )
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason in (error.details() or "")
        assert "/etc" not in (error.details() or "")
        assert (await server.infer(request_for("affine", x=ROW)))["y"].shape == (1, 4)
