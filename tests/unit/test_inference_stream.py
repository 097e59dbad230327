from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from modelrail_inference.protocol.stream import Answer, answer_stream
from modelrail_inference.request.unread import UnreadReplies
from modelrail_server.errors import InvalidArgument


class Message(bytes):
    """A request that can be found again."""


def answered(
    requests: AsyncIterator[bytes],
    answer: Answer,
    *,
    unread: UnreadReplies | None = None,
    end_on_error: bool = False,
) -> AsyncIterator[bytes]:
    """A stream, four of whose requests may be in flight."""
    return answer_stream(
        requests,
        answer,
        unread=unread or UnreadReplies(1 << 20),
        connection="here",
        max_in_flight=4,
        stopping=asyncio.Event(),
        end_on_error=end_on_error,
    )


async def test_a_stream_that_breaks_gives_its_messages_back_at_once() -> None:
    """And not when the garbage collector comes by: messages can be large."""

    async def requests() -> AsyncIterator[bytes]:
        yield Message(b"first")
        yield Message(b"second")
        raise ConnectionError

    async def answer(request: bytes) -> bytes:
        return request

    async def consume() -> None:
        async for _ in answered(requests(), answer):
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

    stream = answered(requests(), answer, end_on_error=True)
    with pytest.raises(InvalidArgument):
        await anext(stream)
    del stream
    gc.collect()
    assert failed == 3
    assert not reported


async def test_a_stream_reads_on_only_when_its_answers_are_read() -> None:
    """Four may be in flight; the next is read when fewer than two wait to be read."""
    unread = UnreadReplies(max_bytes=20)
    read = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(6):
            read += 1
            yield b""

    async def answer(_: bytes) -> bytes:
        return b"12345"

    stream = answered(requests(), answer, unread=unread)
    seen = []
    async for reply in stream:
        for _ in range(20):  # whatever can go on goes on meanwhile
            await asyncio.sleep(0)
        seen.append((reply, read))
    assert [reply for reply, _ in seen] == [b"12345"] * 6
    assert [count for _, count in seen] == [4, 4, 4, 6, 6, 6]
    assert unread.size_bytes == 0


@pytest.mark.parametrize("how", ["left", "broken"])
async def test_what_a_stream_leaves_unread_takes_no_room_any_more(how: str) -> None:
    unread = UnreadReplies(max_bytes=1000)

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b""
        if how == "broken":
            raise ConnectionError

    async def answer(_: bytes) -> bytes:
        return b"12345"

    stream: Any = answered(requests(), answer, unread=unread)
    await anext(stream)
    for _ in range(20):
        await asyncio.sleep(0)
    assert unread.size_bytes == 15
    if how == "left":
        await stream.aclose()
    else:
        with pytest.raises(ConnectionError):
            [_ async for _ in stream]
    assert unread.size_bytes == 0
