"""How much of the event loop's time runs may take."""

from __future__ import annotations


class LoopBudget:
    """Keeps half of an event loop's time free of runs, whichever models they are of."""

    __slots__ = ("_free_at",)

    def __init__(self) -> None:
        self._free_at = 0.0

    def has_room(self, now: float) -> bool:
        """Whether a run may begin at a moment of `time.monotonic()`."""
        return now >= self._free_at

    def spent(self, seconds: float, now: float) -> None:
        """Notes runs of so many seconds, which ended at a moment of `time.monotonic()`."""
        self._free_at = now + seconds
