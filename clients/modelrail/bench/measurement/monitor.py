"""Watches the client itself: its processor time, and how late its event loop notices things."""

from __future__ import annotations

import time

from modelrail.bench.load.timer import PreciseTimer
from modelrail.bench.measurement.tally import Tally

__all__ = ["ClientMonitor"]

_PERIOD_NS = 5_000_000


class ClientMonitor:
    """Measures from `start` to `stop`; both run in the event loop's thread.

    Everything that this process does is counted: where it does other work too, that is included.

    Args:
        tally: Where the figures go.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._timer = PreciseTimer(self._on_timer)
        self._due_ns = 0
        self._before = (0.0, 0.0, 0)
        self._is_running = False

    def start(self) -> None:
        """Begins to measure."""
        self._is_running = True
        self._before = (time.process_time(), time.thread_time(), time.monotonic_ns())
        self._arm()

    def stop(self) -> None:
        """Ends measuring, when it has begun; a second call changes nothing."""
        if not self._is_running:
            return
        self._is_running = False
        process_seconds, thread_seconds, began_ns = self._before
        elapsed_seconds = (time.monotonic_ns() - began_ns) / 1e9
        self._tally.cpu_seconds = time.process_time() - process_seconds
        if elapsed_seconds > 0:
            share = (time.thread_time() - thread_seconds) / elapsed_seconds
            self._tally.busiest_loop_share = min(share, 1.0)

    def close(self) -> None:
        """Frees the timer."""
        self._timer.close()

    def _arm(self) -> None:
        self._due_ns = time.monotonic_ns() + _PERIOD_NS
        self._timer.arm(self._due_ns)

    def _on_timer(self) -> None:
        if self._is_running:
            self._tally.loop_lag.record(time.monotonic_ns() - self._due_ns)
            self._arm()
