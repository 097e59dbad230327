"""Threads for work on files: hashing, copying, reading folders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class FileWork:
    """Runs what blocks on the disk beside the event loop, a few at a time.

    asyncio's default threads are shared with every library of the process: hashing many large
    models there would keep name look-ups waiting.

    Args:
        threads: Pieces of work at a time; the rest waits in order.
    """

    def __init__(self, threads: int = 2) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="files")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `work` on a thread and returns its result, or raises what it raised."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))

    def close(self) -> None:
        """Drops what waits. Threads end with their present work, which is not waited for here."""
        self._threads.shutdown(wait=False, cancel_futures=True)
