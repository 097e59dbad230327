"""How much of the event loop's time runs may take."""

from __future__ import annotations

_MOST_OWED_SECONDS = 0.01


class LoopBudget:
    """Keeps half of an event loop's time free of runs, whichever models they are of.

    Tiny runs are not held back, so more than half may be spent: what is owed is bounded, or quick
    models would be kept away for long after.
    """

    __slots__ = ("_free_at",)

    def __init__(self) -> None:
        self._free_at = 0.0

    def has_room(self, now: float) -> bool:
        """Whether a run may begin at a moment of `time.monotonic()`."""
        return now >= self._free_at

    def spent(self, seconds: float, now: float) -> None:
        """Notes runs of so many seconds, which ended at a moment of `time.monotonic()`."""
        began = now - seconds
        owed = max(self._free_at - began, 0.0) + seconds
        self._free_at = now + min(owed, max(_MOST_OWED_SECONDS, seconds))
