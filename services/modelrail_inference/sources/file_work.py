"""Threads for work on files: hashing, copying, reading folders."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from modelrail_inference.threads.daemon_threads import DaemonThreads

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
        self._threads = DaemonThreads(threads, name="files")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `work` on a thread and returns its result, or raises what it raised."""
        return await self._threads.submit(lambda: work(*args, **kwargs))

    def close(self) -> None:
        """Drops what waits. Present work goes on and is not waited for."""
        self._threads.close()
