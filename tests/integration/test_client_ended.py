"""Calls that the server ends while the client writes: the error is the server's, never grpc's.

The server has a thread and an event loop of its own, because only then can its answer arrive
between two steps of the client's loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from modelrail.client import (
    AsyncInferenceClient,
    AsyncRegistryClient,
    InferRequest,
    ModelrailError,
    PermissionDenied,
)
from modelrail.oip.v2 import grpc_service_pb2_grpc as oip_grpc
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.registry.v1 import registry_pb2_grpc as pb_grpc

CALLS = 200


class Refusing(pb_grpc.RegistryServiceServicer, oip_grpc.GRPCInferenceServiceServicer):
    """Refuses what is written to it, before it has read any of it."""

    def __init__(self) -> None:
        self.refuses = threading.Event()

    async def GetBlob(  # type: ignore[no-untyped-def]  # noqa: N802
        self, request, context
    ) -> pb.Blob:
        del request
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        raise AssertionError("abort() raises")

    async def UploadBlob(  # type: ignore[no-untyped-def]  # noqa: N802
        self, requests, context
    ) -> pb.Blob:
        del requests
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "read only")
        raise AssertionError("abort() raises")

    async def ModelStreamInfer(  # type: ignore[no-untyped-def, override]  # noqa: N802
        self, requests, context
    ) -> None:
        del requests
        self.refuses.set()
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "read only")


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[tuple[Refusing, str]]:
    address = f"unix:{tmp_path / 'socket'}"
    service = Refusing()  # type: ignore[abstract]
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        pb_grpc.add_RegistryServiceServicer_to_server(service, server)
        oip_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
        server.add_insecure_port(address)
        await server.start()
        started.set()
        await stop.wait()
        await server.stop(None)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    yield service, address
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


async def test_an_upload_that_is_refused_at_once_says_why(
    refusing: tuple[Refusing, str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 2_000_000)
    errors: Counter[tuple[type, str]] = Counter()
    async with AsyncRegistryClient(refusing[1]) as client:
        for _ in range(CALLS):
            with pytest.raises(ModelrailError) as raised:
                await client.upload_file(file, version_path="x")
            errors[type(raised.value), str(raised.value)] += 1
    assert errors == {(PermissionDenied, "read only"): CALLS}


async def test_a_stream_that_is_refused_at_once_says_why(refusing: tuple[Refusing, str]) -> None:
    service, address = refusing
    request = InferRequest(model="m", inputs={"x": np.ones(1, dtype=np.float32)})

    async def requests() -> AsyncIterator[InferRequest]:
        yield request
        # Holds the client's loop, so that the refusal meets the next writes unseen.
        service.refuses.wait()
        for _ in range(100):
            yield request

    errors: Counter[tuple[type, str]] = Counter()
    async with AsyncInferenceClient(address) as client:
        for _ in range(CALLS):
            service.refuses.clear()
            with pytest.raises(ModelrailError) as raised:
                async for _ in client.stream_infer(requests()):
                    pass
            errors[type(raised.value), str(raised.value)] += 1
    assert errors == {(PermissionDenied, "read only"): CALLS}
