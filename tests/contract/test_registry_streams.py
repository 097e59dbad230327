"""A stream that its caller leaves closes what is below it before it is left."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

from modelrail.registry.v1 import registry_pb2 as pb
from modelrail_registry.catalog.events import ResumeToken
from modelrail_registry.protocol.servicer import RegistryServicer


class Endless:
    """Below a stream: gives without end, and knows when it was closed."""

    closed = False

    async def follow(self, *_: object) -> AsyncGenerator[tuple[ResumeToken, None], None]:
        try:
            while True:
                yield ResumeToken("0" * 32, 1), None
        finally:
            self.closed = True


async def test_a_stream_that_is_left_closes_what_is_below_it() -> None:
    source, unused = Endless(), cast(Any, None)
    servicer = RegistryServicer(
        catalog=unused,
        publisher=unused,
        transfer=unused,
        watch=cast(Any, source),
        executor=unused,
        metrics=unused,
    )
    stream = cast(AsyncGenerator[Any, None], servicer.WatchEvents(pb.WatchEventsRequest(), unused))
    await anext(stream)
    await stream.aclose()
    assert source.closed
