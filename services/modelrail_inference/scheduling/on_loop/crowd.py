"""How many requests of a model come right behind each other."""

from __future__ import annotations

MOST_REQUESTS = 32
"""Requests that are waited for at most."""
_FEWEST_REQUESTS = 3
"""Two together save less than it costs to wait for the second, as was measured."""
_PAUSES = (4, 256)
"""Fewest batches from one trial to the next, and most."""


class Crowd:
    """Learns for how many requests of one model it is worth to wait.

    Callers that were answered together ask again together, so the last batches tell the size of the
    next. Whether more would come only shows when they are waited for: now and then that is tried,
    and the more seldom the more often it was in vain.

    Attributes:
        wanted: Requests to wait for now; 1 for not waiting.
    """

    __slots__ = ("_batches_left", "_expected", "_pause", "wanted")

    def __init__(self) -> None:
        self.wanted = 1
        self._expected = 1
        self._pause = self._batches_left = _PAUSES[0]

    def came(self, count: int) -> None:
        """Learns from so many requests that came until they ran, of those that were wanted."""
        tried = self.wanted > self._expected
        if count < _FEWEST_REQUESTS:
            count = 1
        if count > self._expected:
            self._expected = min(count, MOST_REQUESTS)
            self._pause = _PAUSES[0]
        elif tried:
            self._pause = min(2 * self._pause, _PAUSES[1])
        if count < self._expected:
            # Half of the way down, and soon another trial: it may have been a hiccup.
            self._expected -= (self._expected - count + 1) // 2
            self._batches_left = min(self._batches_left, _PAUSES[0])
        if self._expected < _FEWEST_REQUESTS:
            self._expected = 1
        if tried or self._expected == MOST_REQUESTS:
            self._batches_left = self._pause
        else:
            self._batches_left -= 1
        self.wanted = self._expected if self._batches_left else MOST_REQUESTS

    def was_in_vain(self) -> None:
        """Learns that requests were left to the threads although they had waited."""
        self.wanted = self._expected = 1
        self._pause = self._batches_left = min(2 * self._pause, _PAUSES[1])
