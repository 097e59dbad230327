"""The threads that the service owns for work that blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import structlog

from modelrail_trainer.waiting import to_the_end

P = ParamSpec("P")
T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Threads:
    """A few threads for disk and database work; the event loop never waits for a disk.

    Args:
        count: Number of threads.
    """

    def __init__(self, count: int = 4) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="modelrail-trainer")

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns what `function` returns in a thread. Cancelling does not stop the function."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def finish(
        self,
        function: Callable[[], T],
        *,
        dispose: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        """Returns what `function` returns. Cancelling takes effect when it has ended.

        So whoever cancels may remove next what it works on.

        Args:
            function: Called in a thread, once.
            dispose: Takes what it returned after the caller was cancelled, as nobody else does.
        """
        call = asyncio.get_running_loop().run_in_executor(self._executor, function)
        try:
            return await to_the_end(call)
        except asyncio.CancelledError:
            if dispose is not None and call.exception() is None:
                await _disposed(dispose(call.result()))
            raise

    def close(self) -> None:
        """Waits for calls that run and ends the threads."""
        self._executor.shutdown(wait=True, cancel_futures=False)


async def _disposed(disposal: Awaitable[object]) -> None:
    try:
        await to_the_end(disposal)
    except Exception:  # noqa: BLE001 - it must not stand in for the cancellation
        _log.exception("what a cancelled caller left could not be disposed of")
