"""Waiting for whichever event comes first."""

from __future__ import annotations

import asyncio


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
