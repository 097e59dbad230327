"""The registry as a caller meets it: a real server on a unix socket and the generated stub."""

# ruff: noqa: PT012, PT017 (an answer that may be an error; a stream is read inside of raises)

from __future__ import annotations

import asyncio
import base64
import hashlib
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import onnx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from onnx import TensorProto, helper

from modelrail.client import AsyncRegistryClient
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.registry.v1.registry_pb2_grpc import RegistryServiceStub
from modelrail_registry.__main__ import build
from modelrail_registry.config import RegistryConfig
from modelrail_registry.storage.blobs import BlobStore
from modelrail_registry.storage.uploads import Upload
from modelrail_server.application import Runtime
from modelrail_server.serve import start_server

Code = grpc.StatusCode
CHUNK = 1 << 16


@asynccontextmanager
async def serving(
    data_dir: Path, socket: Path, **settings: Any
) -> AsyncIterator[tuple[Any, Runtime]]:
    config = RegistryConfig(
        grpc_address=f"unix:{socket}", data_dir=data_dir, max_blob_bytes=1 << 24, **settings
    )
    runtime = Runtime("registry")
    async with build(config, runtime) as application:
        server, _ = await start_server(application, config, runtime)
        try:
            async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
                yield RegistryServiceStub(channel), runtime
        finally:
            runtime.stopping.set()
            await server.stop(5)


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[Any]:
    async with serving(tmp_path / "data", tmp_path / "s") as (stub, _):
        yield stub


def model_bytes(
    *,
    domain: str = "",
    dims: tuple[Any, ...] = ("batch", 2),
    external: bool = False,
    tensor: str = "x",
) -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    if external:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../secret")
    graph = helper.make_graph(
        [helper.make_node("Add", [tensor, "w"], ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
        [weight],
    )
    opsets = [helper.make_opsetid("", 18)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def bomb_bytes(levels: int = 30) -> bytes:
    functions = []
    for level in range(levels):
        op, domain = (f"f{level + 1}", "local") if level + 1 < levels else ("Identity", "")
        nodes = [helper.make_node(op, ["a"], ["b"], domain=domain)]
        nodes.append(helper.make_node(op, ["b"], ["c"], domain=domain))
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
        functions.append(helper.make_function("local", f"f{level}", ["a"], ["c"], nodes, opsets))
    graph = helper.make_graph(
        [helper.make_node("f0", ["x"], ["y"], domain="local")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=opsets, functions=functions, ir_version=8
    )
    return model.SerializeToString()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def upload_parts(
    data: bytes, *, sha256: str = "", start: int = 0, stop: int | None = None
) -> Iterator[pb.UploadBlobRequest]:
    name = f"blobs/{sha256 or digest(data)}"
    yield pb.UploadBlobRequest(header=pb.UploadBlobHeader(name=name, size_bytes=len(data)))
    stop = len(data) if stop is None else stop
    for offset in range(start, stop, CHUNK):
        piece = data[offset : min(offset + CHUNK, stop)]
        yield pb.UploadBlobRequest(chunk=pb.BlobChunk(offset_bytes=offset, data=piece))


async def upload(stub: Any, data: bytes) -> pb.Blob:
    blob: pb.Blob = await stub.UploadBlob(upload_parts(data))
    return blob


def manifest(data: bytes, path: str = "model.onnx") -> pb.ModelVersion:
    return pb.ModelVersion(files=[pb.File(path=path, sha256=digest(data), size_bytes=len(data))])


async def publish(stub: Any, data: bytes, model: str = "digits", **more: Any) -> pb.ModelVersion:
    await upload(stub, data)
    version: pb.ModelVersion = await stub.CreateModelVersion(
        pb.CreateModelVersionRequest(
            parent=f"models/{model}", model_version=manifest(data), create_model=True, **more
        )
    )
    return version


def details(error: grpc.aio.AioRpcError) -> tuple[Any, list[str]]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        for message in (info, bad):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return info, [violation.field for violation in bad.field_violations]


def snapshot(data_dir: Path) -> tuple[list[str], list[str]]:
    tree = sorted(
        str(p.relative_to(data_dir))
        for p in data_dir.rglob("*")
        if p.is_file() and not p.name.startswith("registry.sqlite3")
    )
    with sqlite3.connect(f"file:{data_dir}/registry.sqlite3?mode=ro", uri=True) as connection:
        rows = [line for line in connection.iterdump() if '"admissions"' not in line]
    connection.close()
    return tree, rows


async def test_a_published_version_is_ready_has_the_signature_of_its_graph_and_comes_back(
    stub: Any,
) -> None:
    data = model_bytes()
    version = await publish(stub, data)
    assert version.name == "models/digits/versions/1"
    assert version.state == pb.ModelVersion.STATE_READY
    (tensor,) = version.signature.inputs
    assert (tensor.name, tensor.datatype) == ("x", "FP32")
    assert [d.symbol or d.size for d in tensor.shape] == ["batch", 2]
    alias = pb.ModelAlias(name="models/digits/aliases/production", model_version=version.name)
    moved = await stub.UpdateModelAlias(
        pb.UpdateModelAliasRequest(model_alias=alias, allow_missing=True)
    )
    found = await stub.GetModelVersion(
        pb.GetModelVersionRequest(name="models/digits/aliases/production")
    )
    assert list(found.aliases) == ["production"]
    listed = await stub.ListModelAliases(pb.ListModelAliasesRequest(parent="models/digits"))
    assert listed.model_aliases == [moved]
    call = stub.DownloadBlob(pb.DownloadBlobRequest(name=f"blobs/{digest(data)}"))
    assert b"".join([r.chunk.data async for r in call]) == data
    await stub.DeleteModelAlias(pb.DeleteModelAliasRequest(name=moved.name, etag=moved.etag))


async def test_the_same_request_id_publishes_once_and_never_another_version(stub: Any) -> None:
    key = str(uuid.uuid4())
    first = await publish(stub, model_bytes(), request_id=key)
    again = await publish(stub, model_bytes(), request_id=key)
    assert first == again
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await publish(stub, model_bytes(dims=("batch", 1)), request_id=key)
    assert caught.value.code() is Code.ALREADY_EXISTS
    assert details(caught.value)[0].reason == "REQUEST_ID_REUSED"


async def test_pages_hold_everything_once_and_tokens_are_bound_to_their_list(stub: Any) -> None:
    for name in ("a", "b", "c"):
        await stub.CreateModel(pb.CreateModelRequest(model_id=name))
    first = await stub.ListModels(pb.ListModelsRequest(page_size=2))
    token = first.next_page_token
    second = await stub.ListModels(pb.ListModelsRequest(page_size=2, page_token=token))
    assert [m.name for m in (*first.models, *second.models)] == [f"models/{n}" for n in "abc"]
    assert second.next_page_token == ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListModelVersions(
            pb.ListModelVersionsRequest(parent="models/a", page_token=token)
        )
    assert details(caught.value)[1] == ["page_token"]


async def test_an_upload_that_broke_goes_on_where_it_stopped(stub: Any) -> None:
    data = bytes(range(256)) * 2048
    blob = await stub.UploadBlob(upload_parts(data, stop=3 * CHUNK))
    assert (blob.committed_size_bytes, blob.complete) == (3 * CHUNK, False)
    assert await stub.GetBlob(pb.GetBlobRequest(name=blob.name)) == blob
    blob = await stub.UploadBlob(upload_parts(data, start=3 * CHUNK))
    assert blob.complete
    assert (await upload(stub, data)).complete  # a complete blob is taken as it is


async def test_a_cancelled_upload_keeps_its_bytes_and_frees_its_digest(stub: Any) -> None:
    data = bytes(range(256)) * 2048
    call = stub.UploadBlob()
    parts = list(upload_parts(data))
    for part in parts[:3]:
        await call.write(part)
    name = parts[0].header.name
    while True:  # until the server holds the digest
        try:
            await stub.GetBlob(pb.GetBlobRequest(name=name))
            break
        except grpc.aio.AioRpcError as error:
            assert error.code() is Code.NOT_FOUND
    call.cancel()
    while True:  # until it is free again
        try:
            stored = (await stub.UploadBlob(iter(parts[:1]))).committed_size_bytes
            break
        except grpc.aio.AioRpcError as error:
            assert error.code() is Code.ABORTED
            assert details(error)[0].reason == "UPLOAD_IN_PROGRESS"
    assert stored % CHUNK == 0
    assert (await stub.UploadBlob(upload_parts(data, start=stored))).complete
    assert (await stub.GetBlob(pb.GetBlobRequest(name=name))).complete


async def test_a_silent_upload_is_ended_keeps_its_bytes_and_frees_its_digest(
    tmp_path: Path,
) -> None:
    data = bytes(range(256)) * 2048
    async with serving(tmp_path / "data", tmp_path / "s", upload_idle_seconds=0.2) as (stub, _):
        call = stub.UploadBlob()
        for part in list(upload_parts(data))[:3]:
            await call.write(part)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call  # its client never says that it is done
        assert caught.value.code() is Code.ABORTED
        assert details(caught.value)[0].reason == "UPLOAD_IDLE"
        blob = await stub.GetBlob(pb.GetBlobRequest(name=f"blobs/{digest(data)}"))
        assert blob.committed_size_bytes == 2 * CHUNK
        assert (await stub.UploadBlob(upload_parts(data, start=2 * CHUNK))).complete


async def test_an_upload_that_never_sends_its_header_is_ended(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", tmp_path / "s", upload_idle_seconds=0.2) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.UploadBlob(timeout=30)
        assert caught.value.code() is Code.ABORTED
        assert details(caught.value)[0].reason == "UPLOAD_IDLE"


async def test_uploads_go_on_when_the_system_lets_no_thread_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, start = BlobStore.begin, threading.Thread.start
    all_at_once = threading.Barrier(4)

    def meeting_begin(self: BlobStore, sha256: str, size: int) -> Upload | None:
        all_at_once.wait()
        return begin(self, sha256, size)

    def failing_start(self: threading.Thread) -> None:
        if self.name.startswith(("disk", "database")):
            raise RuntimeError("can't start new thread")
        start(self)

    async with serving(tmp_path / "data", tmp_path / "s", disk_threads=4) as (stub, _):
        monkeypatch.setattr(BlobStore, "begin", meeting_begin)
        monkeypatch.setattr(threading.Thread, "start", failing_start)
        uploads = [asyncio.ensure_future(upload(stub, bytes([n]))) for n in range(4)]
        await asyncio.wait(uploads, return_when=asyncio.FIRST_EXCEPTION)
        all_at_once.abort()
        assert [call.exception() or call.result().complete for call in uploads] == [True] * 4


async def test_a_reader_that_stops_reading_ends_its_download_and_can_go_on(
    tmp_path: Path,
) -> None:
    data = bytes(range(256)) * (1 << 15)  # more than gRPC takes ahead
    settings = {"download_idle_seconds": 0.2}
    async with serving(tmp_path / "data", tmp_path / "s", **settings) as (stub, _):
        await upload(stub, data)
        (stored,) = (tmp_path / "data" / "blobs").rglob(digest(data))
        call = stub.DownloadBlob(pb.DownloadBlobRequest(name=f"blobs/{digest(data)}"))
        received = (await call.read()).chunk.data
        async with asyncio.timeout(30):
            while is_open(stored):
                await stub.GetBlob(pb.GetBlobRequest(name=f"blobs/{digest(data)}"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while True:
                received += (await call.read()).chunk.data
        assert caught.value.code() is Code.UNAVAILABLE
        assert details(caught.value)[0].reason == "DOWNLOAD_IDLE"
        rest = pb.DownloadBlobRequest(name=f"blobs/{digest(data)}", offset_bytes=len(received))
        async for part in stub.DownloadBlob(rest):
            received += part.chunk.data
    assert received == data


def is_open(path: Path) -> bool:
    return path in [opened.resolve() for opened in Path("/proc/self/fd").iterdir()]


async def test_an_empty_file_is_uploaded_published_and_comes_back(
    stub: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    version = manifest(GOOD)
    await upload(stub, GOOD)
    async with AsyncRegistryClient(f"unix:{tmp_path / 's'}") as client:
        file = await client.upload_file(tmp_path / "empty.txt", version_path="empty.txt")
        assert (file.sha256, file.size_bytes) == (digest(b""), 0)
        version.files.append(file)
        published = await creation(version)(stub)
        assert published.files[1] == file
        call = stub.DownloadBlob(pb.DownloadBlobRequest(name=f"blobs/{digest(b'')}"))
        assert b"".join([response.chunk.data async for response in call]) == b""
        folder = await client.pull(published, tmp_path / "pulled")
    assert (folder / "empty.txt").read_bytes() == b""
    assert (folder / "model.onnx").read_bytes() == GOOD


async def test_a_damaged_blob_ends_with_data_loss_and_a_new_upload_heals_it(
    stub: Any, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 8192
    await upload(stub, data)
    (stored,) = (tmp_path / "data" / "blobs").rglob(digest(data))
    stored.chmod(0o600)
    stored.write_bytes(data[:-1] + b"\x00")
    received = b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for part in stub.DownloadBlob(pb.DownloadBlobRequest(name=f"blobs/{digest(data)}")):
            received += part.chunk.data
    assert caught.value.code() is Code.DATA_LOSS
    assert len(received) < len(data)
    assert (await upload(stub, data)).complete
    call = stub.DownloadBlob(pb.DownloadBlobRequest(name=f"blobs/{digest(data)}"))
    assert b"".join([r.chunk.data async for r in call]) == data


async def test_a_watch_goes_on_after_a_restart_without_gap_or_repetition(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", tmp_path / "a") as (stub, runtime):
        call = stub.WatchEvents(pb.WatchEventsRequest())
        bookmark = await call.read()
        assert not bookmark.HasField("event")
        await stub.CreateModel(pb.CreateModelRequest(model_id="one"))
        await stub.CreateModel(pb.CreateModelRequest(model_id="two"))
        first = await call.read()
        assert first.event.resource == "models/one"
        runtime.stopping.set()
        rest = []
        while (response := await call.read()) is not grpc.aio.EOF:
            rest.append(response.event.resource)
        assert rest in ([], ["models/two"])  # the stream ends by itself, with status OK
    async with serving(tmp_path / "data", tmp_path / "b") as (stub, _):
        call = stub.WatchEvents(pb.WatchEventsRequest(resume_token=first.resume_token))
        assert (await call.read()).event.resource == "models/two"
        only = stub.WatchEvents(
            pb.WatchEventsRequest(resume_token=bookmark.resume_token, models=["models/two"])
        )
        assert (await only.read()).event.resource == "models/two"
        call.cancel()
        only.cancel()


async def test_a_token_of_another_registry_is_out_of_range(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", tmp_path / "a") as (stub, _):
        token = (await stub.WatchEvents(pb.WatchEventsRequest()).read()).resume_token
    async with serving(tmp_path / "other", tmp_path / "b") as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.WatchEvents(pb.WatchEventsRequest(resume_token=token)).read()
        assert caught.value.code() is Code.OUT_OF_RANGE


GOOD = model_bytes()
OTHER = model_bytes(dims=("batch", 1))
LOST = b"never uploaded"
A = "0" * 64
Request = Callable[[Any], Any]


def creation(version: pb.ModelVersion, parent: str = "models/digits") -> Request:
    request = pb.CreateModelVersionRequest(parent=parent, model_version=version, create_model=True)
    return lambda stub: stub.CreateModelVersion(request)


def uploading(parts: list[pb.UploadBlobRequest]) -> Request:
    return lambda stub: stub.UploadBlob(iter(parts))


def file(path: str, sha256: str = digest(GOOD), size: int = len(GOOD)) -> pb.ModelVersion:
    return pb.ModelVersion(files=[pb.File(path=path, sha256=sha256, size_bytes=size)])


def with_tensor(datatype: str = "FP32", size: int = 2) -> pb.ModelVersion:
    version = manifest(GOOD)
    for role, name in ((version.signature.inputs, "x"), (version.signature.outputs, "y")):
        shape = [pb.Dimension(symbol="batch"), pb.Dimension(size=size)]
        role.add(name=name, datatype=datatype, shape=shape)
    return version


def moving(version: str, etag: str = "", name: str = "models/digits/aliases/live") -> Request:
    alias = pb.ModelAlias(name=name, model_version=version, etag=etag)
    return lambda stub: stub.UpdateModelAlias(pb.UpdateModelAliasRequest(model_alias=alias))


HOSTILE = ["../x", "a/../b", "", " ", "A", "a..b", "%2e%2e", "ü", "x" * 10_000, "con\n", "/etc"]
REFUSED = {
    "pickle": b"\x80\x04\x95\x10\x00." + b"x" * 50 + b".",
    "text pickle": b"cos\nsystem\n(S'touch canary'\ntR.",
    "zip": b"PK\x03\x04" + b"\0" * 60,
    "tar": b"\0" * 257 + b"ustar" + b"\0" * 200,
}
BAD_MODELS = {
    "empty": b"",
    "text": b"this is no model",
    "truncated": GOOD[: len(GOOD) // 2],
    "foreign domain": model_bytes(domain="evil.ops"),
    "external data": model_bytes(external=True),
    "function bomb": bomb_bytes(),
    "long name": model_bytes(tensor="x" * 1025),
    "long symbol": model_bytes(dims=("b" * 257, 2)),
    "giant symbol": model_bytes(dims=("b" * (4 << 20), 2)),
    "high rank": model_bytes(dims=(1,) * 65),
    "name not in UTF-8": model_bytes(tensor="strange").replace(b"strange", b"str\xffnge"),
    "symbol not in UTF-8": model_bytes(dims=("strange", 2)).replace(b"strange", b"str\xffnge"),
}
F = "model_version.files[0]"
S = "model_version.signature"
TABLE: list[tuple[str, Request, Code, str]] = [
    *[
        (f"name {n[:9]!r}", lambda s, n=n: s.GetModel(pb.GetModelRequest(name=f"models/{n}")),
         Code.INVALID_ARGUMENT, "name")
        for n in HOSTILE
    ],
    *[
        (f"id {n[:9]!r}", lambda s, n=n: s.CreateModel(pb.CreateModelRequest(model_id=n)),
         Code.INVALID_ARGUMENT, "model_id")
        for n in HOSTILE
    ],
    *[(f"path {p!r}", creation(file(p)), Code.INVALID_ARGUMENT, f"{F}.path")
      for p in ("../model.onnx", "/model.onnx", "a//b", "", "a\0b", "a\\b", "./a", "x" * 256)],
    *[(f"model {n}", creation(manifest(d)), Code.FAILED_PRECONDITION, F)
      for n, d in BAD_MODELS.items()],
    *[(n, creation(manifest(d, "weights.bin")), Code.FAILED_PRECONDITION, F)
      for n, d in REFUSED.items()],
    ("parent", creation(file("model.onnx"), "models/../x"), Code.INVALID_ARGUMENT, "parent"),
    ("no files", creation(pb.ModelVersion()), Code.INVALID_ARGUMENT, "model_version.files"),
    ("digest", creation(file("model.onnx", "XYZ")), Code.INVALID_ARGUMENT, f"{F}.sha256"),
    ("size", creation(file("model.onnx", size=1)), Code.FAILED_PRECONDITION, F),
    ("missing blob", creation(manifest(LOST)), Code.FAILED_PRECONDITION, F),
    ("datatype", creation(with_tensor("INT64")), Code.INVALID_ARGUMENT, f"{S}.inputs[0].datatype"),
    ("no datatype", creation(with_tensor("float")), Code.INVALID_ARGUMENT,
     f"{S}.inputs[0].datatype"),
    ("shape", creation(with_tensor(size=3)), Code.INVALID_ARGUMENT, f"{S}.inputs[0].shape"),
    ("request id", lambda s: s.CreateModel(pb.CreateModelRequest(model_id="a", request_id="1")),
     Code.INVALID_ARGUMENT, "request_id"),
    ("page size", lambda s: s.ListModels(pb.ListModelsRequest(page_size=-1)),
     Code.INVALID_ARGUMENT, "page_size"),
    ("page token", lambda s: s.ListModels(pb.ListModelsRequest(page_token="!")),
     Code.INVALID_ARGUMENT, "page_token"),
    ("key that is no text", lambda s: s.ListModels(pb.ListModelsRequest(
        page_token=base64.urlsafe_b64encode(b'["models", "\\ud800"]').decode())),
     Code.INVALID_ARGUMENT, "page_token"),
    ("mask", lambda s: s.UpdateModel(pb.UpdateModelRequest(
        model=pb.Model(name="models/digits"), update_mask={"paths": ["uid"]})),
     Code.INVALID_ARGUMENT, "update_mask"),
    ("no model", lambda s: s.GetModel(pb.GetModelRequest(name="models/none")), Code.NOT_FOUND, ""),
    ("no version", lambda s: s.GetModelVersion(
        pb.GetModelVersionRequest(name="models/digits/versions/9")), Code.NOT_FOUND, ""),
    ("taken", lambda s: s.CreateModel(pb.CreateModelRequest(model_id="digits")),
     Code.ALREADY_EXISTS, ""),
    ("stale etag", moving("models/digits/versions/1", "old"), Code.ABORTED, ""),
    ("no such version", moving("models/digits/versions/7"), Code.FAILED_PRECONDITION,
     "model_alias.model_version"),
    ("foreign version", moving("models/other/versions/1"), Code.INVALID_ARGUMENT,
     "model_alias.model_version"),
    ("number as alias", moving("models/digits/versions/1", name="models/digits/aliases/3"),
     Code.INVALID_ARGUMENT, "model_alias.name"),
    ("no header", uploading(list(upload_parts(LOST))[1:]), Code.INVALID_ARGUMENT, "header"),
    ("blob name", uploading(list(upload_parts(LOST, sha256="../x"))), Code.INVALID_ARGUMENT,
     "header.name"),
    ("wrong bytes", uploading(list(upload_parts(LOST, sha256=A))), Code.INVALID_ARGUMENT,
     "header.name"),
    ("too large", uploading([pb.UploadBlobRequest(header=pb.UploadBlobHeader(
        name=f"blobs/{A}", size_bytes=1 << 40))]), Code.RESOURCE_EXHAUSTED, ""),
    ("negative size", uploading([pb.UploadBlobRequest(header=pb.UploadBlobHeader(
        name=f"blobs/{A}", size_bytes=-1))]), Code.INVALID_ARGUMENT, "header.size_bytes"),
    ("other size", uploading([pb.UploadBlobRequest(header=pb.UploadBlobHeader(
        name=f"blobs/{digest(GOOD)}", size_bytes=1))]), Code.INVALID_ARGUMENT, "header.size_bytes"),
    ("download behind the end", lambda s: s.DownloadBlob(pb.DownloadBlobRequest(
        name=f"blobs/{digest(GOOD)}", offset_bytes=1 << 30)).read(), Code.OUT_OF_RANGE, ""),
    ("download of nothing", lambda s: s.DownloadBlob(pb.DownloadBlobRequest(
        name=f"blobs/{A}")).read(), Code.NOT_FOUND, ""),
    ("garbage token", lambda s: s.WatchEvents(pb.WatchEventsRequest(
        resume_token="garbage")).read(), Code.INVALID_ARGUMENT, "resume_token"),
]  # fmt: skip


async def test_every_bad_input_is_named_and_leaves_no_trace(stub: Any, tmp_path: Path) -> None:
    await publish(stub, GOOD)
    alias = pb.ModelAlias(
        name="models/digits/aliases/live", model_version="models/digits/versions/1"
    )
    await stub.UpdateModelAlias(pb.UpdateModelAliasRequest(model_alias=alias, allow_missing=True))
    for data in (*BAD_MODELS.values(), *REFUSED.values()):
        await upload(stub, data)
    before = snapshot(tmp_path / "data")
    wrong = []
    for what, request, code, field in TABLE:
        try:
            await request(stub)
        except grpc.aio.AioRpcError as error:
            fields = details(error)[1]
            text = error.details() or ""
            leaks = [word for word in (str(tmp_path), "Traceback", "sqlite") if word in text]
            if error.code() is not code or (field and field not in fields) or leaks:
                wrong.append((what, error.code(), text, fields, leaks))
        else:
            wrong.append((what, Code.OK, "", [], []))
    assert wrong == []
    assert snapshot(tmp_path / "data") == before


async def test_a_request_of_another_size_than_any_has_is_refused_before_it_is_parsed(
    stub: Any,
) -> None:
    """Messages can take 30 times their size in memory, and seconds of the event loop."""
    version = pb.ModelVersion(signature=pb.Signature(inputs=[pb.TensorSpec()]))
    version.signature.inputs[0].labels.extend(["x" * 1024] * 2048)
    for request in (
        creation(version),
        lambda stub: stub.GetModel(pb.GetModelRequest(name="/" * (2 << 20))),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await request(stub)
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        assert details(caught.value)[0].reason == "REQUEST_TOO_LARGE"


async def test_every_wrong_field_is_listed_at_once(stub: Any) -> None:
    version = pb.ModelVersion(files=[pb.File(path="../a", sha256="x"), pb.File(path="/b")])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await creation(version, "models/..")(stub)
    assert {"parent", f"{F}.path", f"{F}.sha256", "model_version.files[1].path"} <= set(
        details(caught.value)[1]
    )


async def test_a_chunk_at_the_wrong_offset_is_out_of_range_and_keeps_what_came_before(
    stub: Any,
) -> None:
    data = bytes(range(256)) * 2048
    await stub.UploadBlob(upload_parts(data, stop=CHUNK))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UploadBlob(upload_parts(data, start=2 * CHUNK))
    assert caught.value.code() is Code.OUT_OF_RANGE
    info = details(caught.value)[0]
    assert (info.metadata["expected"], info.metadata["got"]) == (str(CHUNK), str(2 * CHUNK))
    blob = await stub.GetBlob(pb.GetBlobRequest(name=f"blobs/{digest(data)}"))
    assert blob.committed_size_bytes == CHUNK


async def test_a_second_registry_is_refused_the_same_folder(stub: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another registry"):
        async with serving(tmp_path / "data", tmp_path / "t"):
            pass
