"""How long the next run of a model will take, learned from the last ones."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable

_DECAY = 0.9
"""Weight of what was known before; the last ten runs or so decide."""
_REFUSAL_MARGIN = 1.15
"""A run may take so many times what is expected. By this requests are refused or left out of a
batch, so it is small: a larger one would refuse many that end in time. A batch that waits for more
requests leaves its run more than that; see `request_queue`."""
_TRIAL_PAUSE = 10.0
"""From one trial to the next, as a multiple of what it may take, or the last one that was stopped
took: a tenth of a thread."""
_LEAST_VARIANCE = 1e-24
"""Of sizes, relative to their mean squared: after some 500 runs of one size nothing is known of
others any more."""
_ROUNDING = 1e-9
"""A size that differs less from the mean, relative to itself, does so by rounding only."""
_MOST_KEYS = 32
"""Shapes that are told apart. With more of them each runs too seldom to teach much."""


class RunTime:
    """Fits the time of a run to `a + b · items` by least squares, older runs counting less.

    The idea is BentoML's (`marshal/dispatcher.py`): the time of a batch is nearly linear in its
    size.
    """

    __slots__ = (
        "_covariance",
        "_items",
        "_refused_since",
        "_seconds",
        "_trial_seconds",
        "_variance",
        "_weight",
        "runs",
    )

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Knows nothing any more."""
        self.runs = 0
        # Means, and sums of products about them. While one size comes, both sums fade alike, and
        # their quotient stays.
        self._weight = self._items = self._seconds = self._variance = self._covariance = 0.0
        self._refused_since: float | None = None
        self._trial_seconds = 0.0

    def add(self, items: int, seconds: float) -> None:
        """Learns from one run of `items` that took `seconds`."""
        self.runs += 1
        self._refused_since = None
        self._weight = _DECAY * self._weight + 1
        more_items, more_seconds = items - self._items, seconds - self._seconds
        if abs(more_items) < _ROUNDING * items:
            more_items = 0.0
        self._items += more_items / self._weight
        self._seconds += more_seconds / self._weight
        self._variance = _DECAY * self._variance + more_items * (items - self._items)
        self._covariance = _DECAY * self._covariance + more_items * (seconds - self._seconds)

    def seconds(self, items: int) -> float:
        """Returns the expected time of a run in seconds; 0 when nothing is known yet."""
        if not self.runs:
            return 0.0
        if not self.has_varied():
            # Only one size was seen: a smaller batch takes at most as long, a larger one in
            # proportion.
            return self._seconds * max(1.0, items / self._items)
        slope = max(0.0, self._covariance / self._variance)
        return max(0.0, self._seconds + slope * (items - self._items))

    def longest(self, items: int) -> float:
        """Returns how long a run may take, in seconds: more than expected, as runs differ.

        What is expected to end right before its deadline ends after it every second time, and then
        all of the run was in vain.
        """
        return _REFUSAL_MARGIN * self.seconds(items)

    def tries(self, now: float, seconds: float) -> bool:
        """Whether a request runs that is expected to take longer than it may, or is refused.

        A refusal teaches nothing, so a guess that one slow run has spoilt would stand for ever.
        Now and then one request shows whether it is still right.

        Args:
            now: Moment of `time.monotonic()`.
            seconds: Time after which the run would be told to stop.
        """
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since < _TRIAL_PAUSE * max(seconds, self._trial_seconds):
            return False
        self._refused_since = now
        return True

    def tried(self, seconds: float) -> None:
        """Learns what a trial took until it stopped: a run does so only between two operators."""
        self._trial_seconds = seconds

    def has_varied(self) -> bool:
        """Whether the last runs were of different sizes, so that they tell the time of others."""
        return self._variance > _LEAST_VARIANCE * self._items**2


class RunTimes:
    """Learns for each shape of requests apart: a run of short texts says little about long ones.

    A model whose requests all have one shape costs no more than one `RunTime`.

    Attributes:
        whole: What all runs teach together; answers for a shape of which nothing is known.
    """

    __slots__ = ("_by_key", "_first_key", "whole")

    def __init__(self) -> None:
        self.whole = RunTime()
        self._first_key: Hashable = None
        # Empty as long as there is one shape; then those that ran last, the newest at the end.
        self._by_key: OrderedDict[Hashable, RunTime] = OrderedDict()

    def add(self, key: Hashable, items: int, seconds: float) -> None:
        """Learns from one run of `items` of one shape that took `seconds`."""
        if not self.whole.runs:
            self._first_key = key
        elif not self._by_key and key != self._first_key:
            self._by_key[self._first_key] = copy.copy(self.whole)
        self.whole.add(items, seconds)
        if not self._by_key:
            return
        if key not in self._by_key:
            self._by_key[key] = RunTime()
            if len(self._by_key) > _MOST_KEYS:
                self._by_key.popitem(last=False)
        self._by_key.move_to_end(key)
        self._by_key[key].add(items, seconds)

    def forget(self, key: Hashable) -> None:
        """Forgets what is known about one shape, which a trial has disproved."""
        if self.knows(key):
            self.of(key).forget()

    def tries(self, key: Hashable, now: float, seconds: float) -> bool:
        """Whether a request of one shape runs against the guess; see `RunTime.tries`."""
        return not self.knows(key) or self.of(key).tries(now, seconds)

    def knows(self, key: Hashable) -> bool:
        """Whether the guess for one shape comes from its own runs."""
        return key in self._by_key or (not self._by_key and key == self._first_key)

    def of(self, key: Hashable) -> RunTime:
        """Returns what is known about the runs of one shape."""
        return self._by_key.get(key, self.whole)
