"""How soon a worker that ended is replaced."""

from __future__ import annotations

__all__ = ["Restarts"]

_FIRST_SECONDS = 0.1
_LONGEST_SECONDS = 5.0
_STABLE_SECONDS = 10.0


class Restarts:
    """At once after a life of ten seconds; ever later, up to five, while lives are shorter."""

    def __init__(self) -> None:
        self._short_lives = 0

    def delay_seconds(self, lived_seconds: float) -> float:
        """Returns how long to wait before the replacement of a worker that lived so long."""
        if lived_seconds >= _STABLE_SECONDS:
            self._short_lives = 0
            return 0.0
        self._short_lives += 1
        if self._short_lives == 1:
            return 0.0
        # Six doublings reach the longest wait.
        return min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(self._short_lives - 2, 6))
