from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from modelrail_inference.protocol.stream import Answer, Streams, answer_stream
from modelrail_inference.request.call import Call
from modelrail_inference.request.unread import UnreadReplies
from modelrail_server.context import Call as RpcCall
from modelrail_server.context import enter_call
from modelrail_server.errors import InvalidArgument
from modelrail_server.policy import OWNER


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
        replies=(unread or UnreadReplies(1 << 20)).of_call("here"),
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


@pytest.mark.parametrize("steps", range(8))
async def test_a_call_that_is_cancelled_while_its_stream_ends_leaves_nothing_counted(
    steps: int,
) -> None:
    """The first of its requests fails, the others have their answers."""
    unread = UnreadReplies(max_bytes=1000)
    numbers = iter(range(3))
    answered_last = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b""

    async def answer(_: bytes) -> bytes:
        number = next(numbers)
        if number == 2:
            answered_last.set()
        if number > 0:
            return b"12345"
        await answered_last.wait()
        raise InvalidArgument("wrong")

    async def consume() -> None:
        async for _ in answered(requests(), answer, unread=unread, end_on_error=True):
            pass

    call = asyncio.create_task(consume())
    await answered_last.wait()
    for _ in range(steps):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert unread.size_bytes == 0


class Plane:
    """Answers at once those whom `unread` lets in."""

    def __init__(self, unread: UnreadReplies) -> None:
        self._unread = unread

    async def infer(self, request: bytes, call: Call) -> bytes:
        self._unread.check(call.peer)
        return request


class Coder:
    """Leaves messages as they are."""

    def decode(self, data: bytes) -> bytes:
        return data

    def encode_on_stream(self, reply: bytes) -> bytes:
        return reply


class Caller:
    """The context of a call without a deadline."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()


async def test_a_stream_whose_reader_is_slow_is_read_slowly_and_told_no_error() -> None:
    """There is room when the next of its requests is waited for, and none when it comes."""
    enter_call(RpcCall("/x", "1", OWNER))
    unread = UnreadReplies(max_bytes=20)
    anything: Any = (Plane(unread), Coder(), Coder(), unread)
    streams = Streams(*anything, max_in_flight=9, stopping=asyncio.Event())

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"12345"
            for _ in range(5):
                await asyncio.sleep(0)

    caller: Any = Caller()
    replies = []
    async for reply in streams.answer(requests(), caller):
        replies.append(reply)
        for _ in range(50):
            await asyncio.sleep(0)
    assert replies == [b"12345"] * 9
    assert unread.size_bytes == 0
