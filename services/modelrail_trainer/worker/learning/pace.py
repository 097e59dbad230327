"""How fast training goes, and when it will be over at that speed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modelrail_trainer.handover.journal import MAX_SECONDS

_MARKS = 20
_MOST_REPORTS = 200
"""In the time in which training has e times as long gone on."""


class Pace:
    """The speed over the last reports, with all that an epoch takes beside its steps.

    What an earlier process trained counts as done, and says nothing of the speed of this one.

    Args:
        rows_in_all: Rows of all epochs together.
        rows_done: Those that were trained on before.
        clock: Seconds that only grow.
    """

    def __init__(
        self, rows_in_all: int, rows_done: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rows_in_all = rows_in_all
        self._clock = clock
        self._marks = deque([(clock(), rows_done)], maxlen=_MARKS)

    def eta_seconds(self, rows_done: int, *, remembered: bool = True) -> float | None:
        """Returns the seconds until all rows are done; None when nothing was trained yet.

        Args:
            rows_done: Rows that were trained on by now, in all epochs.
            remembered: Whether this is one of the reports whose speed later ones go by. Many of
                them within an epoch would make what an epoch takes at its end forgotten.
        """
        then, rows_then = self._marks[0]
        now = self._clock()
        if remembered and rows_done > self._marks[-1][1]:
            self._marks.append((now, rows_done))
        trained = rows_done - rows_then
        if trained <= 0:
            return None
        return min((now - then) * (self._rows_in_all - rows_done) / trained, MAX_SECONDS)


class Reports:
    """When it is time to tell within an epoch where training stands.

    Reports are kept, so they become rarer the longer training goes on: then a day leaves about
    1,100 of them and a week 1,500, and the next is never further away than a two-hundredth of the
    time that has passed.

    Args:
        least_seconds: Time between two reports.
        clock: Seconds that only grow.
    """

    def __init__(
        self, least_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._least_seconds = least_seconds
        self._clock = clock
        self._started = clock()
        self._next = self._started + least_seconds

    def is_due(self) -> bool:
        """Whether it is time for a report."""
        return self._clock() >= self._next

    def told(self) -> None:
        """There was a report."""
        now = self._clock()
        self._next = now + max(self._least_seconds, (now - self._started) / _MOST_REPORTS)


class Speed:
    """Rows a second within one epoch, without the time of what is no training.

    Args:
        rows: Rows of the epoch that an earlier process trained on.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._started = time.perf_counter()
        self._paused_seconds = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside."""
        began = time.perf_counter()
        yield
        self._paused_seconds += time.perf_counter() - began

    def rows_per_second(self, rows: int) -> float:
        """Returns the speed, when so many rows of the epoch were trained on."""
        seconds = time.perf_counter() - self._started - self._paused_seconds
        return (rows - self._rows) / max(seconds, 1e-9)
