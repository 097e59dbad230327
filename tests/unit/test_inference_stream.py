from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from modelrail_inference.protocol.stream import answer_stream
from modelrail_server.errors import InvalidArgument


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


async def test_the_errors_behind_the_one_that_ends_a_stream_are_no_defects() -> None:
    """asyncio reports every failed task that nobody has awaited, with its trace."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reported.append(report))
    all_failed = asyncio.Event()
    failed = 0

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b""
        await all_failed.wait()

    async def answer(_: bytes) -> bytes:
        nonlocal failed
        failed += 1
        if failed < 3:
            await all_failed.wait()
        all_failed.set()
        raise InvalidArgument("wrong")

    stream = answer_stream(
        requests(), answer, max_in_flight=4, stopping=asyncio.Event(), end_on_error=True
    )
    with pytest.raises(InvalidArgument):
        await anext(stream)
    del stream
    gc.collect()
    assert failed == 3
    assert not reported
