"""Latencies as counts in buckets whose width grows with the value.

Values below 256 ns have a bucket each; above, every power of two is cut into 128 buckets. A
quantile is the middle of its bucket, so it is wrong by at most 1/256 = 0.4 %, whatever the
distribution, and histograms of several processes add up to exactly the histogram of all their
values. Count, sum, least and greatest value are exact.

Source: the layout of HdrHistogram (http://hdrhistogram.org), with 7 bits in a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

__all__ = ["LatencyHistogram"]

_BITS = 7
_PER_OCTAVE = 1 << _BITS
_GREATEST = (1 << 44) - 1  # almost five hours
_BUCKETS = (44 - _BITS + 1) * _PER_OCTAVE


class LatencyHistogram:
    """Counts durations in nanoseconds, from 0 to about five hours; longer ones count as that."""

    __slots__ = ("_counts", "count", "greatest", "least", "total")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.total = 0
        """Sum of all values in nanoseconds."""
        self.least = _GREATEST
        self.greatest = 0

    def record(self, nanoseconds: int) -> None:
        """Counts one value; a negative one, which only a clock could make, counts as 0."""
        value = min(max(nanoseconds, 0), _GREATEST)
        shift = max(value.bit_length() - _BITS - 1, 0)
        self._counts[(shift << _BITS) + (value >> shift)] += 1
        self.count += 1
        self.total += value
        self.least = min(self.least, value)
        self.greatest = max(self.greatest, value)

    def add(self, other: LatencyHistogram) -> None:
        """Counts everything that `other` has counted."""
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    @classmethod
    def sum(cls, histograms: Iterable[LatencyHistogram]) -> Self:
        """Returns one that has counted everything that they have."""
        whole = cls()
        for histogram in histograms:
            whole.add(histogram)
        return whole

    def quantile(self, q: float, *, beyond: int = 0) -> float:
        """Returns the value below or at which the part `q` of all values lies, in nanoseconds.

        That is the smallest value whose rank is at least `q` times the count, as
        `numpy.quantile(…, method="inverted_cdf")`; NaN when nothing was counted, infinity when the
        quantile is one of the values `beyond`.

        Args:
            q: From 0 to 1.
            beyond: So many values more rank above everything that was counted.
        """
        count = self.count + beyond
        if not count:
            return math.nan
        # 0.999 * 1000 is a little more than 999 in floating point.
        rank = max(math.ceil(round(q * count, 6)), 1)
        if rank > self.count:
            return math.inf
        seen = 0
        for index, counted in enumerate(self._counts):
            seen += counted
            if seen >= rank:
                return min(max(_middle(index), self.least), self.greatest)
        raise AssertionError("expected the buckets to hold the count")

    @property
    def mean(self) -> float:
        """Mean in nanoseconds; NaN when nothing was counted."""
        return self.total / self.count if self.count else math.nan

    def to_json(self) -> dict[str, Any]:
        """Returns the histogram as JSON: only buckets that are not empty."""
        return {
            "counts": {str(index): n for index, n in enumerate(self._counts) if n},
            "total": self.total,
            "least": self.least,
            "greatest": self.greatest,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_json` returned."""
        histogram = cls()
        for index, counted in content["counts"].items():
            histogram._counts[int(index)] = counted
            histogram.count += counted
        histogram.total = content["total"]
        histogram.least = content["least"]
        histogram.greatest = content["greatest"]
        return histogram


def _middle(index: int) -> float:
    """Returns the middle of a bucket's whole numbers."""
    shift = max((index >> _BITS) - 1, 0)
    lowest = (index - (shift << _BITS)) << shift
    return lowest + ((1 << shift) - 1) / 2
