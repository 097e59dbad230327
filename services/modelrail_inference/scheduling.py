"""The bounded queue in front of the sessions.

Work waits in order of arrival until one of a fixed number of threads is free. The queue is
bounded in items and in bytes, and refuses at once what does not fit. Work whose caller has gone
or whose deadline has passed never runs; work that runs is told to stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelrail_inference.call import Call
from modelrail_inference.daemon_threads import DaemonThreads
from modelrail_server.errors import ResourceExhausted, Unavailable

T = TypeVar("T")

THREAD_NAME = "session"

_RETRY_AFTER_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """One unit of work.

    Attributes:
        run: What to do, on a thread.
        terminate: Makes `run` end soon; called from the event loop.
        release: Called once, on the event loop, when the work neither waits nor runs any more. That
            can be later than the moment when the caller gave up.
        size_bytes: Memory that the work holds while it waits and runs.
    """

    run: Callable[[], T]
    terminate: Callable[[], None]
    release: Callable[[], None]
    size_bytes: int


class RunQueue:
    """A bounded queue and the threads behind it.

    Args:
        threads: Runs at a time.
        max_items: Work that may wait.
        max_bytes: Memory that waiting and running work may hold together, in bytes.
    """

    def __init__(self, *, threads: int, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._waiting = 0
        self._held_bytes = 0
        self._slots = asyncio.Semaphore(threads)
        self._threads = DaemonThreads(threads, name=THREAD_NAME)

    @property
    def waiting(self) -> int:
        """Work that waits for a thread."""
        return self._waiting

    async def run(self, work: Work[T], call: Call) -> tuple[T, int]:
        """Waits for a thread and runs the work.

        Returns:
            The result, and the time spent waiting in nanoseconds.

        Raises:
            Unavailable: The queue is full, or the deadline passed.
            ResourceExhausted: The work alone holds more than everything together may.
        """
        try:
            self._admit(work)
        except BaseException:
            work.release()
            raise
        started = time.perf_counter_ns()
        try:
            await self._wait_for_thread(call)
        except BaseException:
            self._finish(work)
            raise
        waited_ns = time.perf_counter_ns() - started
        try:
            future = self._threads.submit(work.run)
        except RuntimeError as error:  # the threads are gone: the server ends
            self._slots.release()
            self._finish(work)
            raise Unavailable("Server exiting", reason="SERVER_EXITING") from error
        # The thread is free and the work released only when the run has really ended, however early
        # the caller leaves.
        future.add_done_callback(lambda done: self._ended(work, done))
        try:
            async with asyncio.timeout(_remaining(call)):
                return await asyncio.shield(future), waited_ns
        except TimeoutError:
            work.terminate()
            raise _expired() from None
        except asyncio.CancelledError:
            work.terminate()
            raise

    def close(self) -> None:
        """Ends the threads once their present runs are over, without waiting for that."""
        self._threads.close()

    def _admit(self, work: Work[T]) -> None:
        if work.size_bytes > self._max_bytes:
            raise ResourceExhausted(
                f"the inputs take about {work.size_bytes} bytes once they are decoded, and all "
                f"requests together may hold {self._max_bytes}",
                reason="REQUEST_TOO_LARGE",
            )
        # A free thread takes work at once, so `max_items` bounds only what has to wait.
        full = self._slots.locked() and self._waiting >= self._max_items
        if full or self._held_bytes + work.size_bytes > self._max_bytes:
            raise Unavailable(
                "Exceeds maximum queue size",
                reason="QUEUE_FULL",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._held_bytes += work.size_bytes

    async def _wait_for_thread(self, call: Call) -> None:
        if call.expired():
            raise _expired()
        self._waiting += 1
        try:
            async with asyncio.timeout(_remaining(call)):
                await self._slots.acquire()
        except TimeoutError:
            raise _expired() from None
        finally:
            self._waiting -= 1

    def _ended(self, work: Work[T], future: asyncio.Future[T]) -> None:
        self._slots.release()
        self._finish(work)
        # A caller that left does not look at the outcome; looking here keeps asyncio from warning.
        with suppress(asyncio.CancelledError):
            future.exception()

    def _finish(self, work: Work[T]) -> None:
        self._held_bytes -= work.size_bytes
        work.release()


def _remaining(call: Call) -> float | None:
    return None if call.deadline is None else max(0.0, call.deadline - time.monotonic())


def _expired() -> Unavailable:
    return Unavailable("Request timeout expired", reason="REQUEST_TIMEOUT")
