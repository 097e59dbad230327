"""A device that fails under a model: callers go elsewhere, and health has the process replaced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import onnx
import pytest
import structlog
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status
from numpy.typing import NDArray
from onnx import TensorProto, helper
from prometheus_client import generate_latest

from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from modelrail_inference.config import InferenceConfig
from modelrail_inference.model.provider import Provider
from modelrail_inference.protocol.policy import SERVICE
from modelrail_inference.runtime.session import DeviceError, Run, Session
from modelrail_inference.service import build
from modelrail_server.application import Runtime
from modelrail_server.server import start_server

BROKEN = 13.0


def save_model(path: Path) -> None:
    """y = x for rows of 2."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", "x", "y")], "g", infos[:1], infos[1:])
    path.parent.mkdir(parents=True)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))


def request_for(model: str, value: float) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.full((1, 2), value, "<f4").tobytes())
    return request


class Server:
    """A service with two models on a device that a request can break."""

    def __init__(self, runtime: Runtime, stub: Any) -> None:
        self.runtime = runtime
        self.stub = stub

    async def refusal(self, model: str, value: float) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub.ModelInfer(request_for(model, value))
        return caught.value

    async def readiness(self) -> tuple[bool, bool, bool]:
        """Whether the server is ready, the model `broken` and the model `other`."""
        models = [
            (await self.stub.ModelReady(pb.ModelReadyRequest(name=name))).ready
            for name in ("broken", "other")
        ]
        return (await self.stub.ServerReady(pb.ServerReadyRequest())).ready, models[0], models[1]

    def health(self, *names: str) -> list[bool | None]:
        return [self.runtime.health.serving(name) for name in names]


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    run = Session.run

    def fragile(
        self: Session, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], handle: Run
    ) -> list[NDArray[Any]]:
        if BROKEN in inputs["x"]:
            raise DeviceError("the device failed: CUDA failure 700")
        return run(self, inputs, outputs, handle)

    monkeypatch.setattr(Session, "run", fragile)
    for name in ("broken", "other"):
        save_model(tmp_path / "models" / name / "1" / "model.onnx")
    config = InferenceConfig(
        grpc_address=f"unix:{tmp_path}/s",
        data_dir=tmp_path / "data",
        provider=Provider.CPU,
        model_repository=tmp_path / "models",
        vouched=True,
    )
    runtime = Runtime("inference")
    async with build(config, runtime) as application:
        started, address = await start_server(application, config, runtime)
        async with grpc.aio.insecure_channel(address) as channel:
            server = Server(runtime, GRPCInferenceServiceStub(channel))
            while not (await server.stub.ServerReady(pb.ServerReadyRequest())).ready:
                pass
            yield server
        runtime.stopping.set()
        await started.stop(0)


async def test_a_caller_who_meets_a_failed_device_is_sent_elsewhere(server: Server) -> None:
    error = await server.refusal("broken", BROKEN)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "model 'broken': the device failed: CUDA failure 700" in str(error.details())
    info, retry = ErrorInfo(), RetryInfo()
    details: Any = rpc_status.from_call(error)
    for detail in details.details:
        for one in (info, retry):
            detail.Unpack(one)
    assert info.reason == "DEVICE_FAILED"
    assert retry.retry_delay.seconds == 1
    text = generate_latest(server.runtime.metrics).decode()
    counted = 'nv_inference_request_failure{model="broken",reason="BACKEND",version="1"} 1.0'
    assert counted in text


async def test_health_has_a_process_replaced_whose_device_failed(server: Server) -> None:
    names = ("", SERVICE, "infer/broken", "infer/other")
    assert server.health(*names) == [True] * 4
    assert await server.readiness() == (True, True, True)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            await server.refusal("broken", BROKEN)
    told = [line for line in logs if line["log_level"] == "error"]
    assert [(line["event"], line["model"]) for line in told] == [("device failed", "broken")]
    assert server.health(*names) == [False, False, False, True]
    assert await server.readiness() == (False, False, True)


async def test_a_model_that_was_loaded_anew_on_a_device_that_works_serves(server: Server) -> None:
    await server.refusal("broken", BROKEN)
    await server.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="broken"))
    await server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="broken"))
    assert server.health("", SERVICE, "infer/broken") == [True] * 3
    assert await server.readiness() == (True, True, True)
    assert (await server.stub.ModelInfer(request_for("broken", 1.0))).outputs[0].name == "y"
