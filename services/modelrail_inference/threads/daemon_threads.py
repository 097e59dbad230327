"""Threads that hold up nobody's end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from modelrail_inference.threads.limit import ThreadLimitReached, start_thread

T = TypeVar("T")

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]
_JOIN_SECONDS = 0.2


class DaemonThreads:
    """A fixed number of threads that call functions for the event loop.

    Unlike those of `concurrent.futures`, they are not joined when the interpreter ends: work that
    is stuck in native code or on a dead disk must not keep the process from ending.

    Args:
        count: Threads. They start with the first work.
        name: What the names of the threads begin with.
    """

    def __init__(self, count: int, *, name: str) -> None:
        self._count = count
        self._name = name
        # Whoever submits awaits the outcome, so callers bound what waits here.
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Returns the outcome of `work`, which a thread calls when one is free.

        Raises:
            RuntimeError: The threads are closed.
            ThreadLimitReached: There is no thread, and none could be started.
        """
        if self._closed:
            raise RuntimeError("the threads are closed")
        if len(self._threads) < self._count:
            self._start_thread()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((work, future))
        return future

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=_serve, args=(self._jobs,), name=name, daemon=True)
        try:
            start_thread(thread)
        except ThreadLimitReached:
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def close(self) -> None:
        """Drops what waits and ends the threads; work that goes on is not waited for."""
        self._closed = True
        with suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job[1].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        latest = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, latest - time.monotonic()))


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        work, future = job
        result: Any = None
        failure: BaseException | None = None
        if not future.cancelled():
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            future.get_loop().call_soon_threadsafe(_settle, future, result, failure)
        # What the work held must not live until the next comes.
        del job, work, future, result, failure


def _settle(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
