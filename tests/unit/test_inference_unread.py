"""Callers that do not read their answers are given no more of them."""

from __future__ import annotations

import asyncio

import pytest

from modelrail_inference.request.unread import UnreadReplies
from modelrail_server.errors import ResourceExhausted, Unavailable


def nobody() -> str:
    raise AssertionError("the connection was asked for although nothing is unread")


def test_without_unread_replies_nobody_asks_for_the_connection() -> None:
    unread = UnreadReplies(100)
    unread.check(nobody)
    unread.hold("slow", 100)
    unread.release("slow", 100)
    unread.check(nobody)


def test_a_connection_whose_replies_are_unread_gets_no_new_ones_until_they_are_read() -> None:
    unread = UnreadReplies(100)
    unread.hold("slow", 30)
    unread.check(lambda: "slow")
    unread.hold("slow", 30)
    with pytest.raises(ResourceExhausted, match="60 bytes of replies") as caught:
        unread.check(lambda: "slow")
    assert caught.value.reason == "REPLIES_UNREAD"
    assert caught.value.retry_after_seconds
    unread.check(lambda: "other")
    unread.release("slow", 30)
    unread.check(lambda: "slow")


def test_when_all_together_leave_too_much_unread_nobody_gets_more() -> None:
    unread = UnreadReplies(100)
    for connection in "abc":
        unread.hold(connection, 34)
    with pytest.raises(Unavailable, match="102 bytes of replies") as caught:
        unread.check(lambda: "other")
    assert caught.value.reason == "REPLIES_UNREAD"
    unread.release("a", 34)
    unread.check(lambda: "other")


async def test_whoever_waits_for_room_goes_on_when_there_is_some() -> None:
    unread = UnreadReplies(100)
    unread.hold("slow", 80)
    waiting = [asyncio.create_task(unread.room_on("slow")) for _ in range(2)]
    await asyncio.wait_for(unread.room_on("other"), 30)
    unread.release("slow", 20)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    unread.release("slow", 20)
    await asyncio.wait_for(asyncio.gather(*waiting), 30)


async def test_whoever_gives_up_waiting_for_room_leaves_nothing_behind() -> None:
    unread = UnreadReplies(100)
    unread.hold("slow", 80)
    waiting = asyncio.create_task(unread.room_on("slow"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    unread.release("slow", 80)
    assert unread.size_bytes == 0
    await asyncio.wait_for(unread.room_on("slow"), 30)
