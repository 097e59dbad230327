"""Models from a registry: waited for, swapped, and served on when the registry is gone."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import onnx
import pytest
import structlog
import trustme
from onnx import TensorProto, helper

from modelrail.client.channel import Connection
from modelrail.client.registry import AsyncRegistryClient
from modelrail.oip.v2 import grpc_service_pb2 as pb
from modelrail.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from modelrail.registry.v1 import registry_pb2
from modelrail.tensor import from_raw, to_raw
from modelrail_inference.config import InferenceConfig
from modelrail_inference.model.definition import LoadedModel, LoadError, VersionDefinition
from modelrail_inference.model.provider import Provider
from modelrail_inference.runtime.loader import SessionLoader
from modelrail_inference.service import build
from modelrail_registry.__main__ import build as build_registry
from modelrail_registry.config import RegistryConfig
from modelrail_server.access.api_keys import new_key, write_keys
from modelrail_server.application import Runtime
from modelrail_server.config import ConfigError
from modelrail_server.policy import Permission
from modelrail_server.server import start_server

ALIAS = "models/line/aliases/production"


@asynccontextmanager
async def registry(folder: Path, **settings: Any) -> AsyncIterator[AsyncRegistryClient]:
    config = RegistryConfig(
        **{"grpc_address": f"unix:{folder}/r", "data_dir": folder / "registry", **settings}
    )
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
async def inference(folder: Path, *serve: str, **settings: Any) -> AsyncIterator[Any]:
    config = InferenceConfig(
        **{
            "grpc_address": f"unix:{folder}/i",
            "data_dir": folder / "inference",
            "registry": f"unix:{folder}/r",
            "serve": serve or ("line",),
            "provider": Provider.CPU,
            **settings,
        }
    )
    runtime = Runtime("inference")
    async with build(config, runtime) as application:
        server, address = await start_server(application, config, runtime)
        async with grpc.aio.insecure_channel(address) as channel:
            yield GRPCInferenceServiceStub(channel)
        runtime.stopping.set()
        await server.stop(0)


def save(path: Path, added: float) -> Path:
    """y = x + added."""
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 1]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "g",
        info[:1],
        info[1:],
        initializer=[helper.make_tensor("c", TensorProto.FLOAT, [1], [added])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    return path


async def publish(
    client: AsyncRegistryClient,
    folder: Path,
    added: float,
    model: str = "line",
    alias: str = "",
    *,
    config: str = "",
) -> str:
    path = save(folder / "model.onnx", added)
    files = [await client.upload_file(path, version_path="model.onnx")]
    if config:
        (folder / "config.pbtxt").write_text(config)
        files.append(await client.upload_file(folder / "config.pbtxt", version_path="config.pbtxt"))
    version = await client.create_model_version(
        f"models/{model}", registry_pb2.ModelVersion(files=files), create_model=True
    )
    if alias:
        await client.set_alias(f"models/{model}/aliases/{alias}", version.name)
    return version.name


async def answer(stub: Any, model: str = "line") -> float:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(to_raw(np.zeros((1, 1), np.float32), "FP32"))
    response = await stub.ModelInfer(request)
    return float(from_raw(response.raw_output_contents[0], "FP32", [1, 1])[0, 0])


async def until_version(stub: Any, number: int, model: str = "line") -> None:
    request = pb.ModelReadyRequest(name=model, version=str(number))
    async with asyncio.timeout(30):
        while not (await stub.ModelReady(request)).ready:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def server_ready(stub: Any) -> bool:
    return bool((await stub.ServerReady(pb.ServerReadyRequest())).ready)


async def index_of(stub: Any, model: str) -> list[Any]:
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
    return [entry for entry in index.models if entry.name == model]


async def until_reason(stub: Any, model: str) -> str:
    async with asyncio.timeout(30):
        while True:
            for entry in await index_of(stub, model):
                if entry.reason:
                    return str(entry.reason)
            await asyncio.sleep(0)


async def test_an_alias_is_waited_for_followed_and_outlives_the_registry(tmp_path: Path) -> None:
    async with registry(tmp_path) as client:
        first = await publish(client, tmp_path, 1)
        async with inference(tmp_path) as stub:
            assert not await server_ready(stub)
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            await client.set_alias(ALIAS, first)
            await until_version(stub, 1)
            assert await server_ready(stub)
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


async def test_a_version_brings_its_configuration(tmp_path: Path) -> None:
    async with registry(tmp_path) as client:
        await publish(
            client, tmp_path, 1, alias="production",
            config="max_batch_size: 4 dynamic_batching { preferred_batch_size: 2 }",
        )  # fmt: skip
        async with inference(tmp_path) as stub:
            await until_version(stub, 1)
            shown = (await stub.ModelConfig(pb.ModelConfigRequest(name="line"))).config
            assert shown.max_batch_size == 4
            assert shown.dynamic_batching.preferred_batch_size == [2]
            # One that is wrong is refused with its field, and the last good version serves on.
            await publish(client, tmp_path, 2, alias="production", config="max_batch_size: -1")
            reason = await until_reason(stub, "line")
            assert "config.pbtxt: max_batch_size: expected a number of at least 0, got -1" in reason
            assert await answer(stub) == 1


async def test_every_model_with_the_alias_is_served_now_and_later(tmp_path: Path) -> None:
    async with registry(tmp_path) as client:
        await publish(client, tmp_path, 1, "early", "production")
        await publish(client, tmp_path, 5, "draft", "staging")
        async with inference(tmp_path, "*@production") as stub:
            await until_version(stub, 1, "early")
            await publish(client, tmp_path, 2, "late", "production")
            await until_version(stub, 1, "late")
            assert await answer(stub, "late") == 2
            await publish(client, tmp_path, 3, "late", "production")
            await until_version(stub, 2, "late")
            assert (await answer(stub, "early"), await answer(stub, "late")) == (1, 3)
            assert not await index_of(stub, "draft")
    # Without the registry a restart serves all of them from the cache, and is ready.
    async with inference(tmp_path, "*@production") as stub:
        await until_version(stub, 1, "early")
        await until_version(stub, 2, "late")
        assert (await answer(stub, "early"), await answer(stub, "late")) == (1, 3)
        async with asyncio.timeout(30):
            while not await server_ready(stub):  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_a_removed_alias_keeps_its_last_version_until_the_model_is_unloaded(
    tmp_path: Path,
) -> None:
    async with registry(tmp_path) as client:
        await publish(client, tmp_path, 1, "gone", "production")
        async with inference(tmp_path, "*@production") as stub:
            await until_version(stub, 1, "gone")
            await client.delete_alias("models/gone/aliases/production")
            # The watch is in order: when this one serves, the removal was heard of.
            await publish(client, tmp_path, 2, "next", "production")
            await until_version(stub, 1, "next")
            assert await answer(stub, "gone") == 1
        async with inference(tmp_path, "*@production") as stub:
            await until_version(stub, 1, "gone")
            await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="gone"))
        async with inference(tmp_path, "*@production") as stub:
            await until_version(stub, 1, "next")
            assert not (await stub.ModelReady(pb.ModelReadyRequest(name="gone"))).ready


async def test_a_removed_alias_keeps_its_version_beside_another_alias_that_moves(
    tmp_path: Path,
) -> None:
    async with registry(tmp_path) as client:
        await publish(client, tmp_path, 1, alias="production")
        async with inference(tmp_path, "*@production", "line@staging") as stub:
            await until_version(stub, 1)
            await client.delete_alias(ALIAS)
            await publish(client, tmp_path, 2, alias="staging")
            await until_version(stub, 2)
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="line", version="1"))).ready


async def test_a_model_that_cannot_be_loaded_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    load = SessionLoader.load

    def hang(loader: SessionLoader, definition: VersionDefinition) -> LoadedModel:
        if definition.model == "hangs":
            assert let_go.wait(60)
        if definition.model == "broken":
            raise LoadError("no good")
        return load(loader, definition)

    monkeypatch.setattr(SessionLoader, "load", hang)
    async with registry(tmp_path) as client:
        for name in ("broken", "hangs"):
            await publish(client, tmp_path, 1, name, "production")
        await publish(client, tmp_path, 2, "sound", "production")
        async with inference(tmp_path, "*@production", load_timeout_seconds=0.5) as stub:
            await until_version(stub, 1, "sound")
            assert await answer(stub, "sound") == 2
            assert await until_reason(stub, "broken") == "no good"
            assert "took longer than 0.5 s" in await until_reason(stub, "hangs")
            assert not await server_ready(stub)
            await publish(client, tmp_path, 3, "sound", "production")
            await until_version(stub, 2, "sound")
            let_go.set()


async def test_no_more_models_are_served_than_allowed(tmp_path: Path) -> None:
    async with registry(tmp_path) as client:
        for name in ("a", "b"):
            await publish(client, tmp_path, 1, name, "production")
        with structlog.testing.capture_logs() as logs:
            async with inference(tmp_path, "*@production", max_models=2) as stub:
                await until_version(stub, 1, "a")
                await until_version(stub, 1, "b")
                await publish(client, tmp_path, 1, "c", "production")
                await publish(client, tmp_path, 2, "a", "production")
                await until_version(stub, 2, "a")
                assert not await index_of(stub, "c")
        refused = [line for line in logs if "--max-models" in line["event"]]
        assert refused[0]["names"] == ["models/c/aliases/production"]


async def test_only_the_version_that_serves_and_the_one_before_stay_on_the_disk(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "inference" / "models" / "line"
    async with registry(tmp_path) as client, inference(tmp_path) as stub:
        for number in (1, 2, 3):
            await publish(client, tmp_path, number, alias="production")
            await until_version(stub, number)
            (folder / f".{number}.part").mkdir()  # what a broken download leaves
        async with asyncio.timeout(30):
            while sorted(p.name for p in folder.iterdir()) != [".2.part", ".3.part", "2", "3"]:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert [entry.version for entry in await index_of(stub, "line")] == ["2", "3"]
        assert await answer(stub) == 3


async def test_files_of_another_registry_are_replaced(tmp_path: Path) -> None:
    async with registry(tmp_path) as client, inference(tmp_path) as stub:
        await publish(client, tmp_path, 1, alias="production")
        await until_version(stub, 1)
    shutil.rmtree(tmp_path / "registry")
    async with registry(tmp_path) as client:
        await publish(client, tmp_path, 7, alias="production")
        async with inference(tmp_path) as stub, asyncio.timeout(30):
            await until_version(stub, 1)
            while await answer(stub) != 7:
                pass


def authority(folder: Path) -> dict[str, Path]:
    """PEM files for a server on this machine, by the setting that takes them."""
    root = trustme.CA()
    issued = root.issue_cert("localhost", "127.0.0.1")
    files = {name: folder / f"{name}.pem" for name in ("ca", "tls_certificate", "tls_key")}
    root.cert_pem.write_to_path(str(files["ca"]))
    issued.private_key_pem.write_to_path(str(files["tls_key"]))
    files["tls_certificate"].write_bytes(b"".join(p.bytes() for p in issued.cert_chain_pems))
    return files


async def test_a_guarded_registry_serves_those_with_a_key_and_tells_the_others_why(
    tmp_path: Path,
) -> None:
    pem = authority(tmp_path)
    keys: dict[str, str] = {}
    records = []
    for name, permissions in {
        "writer": [Permission.READ, Permission.WRITE],
        "reader": [Permission.READ],
    }.items():
        keys[name], record = new_key(name, permissions)
        records.append(record)
    write_keys(tmp_path / "keys.json", records)
    (tmp_path / "reader.key").write_text(keys["reader"] + "\n")
    guarded = {key: value for key, value in pem.items() if key != "ca"}
    async with registry(
        tmp_path, grpc_address="127.0.0.1:0", api_keys_file=tmp_path / "keys.json", **guarded
    ) as reader:
        address = reader.connection.address
        connection = Connection(address=address, api_key=keys["writer"], ca_certificate=pem["ca"])
        async with AsyncRegistryClient(connection) as writer:
            await publish(writer, tmp_path, 4, alias="production")
        trusting = {"registry": address, "registry_ca_certificate": pem["ca"]}
        key = {"registry_api_key_file": tmp_path / "reader.key"}
        async with inference(tmp_path, **trusting, **key) as stub:
            await until_version(stub, 1)
            assert await answer(stub) == 4
        with structlog.testing.capture_logs() as logs:
            empty = tmp_path / "empty"
            async with inference(tmp_path, **trusting, data_dir=empty) as stub:
                assert "UNAUTHENTICATED" in await until_reason(stub, "line")
                assert not await server_ready(stub)
                assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        retries = [line for line in logs if "retry_seconds" in line]
        assert retries
        assert all("UNAUTHENTICATED" in line["reason"] for line in retries)
        assert min(line["retry_seconds"] for line in retries) >= 0.1


async def test_a_registry_that_is_away_is_named_without_its_address(tmp_path: Path) -> None:
    async with inference(tmp_path, registry="127.0.0.1:1") as stub:
        reason = await until_reason(stub, "line")
        assert reason == "the registry cannot be reached (UNAVAILABLE)"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="line"))
        assert caught.value.details() == reason


async def test_two_services_do_not_share_a_data_directory(tmp_path: Path) -> None:
    async with inference(tmp_path):
        with pytest.raises(ConfigError, match="is in use by another inference") as caught:
            async with inference(tmp_path, grpc_address=f"unix:{tmp_path}/other"):
                pass
        assert caught.value.field == "data_dir"
