"""Watches the client itself: its processor time, and how late its event loop notices things."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from modelrail.bench.load.timer import PreciseTimer
from modelrail.bench.measurement.tally import Tally

__all__ = ["ClientMonitor", "Clocks"]

_PERIOD_NS = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """What a monitor reads: the system's clocks, or those of a test."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    thread_seconds: Callable[[], float] = time.thread_time
    """Processor time of the calling thread."""
    process_seconds: Callable[[], float] = time.process_time
    """Processor time of all threads."""


_SYSTEM = Clocks()


class ClientMonitor:
    """Measures from `start` to `stop`; both run in the event loop's thread.

    Everything that this process does is counted: where it does other work too, that is included.

    Args:
        tally: Where the figures go.
        clocks: What time it is, and how much of it was work.
    """

    def __init__(self, tally: Tally, clocks: Clocks = _SYSTEM) -> None:
        self._tally = tally
        self._clocks = clocks
        self._timer = PreciseTimer(self._on_timer)
        self._due_ns = 0
        self._before = (0.0, 0.0, 0)
        self._is_running = False

    def start(self) -> None:
        """Begins to measure."""
        self._is_running = True
        self._before = self._read()
        self._arm()

    def stop(self) -> None:
        """Ends measuring, when it has begun; a second call changes nothing."""
        if not self._is_running:
            return
        self._is_running = False
        process_seconds, thread_seconds, elapsed_ns = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        self._tally.cpu_seconds = process_seconds
        if elapsed_ns > 0:
            self._tally.busiest_loop_share = min(thread_seconds * 1e9 / elapsed_ns, 1.0)

    def close(self) -> None:
        """Frees the timer."""
        self._timer.close()

    def _read(self) -> tuple[float, float, int]:
        clocks = self._clocks
        return clocks.process_seconds(), clocks.thread_seconds(), clocks.monotonic_ns()

    def _arm(self) -> None:
        self._due_ns = self._clocks.monotonic_ns() + _PERIOD_NS
        self._timer.arm(self._due_ns)

    def _on_timer(self) -> None:
        if self._is_running:
            self._tally.loop_lag.record(self._clocks.monotonic_ns() - self._due_ns)
            self._arm()
