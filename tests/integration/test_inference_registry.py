"""Models from a registry: waited for, swapped, and served on when the registry is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import onnx
from modelrail.client.registry import AsyncRegistryClient
from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from modelrail.registry.v1 import registry_pb2
from modelrail.tensor import from_raw, to_raw
from modelrail_inference.__main__ import build
from modelrail_inference.config import InferenceConfig
from modelrail_inference.runtime.provider import Provider
from modelrail_registry.__main__ import build as build_registry
from modelrail_registry.config import RegistryConfig
from modelrail_server.application import Runtime
from modelrail_server.server import start_server
from onnx import TensorProto, helper

ALIAS = "models/line/aliases/production"


@asynccontextmanager
async def registry(folder: Path) -> AsyncIterator[AsyncRegistryClient]:
    config = RegistryConfig(grpc_address=f"unix:{folder}/r", data_dir=folder / "registry")
    runtime = Runtime("registry")
    async with build_registry(config, runtime) as application:
        server, address = await start_server(application, config, runtime)
        try:
            async with AsyncRegistryClient(address) as client:
                yield client
        finally:
            runtime.stopping.set()
            await server.stop(0)


@asynccontextmanager
async def inference(folder: Path) -> AsyncIterator[Any]:
    config = InferenceConfig(
        grpc_address=f"unix:{folder}/i",
        data_dir=folder / "inference",
        registry=f"unix:{folder}/r",
        serve=("line",),
        provider=Provider.CPU,
    )
    runtime = Runtime("inference")
    async with build(config, runtime) as application:
        server, address = await start_server(application, config, runtime)
        async with grpc.aio.insecure_channel(address) as channel:
            yield GRPCInferenceServiceStub(channel)
        runtime.stopping.set()
        await server.stop(0)


async def publish(client: AsyncRegistryClient, folder: Path, added: float) -> str:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 1]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "g",
        info[:1],
        info[1:],
        initializer=[helper.make_tensor("c", TensorProto.FLOAT, [1], [added])],
    )
    path = folder / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    file = await client.upload_file(path, version_path="model.onnx")
    version = await client.create_model_version(
        "models/line", registry_pb2.ModelVersion(files=[file]), create_model=True
    )
    return version.name


async def answer(stub: Any) -> float:
    request = pb.ModelInferRequest(model_name="line")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(to_raw(np.zeros((1, 1), np.float32), "FP32"))
    response = await stub.ModelInfer(request)
    return float(from_raw(response.raw_output_contents[0], "FP32", [1, 1])[0, 0])


async def until_version(stub: Any, number: int) -> None:
    request = pb.ModelReadyRequest(name="line", version=str(number))
    async with asyncio.timeout(30):
        while not (await stub.ModelReady(request)).ready:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_an_alias_is_waited_for_followed_and_outlives_the_registry(tmp_path: Path) -> None:
    async with registry(tmp_path) as client:
        first = await publish(client, tmp_path, 1)
        async with inference(tmp_path) as stub:
            assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            await client.set_alias(ALIAS, first)
            await until_version(stub, 1)
            assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert await answer(stub) == 1
            await client.set_alias(ALIAS, await publish(client, tmp_path, 2))
            await until_version(stub, 2)
            assert await answer(stub) == 2
    async with inference(tmp_path) as stub:
        await until_version(stub, 2)
        assert await answer(stub) == 2
    # What is damaged on the disk is not served.
    (tmp_path / "inference/models/line/2/model.onnx").write_bytes(b"damaged")
    async with registry(tmp_path), inference(tmp_path) as stub:
        await until_version(stub, 2)
        assert await answer(stub) == 2
