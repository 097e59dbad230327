"""Callers that do not read their answers are given no more of them."""

from __future__ import annotations

import asyncio

import pytest

from modelrail_inference.request.unread import CallReplies, UnreadReplies
from modelrail_server.errors import ResourceExhausted, Unavailable


def held(unread: UnreadReplies, connection: str, *sizes_bytes: int) -> CallReplies:
    """A call whose replies are not read."""
    replies = unread.of_call(connection)
    for size_bytes in sizes_bytes:
        replies.hold(size_bytes)
    return replies


def is_refused(unread: UnreadReplies, connection: str) -> bool:
    try:
        unread.check(lambda: connection)
    except ResourceExhausted:
        return True
    return False


def nobody() -> str:
    raise AssertionError("the connection was asked for although nothing is unread")


def test_without_unread_replies_nobody_asks_for_the_connection() -> None:
    unread = UnreadReplies(100)
    unread.check(nobody)
    held(unread, "slow", 60, 40).close()
    unread.check(nobody)


def test_a_connection_alone_may_leave_half_unread() -> None:
    unread = UnreadReplies(100)
    slow = held(unread, "slow", 49)
    assert not is_refused(unread, "slow")
    slow.hold(1)
    with pytest.raises(ResourceExhausted, match="50 bytes of replies on this connection") as caught:
        unread.check(lambda: "slow")
    assert caught.value.reason == "REPLIES_UNREAD"
    assert caught.value.retry_after_seconds
    assert not is_refused(unread, "other")
    slow.taken(1)
    assert not is_refused(unread, "slow")


def test_several_that_do_not_read_leave_room_for_one_that_does() -> None:
    unread = UnreadReplies(120)
    for connection in "abc":
        while not is_refused(unread, connection):
            held(unread, connection, 1)
    assert all(is_refused(unread, connection) for connection in "abc")
    reading = held(unread, "reading", 2)
    assert not is_refused(unread, "reading")
    reading.close()
    assert unread.size_bytes < 120


def test_a_burst_that_was_let_in_before_shuts_out_nobody_who_reads() -> None:
    unread = UnreadReplies(100)
    held(unread, "slow", 150)
    assert not is_refused(unread, "other")
    other = held(unread, "other", 1)
    assert is_refused(unread, "other")
    other.close()
    assert not is_refused(unread, "other")


def test_beyond_twice_the_limit_nobody_gets_more() -> None:
    unread = UnreadReplies(100)
    slow = held(unread, "slow", 199)
    unread.check(lambda: "other")
    slow.hold(1)
    with pytest.raises(Unavailable, match="200 bytes of replies") as caught:
        unread.check(lambda: "other")
    assert caught.value.reason == "REPLIES_UNREAD"
    assert caught.value.retry_after_seconds


def test_callers_of_a_unix_socket_share_all_of_the_memory() -> None:
    unread = UnreadReplies(100)
    slow = held(unread, "unix:", 99)
    assert not is_refused(unread, "unix:")
    slow.hold(1)
    assert is_refused(unread, "unix:")


async def test_whoever_waits_for_room_goes_on_when_there_is_some() -> None:
    unread = UnreadReplies(100)
    slow, other = held(unread, "slow", 40), held(unread, "other", 40)
    waiting = [asyncio.create_task(slow.room()) for _ in range(2)]
    await asyncio.wait_for(held(unread, "reading").room(), 30)
    slow.taken(1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    other.taken(30)  # what others read makes room too
    await asyncio.wait_for(asyncio.gather(*waiting), 30)
    slow.hold(30)  # and whoever comes later waits anew
    again = asyncio.create_task(slow.room())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not again.done()
    slow.close()
    await asyncio.wait_for(again, 30)


async def test_whoever_gives_up_waiting_for_room_leaves_nothing_behind() -> None:
    unread = UnreadReplies(100)
    slow = held(unread, "slow", 80)
    waiting = asyncio.create_task(slow.room())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    slow.close()
    assert unread.size_bytes == 0
    await asyncio.wait_for(slow.room(), 30)
