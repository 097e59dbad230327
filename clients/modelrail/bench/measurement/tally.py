"""What one client process counted in the window that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from modelrail.bench.measurement.failure import RequestFailed
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
    failures: dict[str, LatencyHistogram] = field(default_factory=dict)
    """Of requests that failed, until the failure was known, by `RequestFailed.kind`."""
    failure_examples: dict[str, str] = field(default_factory=dict)
    """The first message of each kind."""
    lateness: LatencyHistogram = field(default_factory=LatencyHistogram)
    """How long after they were due the requests of an open loop left: the client's own part."""
    loop_lag: LatencyHistogram = field(default_factory=LatencyHistogram)
    """How late the event loop noticed a timer."""
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
        return sum(histogram.count for histogram in self.failures.values())

    @property
    def window_seconds(self) -> float:
        """Length of the window."""
        return (self.window_end_ns - self.window_start_ns) / 1e9

    def fail(self, failure: RequestFailed, nanoseconds: int) -> None:
        """Counts a request that failed after so long."""
        kind = failure.kind
        # Reasons are the server's words: it shall not decide how much memory the client takes.
        if kind not in self.failures and len(self.failures) >= _MOST_KINDS:
            kind = failure.code
        self.failures.setdefault(kind, LatencyHistogram()).record(nanoseconds)
        self.failure_examples.setdefault(kind, failure.message)

    def add(self, other: Tally) -> None:
        """Adds what another process counted at the same time."""
        for name in _HISTOGRAMS:
            getattr(self, name).add(getattr(other, name))
        for kind, histogram in other.failures.items():
            self.failures.setdefault(kind, LatencyHistogram()).add(histogram)
        self.failure_examples = other.failure_examples | self.failure_examples
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.busiest_loop_share = max(self.busiest_loop_share, other.busiest_loop_share)
        starts = [t.window_start_ns for t in (self, other) if t.window_end_ns]
        self.window_start_ns = min(starts, default=0)
        self.window_end_ns = max(self.window_end_ns, other.window_end_ns)

    def to_json(self) -> dict[str, Any]:
        """Returns the counts as JSON."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        return (
            content
            | {name: content[name].to_json() for name in _HISTOGRAMS}
            | {"failures": {kind: one.to_json() for kind, one in self.failures.items()}}
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_json` returned."""
        histograms = {name: LatencyHistogram.from_json(content[name]) for name in _HISTOGRAMS}
        failures = {
            kind: LatencyHistogram.from_json(one) for kind, one in content["failures"].items()
        }
        return cls(**{**content, **histograms, "failures": failures})


_MOST_KINDS = 48  # and then one more for each code
_HISTOGRAMS = ("latency", "lateness", "loop_lag")
_SUMS = ("answers", "items", "unsent", "unfinished", "cpu_seconds")
