"""The search for unfinished uploads, again and again while the registry serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from modelrail_registry.storage.transfer import Transfer

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def sweeping(
    transfer: Transfer, *, expiry_seconds: float, interval_seconds: float
) -> AsyncIterator[None]:
    """Sweeps now, and then regularly until the context ends. A search that fails is logged.

    Args:
        transfer: Where uploads are.
        expiry_seconds: Age of its last byte at which an upload is removed.
        interval_seconds: Time between two searches.
    """

    async def sweep() -> None:
        try:
            await transfer.sweep(expiry_seconds)
        except Exception:  # noqa: BLE001 (the registry serves without it; the next may succeed)
            _log.exception("the search for unfinished uploads failed")

    async def repeat() -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            await sweep()

    await sweep()
    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
