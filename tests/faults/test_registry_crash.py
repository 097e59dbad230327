"""A registry that is killed in an upload or a publish leaves nothing or a whole version."""

# ruff: noqa: PT017 (an answer that may be an error; a stream is read inside of raises)

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.registry.v1.registry_pb2_grpc import RegistryServiceStub

CHUNK = 1 << 20
DATA = random.Random(7).randbytes(3 * CHUNK + 17)  # noqa: S311 (a seed, no secret)
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = f"blobs/{SHA256}"
VERSION = pb.ModelVersion(files=[pb.File(path="weights.bin", sha256=SHA256, size_bytes=len(DATA))])


@contextmanager
def registry(
    data_dir: Path, *, max_file_bytes: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    socket = data_dir.parent / "socket"
    socket.unlink(missing_ok=True)

    command = [sys.executable, "-m", "modelrail_registry", "--data-dir", str(data_dir)]
    command += ["--grpc-address", f"unix:{socket}", "--metrics-address", "127.0.0.1:0"]
    log = data_dir.parent / "log"
    with (
        log.open("ab") as stderr,
        subprocess.Popen(command, stderr=stderr) as process,
    ):
        try:
            if max_file_bytes is not None:  # Python ignores SIGXFSZ, so a write beyond it fails
                limits = (max_file_bytes, max_file_bytes)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def connected(data_dir: Path) -> AsyncIterator[Any]:
    options = [
        # The registry is still starting: try again soon, not after the usual doubling pauses.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # Channels of one address share connections, that to a killed registry too for a moment.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    address = f"unix:{data_dir.parent / 'socket'}"
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        yield RegistryServiceStub(channel)


def parts(start: int, stop: int = len(DATA)) -> Iterator[pb.UploadBlobRequest]:
    yield pb.UploadBlobRequest(header=pb.UploadBlobHeader(name=NAME, size_bytes=len(DATA)))
    for offset in range(start, stop, CHUNK):
        chunk = pb.BlobChunk(offset_bytes=offset, data=DATA[offset : min(stop, offset + CHUNK)])
        yield pb.UploadBlobRequest(chunk=chunk)


async def stored(stub: Any) -> pb.Blob:
    try:
        blob: pb.Blob = await stub.GetBlob(pb.GetBlobRequest(name=NAME))
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND
        return pb.Blob(name=NAME)
    return blob


async def publish(stub: Any, request_id: str) -> pb.ModelVersion:
    blob = await stored(stub)
    if not blob.complete:
        await stub.UploadBlob(parts(blob.committed_size_bytes))
    version: pb.ModelVersion = await stub.CreateModelVersion(
        pb.CreateModelVersionRequest(
            parent="models/m", model_version=VERSION, create_model=True, request_id=request_id
        )
    )
    return version


async def versions(stub: Any) -> list[pb.ModelVersion]:
    try:
        response = await stub.ListModelVersions(pb.ListModelVersionsRequest(parent="models/m"))
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND
        return []
    return list(response.model_versions)


async def check_whole(stub: Any) -> int:
    """Every READY version's bytes are there and right; returns how many versions there are."""
    found = await versions(stub)
    for version in found:
        for file in version.files:
            digest = hashlib.sha256()
            request = pb.DownloadBlobRequest(name=f"blobs/{file.sha256}")
            async for part in stub.DownloadBlob(request):
                digest.update(part.chunk.data)
            assert digest.hexdigest() == file.sha256
    return len(found)


def strace_attached(pid: int, inject: str) -> subprocess.Popen[str]:
    tracer = subprocess.Popen(
        [
            "strace",
            "-f",
            "-p",
            str(pid),
            "-e",
            f"trace={inject.split(':', maxsplit=1)[0]}",
            "-e",
            f"inject={inject}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        tracer.kill()
        tracer.communicate()
        pytest.skip(f"strace cannot attach here: {line.strip()}")
    return tracer


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "inject",
    ["pwrite64:signal=KILL:when=2", "fsync:signal=KILL:when=1", "rename:signal=KILL:when=1",
     "fsync:signal=KILL:when=3", "fdatasync:signal=KILL:when=1"],
)  # fmt: skip
async def test_a_kill_at_a_system_call_leaves_nothing_or_a_whole_version(
    tmp_path: Path, inject: str
) -> None:
    data_dir = tmp_path / "data"
    request_id = str(uuid.uuid4())
    with registry(data_dir) as process:
        async with connected(data_dir) as stub:
            await stub.ListModels(pb.ListModelsRequest())
            tracer = strace_attached(process.pid, inject)
            with pytest.raises(grpc.aio.AioRpcError):
                await publish(stub, request_id)
        tracer.communicate(timeout=30)
        assert process.wait(30) == -signal.SIGKILL
    with registry(data_dir):
        async with connected(data_dir) as stub:
            assert await check_whole(stub) <= 1
            assert (await publish(stub, request_id)).number == 1
            assert await check_whole(stub) == 1


async def test_a_kill_while_the_answer_is_on_its_way_publishes_once(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    request_id = str(uuid.uuid4())
    with registry(data_dir) as process:
        async with connected(data_dir) as stub:
            watch = stub.WatchEvents(pb.WatchEventsRequest())
            await watch.read()
            call = asyncio.ensure_future(publish(stub, request_id))
            await watch.read()  # the event of the new model: the transaction is committed
            process.kill()
            await asyncio.wait([call])
            call.exception()
            watch.cancel()
    with registry(data_dir):
        async with connected(data_dir) as stub:
            assert len(await versions(stub)) == 1
            assert (await publish(stub, request_id)).number == 1
            assert await check_whole(stub) == 1


async def test_a_full_disk_refuses_the_upload_and_goes_on_serving_reads(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with registry(data_dir, max_file_bytes=2 * CHUNK):
        async with connected(data_dir) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await publish(stub, str(uuid.uuid4()))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not (await stored(stub)).complete
            assert await versions(stub) == []
            assert not list((data_dir / "blobs").rglob(SHA256))
    with registry(data_dir):  # with room again, the upload goes on
        async with connected(data_dir) as stub:
            assert (await stored(stub)).committed_size_bytes == 2 * CHUNK
            assert (await publish(stub, str(uuid.uuid4()))).number == 1
            assert await check_whole(stub) == 1


async def test_sigterm_ends_an_idle_watch_and_the_process_with_status_0(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with registry(data_dir) as process:
        async with connected(data_dir) as stub:
            watch = stub.WatchEvents(pb.WatchEventsRequest())
            await watch.read()
            os.kill(process.pid, signal.SIGTERM)
            assert await watch.read() is grpc.aio.EOF
        assert process.wait(30) == 0
