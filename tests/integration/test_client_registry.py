"""The registry's client against a real registry."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from modelrail.client import (
    Aborted,
    AlreadyExists,
    AsyncRegistryClient,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RegistryClient,
    Unavailable,
)
from modelrail.client.backoff import Backoff
from modelrail.client.upload import CHUNK_BYTES, MAXIMUM_FRUITLESS_ATTEMPTS
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.registry.v1 import registry_pb2_grpc as pb_grpc
from modelrail_registry.__main__ import build
from modelrail_registry.config import RegistryConfig
from modelrail_server.application import Runtime
from modelrail_server.server import start_server


@asynccontextmanager
async def serving(tmp_path: Path, socket: str = "registry.sock") -> AsyncIterator[str]:
    config = RegistryConfig(
        grpc_address=f"unix:{tmp_path / socket}",
        metrics_address="127.0.0.1:0",
        data_dir=tmp_path / "registry",
    )
    runtime = Runtime("registry")
    async with build(config, runtime) as application:
        server, address = await start_server(application, config, runtime)
        try:
            yield address
        finally:
            runtime.stopping.set()
            await server.stop(None)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[AsyncRegistryClient]:
    async with serving(tmp_path) as address, AsyncRegistryClient(address) as client:
        yield client


def random_file(path: Path, size_bytes: int) -> Path:
    path.write_bytes(os.urandom(size_bytes))
    return path


async def uploaded(registry: AsyncRegistryClient, path: Path) -> pb.File:
    return await registry.upload_file(path, version_path="weights.bin")


async def test_models_are_created_listed_and_changed(registry: AsyncRegistryClient) -> None:
    model = await registry.create_model("digits", description="ten of them")
    assert model.name == "models/digits"
    assert [found.name async for found in registry.list_models()] == ["models/digits"]
    model.description = "all of them"
    changed = await registry.update_model(model, paths=["description"])
    assert changed.description == "all of them"
    assert await registry.get_model("models/digits") == changed


async def test_pages_are_followed_to_the_end(
    registry: AsyncRegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelrail.client.registry._PAGE_SIZE", 2)
    names = [f"m{index}" for index in range(5)]
    for name in names:
        await registry.create_model(name)
    assert [found.name async for found in registry.list_models()] == [
        f"models/{name}" for name in names
    ]


async def test_errors_have_types_and_details(registry: AsyncRegistryClient) -> None:
    with pytest.raises(NotFound) as missing:
        await registry.get_model("models/nope")
    assert missing.value.request_id
    assert missing.value.reason
    with pytest.raises(InvalidArgument) as wrong:
        await registry.get_model("models/../etc")
    assert wrong.value.violations
    await registry.create_model("digits")
    with pytest.raises(AlreadyExists):
        await registry.create_model("digits")


async def test_a_repeated_creation_with_one_request_id_is_one_creation(
    registry: AsyncRegistryClient,
) -> None:
    request_id = "7f1b4b0e-6d6c-4f0e-9d5f-2f3c4d5e6f70"
    first = await registry.create_model("digits", request_id=request_id)
    assert await registry.create_model("digits", request_id=request_id) == first


async def test_a_file_travels_up_and_down_unchanged(
    registry: AsyncRegistryClient, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "source", 3 * CHUNK_BYTES + 17)
    seen: list[tuple[int, int]] = []
    file = await registry.upload_file(
        source,
        version_path="a/weights.bin",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert file.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert seen[0][0] == 0
    assert seen[-1] == (file.size_bytes, file.size_bytes)
    assert seen == sorted(seen)
    target = await registry.download_file(file, tmp_path / "out")
    assert target == (tmp_path / "out" / "a" / "weights.bin").resolve()
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["weights.bin"]


async def test_an_empty_file_travels_too(registry: AsyncRegistryClient, tmp_path: Path) -> None:
    source = random_file(tmp_path / "source", 0)
    try:
        file = await uploaded(registry, source)
    except InvalidArgument:
        pytest.skip("the registry takes no empty blobs")
    assert (await registry.download_file(file, tmp_path / "out")).read_bytes() == b""


async def test_an_upload_goes_on_where_another_stopped(
    registry: AsyncRegistryClient, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "source", 4 * CHUNK_BYTES)
    name = f"blobs/{hashlib.sha256(source.read_bytes()).hexdigest()}"
    call = registry._stub.UploadBlob()
    header = pb.UploadBlobHeader(name=name, size_bytes=4 * CHUNK_BYTES)
    await call.write(pb.UploadBlobRequest(header=header))
    chunk = pb.BlobChunk(offset_bytes=0, data=source.read_bytes()[:CHUNK_BYTES])
    await call.write(pb.UploadBlobRequest(chunk=chunk))
    await call.done_writing()
    # The stream ends early: the registry may say so, and keeps what it has.
    with suppress(grpc.aio.AioRpcError):
        await call
    stored = await registry._stub.GetBlob(pb.GetBlobRequest(name=name))
    assert stored.committed_size_bytes == CHUNK_BYTES
    seen: list[int] = []
    await registry.upload_file(
        source, version_path="x", on_progress=lambda done, _: seen.append(done)
    )
    assert seen[0] == CHUNK_BYTES


async def test_an_upload_of_a_file_that_becomes_shorter_meanwhile_ends_and_says_so(
    registry: AsyncRegistryClient, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "source", 4 * CHUNK_BYTES)
    seen: list[int] = []

    def cut(done: int, total: int) -> None:
        del total
        seen.append(done)
        assert len(seen) < 20, "the upload does not end"
        if done == CHUNK_BYTES:
            os.truncate(source, CHUNK_BYTES)

    with pytest.raises(DataLoss, match="source became shorter while it was sent") as refused:
        await registry.upload_file(source, version_path="x", on_progress=cut)
    assert refused.value.reason == "FILE_CHANGED"


class Forgetful(pb_grpc.RegistryServiceServicer):
    """Answers every upload with nothing kept and no error, until it was asked very often."""

    def __init__(self) -> None:
        self.streams = 0

    async def GetBlob(  # type: ignore[no-untyped-def]  # noqa: N802
        self, request, context
    ) -> pb.Blob:
        del context
        return pb.Blob(name=request.name)

    async def UploadBlob(  # type: ignore[no-untyped-def]  # noqa: N802
        self, requests, context
    ) -> pb.Blob:
        del context
        async for _ in requests:
            pass
        self.streams += 1
        return pb.Blob(complete=self.streams > 10 * MAXIMUM_FRUITLESS_ATTEMPTS)


async def test_an_upload_that_is_never_complete_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "modelrail.client.upload.Backoff", functools.partial(Backoff, maximum_seconds=0.001)
    )
    service = Forgetful()  # type: ignore[abstract]
    server = grpc.aio.server()
    pb_grpc.add_RegistryServiceServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{tmp_path / 'forgetful'}")
    await server.start()
    source = random_file(tmp_path / "source", 100)
    try:
        async with AsyncRegistryClient(f"unix:{tmp_path / 'forgetful'}") as client:
            with pytest.raises(Unavailable, match="has 0 of 100 bytes") as refused:
                await client.upload_file(source, version_path="x")
    finally:
        await server.stop(None)
    assert refused.value.reason == "UPLOAD_INCOMPLETE"
    assert service.streams == MAXIMUM_FRUITLESS_ATTEMPTS + 1


async def test_a_file_that_is_there_is_not_sent_again(
    registry: AsyncRegistryClient, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "source", 2 * CHUNK_BYTES)
    await uploaded(registry, source)
    seen: list[int] = []
    await registry.upload_file(
        source, version_path="x", on_progress=lambda done, _: seen.append(done)
    )
    assert set(seen) == {2 * CHUNK_BYTES}


async def test_a_download_goes_on_where_another_stopped(
    registry: AsyncRegistryClient, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "source", 3 * CHUNK_BYTES)
    file = await uploaded(registry, source)
    partial = tmp_path / "weights.bin.part"
    partial.write_bytes(source.read_bytes()[: CHUNK_BYTES + 5])
    seen: list[int] = []
    target = await registry.download_file(
        file, tmp_path, on_progress=lambda done, _: seen.append(done)
    )
    assert seen[0] == CHUNK_BYTES + 5
    assert target.read_bytes() == source.read_bytes()
    assert not partial.exists()


async def test_a_wrong_digest_removes_the_partial_file(
    registry: AsyncRegistryClient, tmp_path: Path
) -> None:
    file = await uploaded(registry, random_file(tmp_path / "source", 2 * CHUNK_BYTES))
    partial = tmp_path / "weights.bin.part"
    partial.write_bytes(b"x" * CHUNK_BYTES)
    with pytest.raises(DataLoss) as caught:
        await registry.download_file(file, tmp_path)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert not partial.exists()
    assert not (tmp_path / "weights.bin").exists()
    await registry.download_file(file, tmp_path)


async def test_two_downloads_of_one_file_do_not_mix(
    registry: AsyncRegistryClient, tmp_path: Path
) -> None:
    file = await uploaded(registry, random_file(tmp_path / "source", 4 * CHUNK_BYTES))
    answers = await asyncio.gather(
        registry.download_file(file, tmp_path),
        registry.download_file(file, tmp_path),
        return_exceptions=True,
    )
    assert any(isinstance(answer, Path) for answer in answers)
    assert all(isinstance(answer, Path | Aborted) for answer in answers)


async def test_a_version_whose_files_lead_outside_writes_nothing(
    registry: AsyncRegistryClient, tmp_path: Path
) -> None:
    file = await uploaded(registry, random_file(tmp_path / "source", 10))
    evil = pb.File(path="../evil", sha256=file.sha256, size_bytes=file.size_bytes)
    with pytest.raises(DataLoss):
        await registry.pull(pb.ModelVersion(files=[file, evil]), tmp_path / "out")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "out").exists()


async def test_a_version_without_its_bytes_is_refused(registry: AsyncRegistryClient) -> None:
    version = pb.ModelVersion(files=[pb.File(path="model.onnx", sha256="0" * 64, size_bytes=1)])
    with pytest.raises(FailedPrecondition):
        await registry.create_model_version("models/m", version, create_model=True)


async def test_a_watch_starts_with_a_bookmark_and_survives_a_restart(tmp_path: Path) -> None:
    async with AsyncExitStack() as servers:
        address = await servers.enter_async_context(serving(tmp_path))
        async with (
            AsyncRegistryClient(address) as client,
            aclosing(client.watch_events()) as events,
        ):
            assert not (await anext(events)).HasField("event")
            await client.create_model("before")
            assert (await anext(events)).event.resource == "models/before"
            await servers.aclose()
            (tmp_path / "registry.sock").unlink(missing_ok=True)
            await servers.enter_async_context(serving(tmp_path))
            async with AsyncRegistryClient(address) as second:
                await second.create_model("after")
            async with asyncio.timeout(20):
                assert (await anext(events)).event.resource == "models/after"


async def test_a_watch_ends_with_an_error_that_waiting_does_not_cure(
    registry: AsyncRegistryClient,
) -> None:
    async with aclosing(registry.watch_events(resume_token="nonsense")) as events:
        with pytest.raises(InvalidArgument):
            await anext(events)


async def test_a_registry_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with AsyncRegistryClient(f"unix:{tmp_path / 'nobody'}") as client:
        with pytest.raises(Unavailable):
            await client.get_model("models/x")


async def test_the_sync_client_has_the_same_answers(
    registry: AsyncRegistryClient, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "source", 2 * CHUNK_BYTES)

    def use() -> list[str]:
        with RegistryClient(registry.connection) as client:
            client.create_model("digits")
            file = client.upload_file(source, version_path="w")
            client.download_file(file, tmp_path / "out")
            with pytest.raises(NotFound):
                client.get_model("models/nope")
            return [model.name for model in client.list_models()]

    assert await asyncio.to_thread(use) == ["models/digits"]
    assert (tmp_path / "out" / "w").read_bytes() == source.read_bytes()
