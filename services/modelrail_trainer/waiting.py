"""Waiting for whichever event comes first, and for the end of work whose caller may leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import structlog

T = TypeVar("T")
_log = structlog.get_logger(__name__)


async def wait_first(*events: asyncio.Event, timeout_seconds: float | None = None) -> None:
    """Returns when one of the events is set, or after the time."""
    if any(event.is_set() for event in events):
        return
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def to_the_end(work: Awaitable[T]) -> T:
    """Returns what `work` returns. Cancelling, however often, takes effect when it has ended.

    An error that it raises then is logged: a cancelled caller is told nothing else.
    """
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return future.result()
    if not future.cancelled() and (failure := future.exception()) is not None:
        _log.warning("work whose caller had left failed", error=str(failure))
    raise cancelled
