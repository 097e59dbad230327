"""Whether the event loop has no time to spare."""

from __future__ import annotations

import resource
from collections.abc import Callable

_REQUESTS = 32
"""Requests by which it is seen."""
_MOST_SWITCHES = 0.5
"""Fewer voluntary switches than this for a request: the loop hardly ever waited for work."""
_WINDOW_SECONDS = 0.1
"""Longest time in which they came, and for which what they showed holds, in seconds."""


_THREAD = getattr(resource, "RUSAGE_THREAD", None)
"""Linux has it."""


def voluntary_switches() -> int:
    """Returns how often the calling thread has given its processor away because it waited.

    0 where the system does not count them.
    """
    return 0 if _THREAD is None else resource.getrusage(_THREAD).ru_nvcsw


class LoopLoad:
    """Tells a saturated event loop by the voluntary context switches of its thread.

    A loop that has caught up sleeps until the next request, which the kernel counts; a saturated
    one finds the next request there. That says more than the processor time of the thread, which a
    busy machine takes away. Waits for a lock count too, also those for the interpreter: a loop that
    shares it with threads passes for one that has time to spare. Where the kernel counts no
    switches at all, as in some sandboxes, nothing is known, and no loop is saturated.

    While requests wait for each other the loop looks for the next one all the time and does not
    sleep. Whoever has it do so tells when that ended because none came; shorter pauses are not
    seen, so that bursts can pass for saturation once requests wait.

    Belongs to the thread of the event loop.

    Args:
        switches: Returns the voluntary switches of the calling thread so far.

    Attributes:
        is_saturated: Whether the loop has no time to spare, as of the request that came last.
    """

    __slots__ = ("_idle", "_left", "_looked_at", "_switches", "_switches_before", "is_saturated")

    def __init__(self, switches: Callable[[], int] = voluntary_switches) -> None:
        self._switches = switches
        self._switches_before = 0
        self._idle = 0
        self._looked_at = float("-inf")
        self._left = _REQUESTS
        self.is_saturated = False

    def came(self, now: float) -> bool:
        """Counts a request that comes at a moment of `time.monotonic()`; returns `is_saturated`."""
        self._left -= 1
        if not self._left:
            self._look(now)
        elif self.is_saturated and now - self._looked_at > _WINDOW_SECONDS:
            self.is_saturated = False
        return self.is_saturated

    def would_have_waited(self) -> None:
        """Counts a moment in which the loop had nothing to do, and did not sleep."""
        self._idle += 1

    def _look(self, now: float) -> None:
        counted = self._switches()
        switches = counted + self._idle if counted else 0
        self.is_saturated = (
            switches > 0
            and now - self._looked_at <= _WINDOW_SECONDS
            and switches - self._switches_before < _MOST_SWITCHES * _REQUESTS
        )
        self._switches_before = switches
        self._looked_at = now
        self._left = _REQUESTS
