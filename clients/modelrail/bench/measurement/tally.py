"""What one client process counted in the window that is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from modelrail.bench.measurement.histogram import LatencyHistogram

__all__ = ["Tally"]


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of one client process, or of several together.

    A request belongs to the window in which it was due: in an open loop by the schedule, in a
    closed one when it was sent. Its answer may come after the window's end.
    """

    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    """Of requests that were answered well."""
    failure_latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    """Of requests that failed, until the failure was known."""
    lateness: LatencyHistogram = field(default_factory=LatencyHistogram)
    """How long after they were due the requests of an open loop left: the client's own part."""
    loop_lag: LatencyHistogram = field(default_factory=LatencyHistogram)
    """How late the event loop noticed a timer."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed requests by status code."""
    error_examples: dict[str, str] = field(default_factory=dict)
    """The first message of each code."""
    answers: int = 0
    """Good answers that arrived within the window, whenever their requests were sent."""
    items: int = 0
    """Batch items of those answers."""
    unsent: int = 0
    """Requests that were due and did not leave: as many as allowed were in flight, or the run ended
    while the client was behind."""
    unfinished: int = 0
    """Requests that were broken off when the run was stopped."""
    cpu_seconds: float = 0.0
    """Processor time of the client in the window."""
    busiest_loop_share: float = 0.0
    """Part of the window for which the event loop's thread ran; 1 is all of it."""
    window_start_ns: int = 0
    window_end_ns: int = 0

    @property
    def succeeded(self) -> int:
        """Requests of the window that were answered well."""
        return self.latency.count

    @property
    def failed(self) -> int:
        """Requests of the window that failed."""
        return self.failure_latency.count

    @property
    def window_seconds(self) -> float:
        """Length of the window."""
        return (self.window_end_ns - self.window_start_ns) / 1e9

    def add(self, other: Tally) -> None:
        """Adds what another process counted at the same time."""
        for name in _HISTOGRAMS:
            getattr(self, name).add(getattr(other, name))
        self.errors.update(other.errors)
        self.error_examples = other.error_examples | self.error_examples
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.busiest_loop_share = max(self.busiest_loop_share, other.busiest_loop_share)
        starts = [t.window_start_ns for t in (self, other) if t.window_end_ns]
        self.window_start_ns = min(starts, default=0)
        self.window_end_ns = max(self.window_end_ns, other.window_end_ns)

    def to_json(self) -> dict[str, Any]:
        """Returns the counts as JSON."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        return content | {name: content[name].to_json() for name in _HISTOGRAMS}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_json` returned."""
        histograms = {name: LatencyHistogram.from_json(content[name]) for name in _HISTOGRAMS}
        return cls(**{**content, **histograms, "errors": Counter(content["errors"])})


_HISTOGRAMS = ("latency", "failure_latency", "lateness", "loop_lag")
_SUMS = ("answers", "items", "unsent", "unfinished", "cpu_seconds")
