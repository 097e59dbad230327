"""The requests whose time can run out, and the timer that tells of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.queue.request_queue import is_late


class Timeouts:
    """Watches requests that wait or run. Belongs to the event loop.

    Args:
        loop: The event loop.
        time_out: Gets a request that is late, and the moment of `time.monotonic()`; it forgets the
            request, or gives it another timeout.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, time_out: Callable[[QueuedRequest, float], None]
    ) -> None:
        self._loop = loop
        self._time_out = time_out
        self._watched: set[QueuedRequest] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._watched)

    @property
    def is_armed(self) -> bool:
        """Whether the timer runs."""
        return self._timer is not None

    def watch(self, request: QueuedRequest) -> None:
        """Watches a request, if its time can run out."""
        if (timeout := request.next_timeout()) is not None:
            self._watched.add(request)
            self._arm(timeout)

    def forget(self, request: QueuedRequest) -> None:
        """Watches a request no more."""
        self._watched.discard(request)

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, moment: float) -> None:
        """Sees to it that the timer fires no later than `moment`."""
        if self._timer is not None:
            if self._timer.when() <= moment:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(moment, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = time.monotonic()
        for request in [one for one in self._watched if is_late(one, now)]:
            self._time_out(request, now)
        # A request that runs has no patience to lose any more, and perhaps no deadline either.
        timeouts = (request.next_timeout() for request in self._watched)
        earliest = min((moment for moment in timeouts if moment is not None), default=None)
        if earliest is not None:
            self._arm(earliest)
