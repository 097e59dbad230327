"""The stretch of time that is measured, and what belongs to it."""

from __future__ import annotations

import time

from modelrail.bench.measurement.failure import RequestFailed
from modelrail.bench.measurement.tally import Tally

__all__ = ["Window"]

_FOREVER_NS = 1 << 62


class Window:
    """Opens at a time, and closes at a time or when so many requests have begun in it.

    Args:
        tally: Where requests of the window are counted.
        start_ns: When it opens; times are those of `time.monotonic_ns()`.
        duration_ns: How long it lasts; None to close by `requests`.
        requests: How many requests begin in it; None to close by `duration_ns`.
    """

    def __init__(
        self, tally: Tally, *, start_ns: int, duration_ns: int | None, requests: int | None
    ) -> None:
        self._tally = tally
        self.start_ns = start_ns
        self.end_ns = _FOREVER_NS if duration_ns is None else start_ns + duration_ns
        self._left = requests
        self._last_ns = start_ns

    def admits(self, due_ns: int) -> bool:
        """Whether a request that is due at `due_ns` is still one of the run; counts it, if so.

        Requests before the window are warm-up, and always of the run.
        """
        if due_ns < self.start_ns:
            return True
        if due_ns >= self.end_ns or self._left == 0:
            return False
        if self._left is not None:
            self._left -= 1
        return True

    def admits_of(self, count: int) -> int:
        """How many of `count` that were due in the window are still of the run; counts these."""
        if self._left is None:
            return count
        admitted = min(count, self._left)
        self._left -= admitted
        return admitted

    def measures(self, due_ns: int) -> bool:
        """Whether a request of the run counts: it was due when the window had opened."""
        return due_ns >= self.start_ns

    def answered(self, due_ns: int, items: int) -> None:
        """Counts an answer that came now."""
        now_ns = time.monotonic_ns()
        if self.start_ns <= now_ns < self.end_ns:
            self._tally.answers += 1
            self._tally.items += items
            self._last_ns = now_ns
        if self.measures(due_ns):
            self._tally.latency.record(now_ns - due_ns)

    def failed(self, due_ns: int, failure: RequestFailed) -> None:
        """Counts a request that is known to have failed now."""
        if not self.measures(due_ns):
            return
        now_ns = time.monotonic_ns()
        self._last_ns = min(now_ns, self.end_ns)
        self._tally.fail(failure, now_ns - due_ns)

    def cut(self) -> None:
        """Closes the window now, if it is still open; before its opening it stays empty."""
        self.end_ns = max(min(self.end_ns, time.monotonic_ns()), self.start_ns)

    def settle(self) -> None:
        """Writes the window's times into the tally, when the last answer is there."""
        self._tally.window_start_ns = self.start_ns
        by_count = self.end_ns == _FOREVER_NS
        self._tally.window_end_ns = self._last_ns if by_count else self.end_ns
