"""A moment in which a free session waits for callers that it has just answered."""

from __future__ import annotations

_SHARE = 0.05
"""How long it waits, as a share of the run that was answered."""
_SECONDS = (0.0002, 0.005)
"""Shortest wait that is worth it, and the longest, in seconds."""
_PAUSES = (1, 256)
"""Batches without a wait after the first that was in vain, and at most."""


class Linger:
    """Has the first to come back wait for the others, as long as that makes batches grow.

    Whoever was answered may ask again as soon as the answer comes. Without a wait a busy model's
    callers split into ever smaller batches: the first to come back would run alone, and the others
    would find the session taken. Where nobody else comes, a wait helps nobody: after each that was
    in vain there is none for twice as many batches.

    Args:
        is_possible: Whether there is anybody to wait for at all.
    """

    __slots__ = (
        "_batches_left",
        "_expected_rows",
        "_first_rows",
        "_is_possible",
        "_pause",
        "_until",
    )

    def __init__(self, *, is_possible: bool = True) -> None:
        self._is_possible = is_possible
        self._until = 0.0
        self._expected_rows = 0
        # Of those who began to wait; 0 when nobody did.
        self._first_rows = 0
        self._pause = _PAUSES[0]
        self._batches_left = 0

    @property
    def lasts(self) -> bool:
        """Whether callers are waited for, or were until a moment that nobody has seen pass yet."""
        return self._until > 0

    def seconds(self, run_seconds: float) -> float:
        """Returns how long callers of a run are waited for, in seconds."""
        return min(_SECONDS[1], _SHARE * run_seconds) if self._is_possible else 0.0

    def answered(self, run_seconds: float, expected_rows: int, now: float) -> None:
        """Begins to wait, as a batch has ended.

        Args:
            run_seconds: What its run was expected to take, in seconds.
            expected_rows: Items that wait when all callers have come back.
            now: Moment of `time.monotonic()`.
        """
        seconds = self.seconds(run_seconds)
        if seconds < _SECONDS[0]:
            return
        if self._batches_left:
            self._batches_left -= 1
            return
        self._expected_rows = expected_rows
        self._until = now + seconds

    def until(self, rows: int, latest_start: float, now: float) -> float:
        """Returns until when those who wait should go on waiting; a moment in the past for now.

        Args:
            rows: Items that wait, at least one.
            latest_start: When they have to run because of their deadlines.
            now: Moment of `time.monotonic()`; so is `latest_start`.
        """
        if now < min(self._until, latest_start) and rows < self._expected_rows:
            self._first_rows = self._first_rows or rows
            return min(self._until, latest_start)
        if self._first_rows:
            self._learn(rows, is_over=now >= self._until)
        self._until = 0.0
        return 0.0

    def _learn(self, rows: int, *, is_over: bool) -> None:
        if rows > self._first_rows:
            self._pause = _PAUSES[0]
        elif is_over:
            self._batches_left = self._pause
            self._pause = min(2 * self._pause, _PAUSES[1])
        self._first_rows = 0
