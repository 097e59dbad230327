from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from modelrail_inference.protocol.stream import answer_stream


class Message(bytes):
    """A request that can be found again."""


async def test_a_stream_that_breaks_gives_its_messages_back_at_once() -> None:
    """And not when the garbage collector comes by: messages can be large."""

    async def requests() -> AsyncIterator[bytes]:
        yield Message(b"first")
        yield Message(b"second")
        raise ConnectionError

    async def answer(request: bytes) -> bytes:
        return request

    async def consume() -> None:
        async for _ in answer_stream(
            requests(), answer, max_in_flight=4, stopping=asyncio.Event(), end_on_error=False
        ):
            pass

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ConnectionError):
            await consume()
        await asyncio.sleep(0)
        assert not [found for found in gc.get_objects() if type(found) is Message]
    finally:
        gc.enable()
