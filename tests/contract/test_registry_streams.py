"""A stream that its caller leaves closes what is below it before it is left."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from modelrail.registry.v1 import registry_pb2 as pb
from modelrail_registry.catalog.events import ResumeToken
from modelrail_registry.protocol.servicer import RegistryServicer


class Endless:
    """Below both streams: gives without end, and knows when it was closed."""

    closed = False

    async def follow(self, *_: object) -> AsyncGenerator[tuple[ResumeToken, None], None]:
        try:
            while True:
                yield ResumeToken("0" * 32, 1), None
        finally:
            self.closed = True

    async def send(self, *_: object) -> AsyncGenerator[tuple[int, bytes], None]:
        try:
            while True:
                yield 0, b"data"
        finally:
            self.closed = True


@pytest.mark.parametrize("method", ["DownloadBlob", "WatchEvents"])
async def test_a_stream_that_is_left_closes_what_is_below_it(method: str) -> None:
    source, unused = Endless(), cast(Any, None)
    servicer = RegistryServicer(
        catalog=unused,
        publisher=unused,
        transfer=cast(Any, source),
        watch=cast(Any, source),
        executor=unused,
        metrics=unused,
    )
    request = {
        "DownloadBlob": pb.DownloadBlobRequest(name="blobs/" + "0" * 64),
        "WatchEvents": pb.WatchEventsRequest(),
    }[method]
    stream = getattr(servicer, method)(request, unused)
    await anext(stream)
    await stream.aclose()
    assert source.closed
