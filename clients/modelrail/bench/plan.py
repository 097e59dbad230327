"""What a load test shall do: the load, the requests, and when it ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelrail.client.channel import Connection

__all__ = ["BenchPlan", "ClosedLoop", "Load", "OpenLoop", "PlanError", "shown_range"]

# A fresh connection may refuse more calls at once than the server's limit of streams, 100 by habit,
# before it has learned of the limit.
_CALLS_PER_CHANNEL = 32
_CHANNELS = 16
_MOST_CALLS_PER_CHANNEL = 100
_STREAMS = 8
_MOST_RATE = 1_000_000
"""Many times what a client process sends: a higher rate would measure only the client."""
_MOST_IN_FLIGHT = 100_000
"""Each takes memory of the client, as a task of its own."""
_MOST_SIZE = (1 << 31) - 1
"""No message holds more bytes."""
_MOST_SECONDS = 1_000_000_000
"""Thirty years, whose nanoseconds fit 64 bits."""


class PlanError(ValueError):
    """A plan that cannot be meant; the message names the field, what was expected and what came."""


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of callers, each of which sends when it has its answer.

    A slow server is asked less often: latencies of a closed loop say nothing of what callers meet
    who come on their own time.
    """

    concurrency: int
    """Requests in flight, over all client processes; at most 100,000."""

    def __post_init__(self) -> None:
        _at_least("concurrency", self.concurrency, 1)
        _at_most("concurrency", self.concurrency, _MOST_IN_FLIGHT)

    @property
    def value(self) -> float:
        """What a sweep varies."""
        return self.concurrency

    @property
    def in_flight(self) -> int:
        """Most requests in flight."""
        return self.concurrency

    def of_value(self, value: float) -> ClosedLoop:
        """Returns the same kind of load at another concurrency."""
        if not _is_finite(value) or value != int(value):
            raise PlanError(f"concurrency: expected a whole number, got {value:g}")
        return ClosedLoop(int(value))

    def __str__(self) -> str:
        return f"concurrency {self.concurrency}"


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Callers who come on their own time: a Poisson process, whatever the server does.

    Latency counts from the moment at which a request was due. One that finds `max_outstanding`
    requests in flight is not sent; how many these were is reported.
    """

    rate: float
    """Requests due in a second on average, over all client processes; at most a million."""
    max_outstanding: int = 1024
    """Most requests in flight, over all client processes; at most 100,000."""

    def __post_init__(self) -> None:
        _positive("rate", self.rate)
        _at_most("rate", self.rate, _MOST_RATE)
        _at_least("max_outstanding", self.max_outstanding, 1)
        _at_most("max_outstanding", self.max_outstanding, _MOST_IN_FLIGHT)

    @property
    def value(self) -> float:
        """What a sweep varies."""
        return self.rate

    @property
    def in_flight(self) -> int:
        """Most requests in flight."""
        return self.max_outstanding

    def of_value(self, value: float) -> OpenLoop:
        """Returns the same kind of load at another rate."""
        return replace(self, rate=value)

    def __str__(self) -> str:
        return f"rate {self.rate:g}/s"


Load = ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """One load test.

    Raises:
        PlanError: A field is out of range, or two of them contradict each other.
    """

    connection: Connection
    """The server."""
    model: str
    """Name of the model."""
    version: str = ""
    """Version number as text; empty lets the server choose."""
    load: Load = field(default_factory=lambda: ClosedLoop(1))
    """How requests come."""
    streaming: bool = False
    """ModelStreamInfer in place of ModelInfer."""
    batch_size: int | None = None
    """Items in a request, for models with a batch axis; None for 1."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Sizes of inputs whose metadata leave some open, by name and without the batch axis."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Where random numbers lie, by input: lowest and highest value, for integers both included."""
    recording: Path | None = None
    """Inputs in perf_analyzer's JSON format, in place of random ones."""
    seed: int = 0
    """Makes random inputs and arrivals repeatable."""
    warm_up_seconds: float = 1.0
    """How long the load runs before anything counts."""
    duration_seconds: float | None = 5.0
    """How long the load then is measured; None with `requests`."""
    requests: int | None = None
    """How many requests are measured; None with `duration_seconds`."""
    timeout_seconds: float = 10.0
    """Deadline of a request, from the moment at which it is due."""
    processes: int = 1
    """Client processes; 1 sends from this process. No more than requests in flight."""
    channels: int | None = None
    """Connections, over all processes; by default one for each 32 requests in flight, up
    to 16, and never fewer than one for each 100."""
    streams: int | None = None
    """Streams, over all processes, if `streaming`; by default 8, never more than in flight."""

    def __post_init__(self) -> None:
        if not self.model:
            raise PlanError("model: expected a name, got nothing")
        if (self.duration_seconds is None) == (self.requests is None):
            raise PlanError("duration_seconds, requests: expected one of the two")
        if self.duration_seconds is not None:
            _positive("duration_seconds", self.duration_seconds)
            _at_most("duration_seconds", self.duration_seconds, _MOST_SECONDS)
        _positive("timeout_seconds", self.timeout_seconds)
        _at_most("timeout_seconds", self.timeout_seconds, _MOST_SECONDS)
        _at_least("warm_up_seconds", self.warm_up_seconds, 0)
        _at_most("warm_up_seconds", self.warm_up_seconds, _MOST_SECONDS)
        _at_least("seed", self.seed, 0)
        for name in ("requests", "batch_size", "channels", "streams", "processes"):
            value = getattr(self, name)
            if value is not None:
                _at_least(name, value, 1)
        if self.streams is not None and not self.streaming:
            raise PlanError("streams: expected only together with streaming")
        self._check_division()
        for name, sizes in self.shapes.items():
            if any(size < 0 for size in sizes):
                raise PlanError(f"shapes: {name}: expected sizes of 0 or more, got {list(sizes)}")
            _at_most(f"shapes: {name}", max(sizes, default=0), _MOST_SIZE)
        for name, limits in self.ranges.items():
            _check_range(name, *limits)

    def under(self, load: Load) -> BenchPlan:
        """Returns the same test under another load, by no more processes than it keeps busy.

        Raises:
            PlanError: A field contradicts the load.
        """
        return replace(self, load=load, processes=min(self.processes, load.in_flight))

    def _check_division(self) -> None:
        """Checks that each process gets a part of everything."""
        for name, most in (
            ("requests in flight", self.load.in_flight),
            ("requests", self.requests),
            ("channels", self.channels),
            ("streams", self.streams),
        ):
            if most is not None and self.processes > most:
                raise PlanError(
                    f"processes: expected at most one for each of the {most} {name},"
                    f" got {self.processes}"
                )

    @property
    def channel_count(self) -> int:
        """Connections, over all processes."""
        calls = self.load.in_flight
        few = min(-(-calls // _CALLS_PER_CHANNEL), _CHANNELS)
        enough = max(few, -(-calls // _MOST_CALLS_PER_CHANNEL))
        return max(self.channels or enough, self.processes)

    @property
    def stream_count(self) -> int:
        """Streams, over all processes; 0 for unary calls."""
        if not self.streaming:
            return 0
        return max(self.streams or min(_STREAMS, self.load.in_flight), self.processes)


def shown_range(limits: tuple[float, float]) -> str:
    """Returns a range as it is typed; whole numbers with all their digits."""
    return ",".join(f"{one}" if isinstance(one, int) else f"{one:g}" for one in limits)


def _check_range(name: str, low: float, high: float) -> None:
    got = shown_range((low, high))
    if not (_is_finite(low) and _is_finite(high)):
        raise PlanError(f"ranges: {name}: expected finite bounds, got {got}")
    if not low <= high:
        raise PlanError(f"ranges: {name}: expected LOW <= HIGH, got {got}")
    if not _is_finite(high - low):
        raise PlanError(f"ranges: {name}: expected bounds with a finite difference, got {got}")


def _is_finite(value: float) -> bool:
    """Whether it is a number that a float holds, which a whole number of Python need not be."""
    return abs(value) <= sys.float_info.max


# Written so that NaN, which compares as false, is refused too.
def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise PlanError(f"{name}: expected {least} or more, got {value}")


def _at_most(name: str, value: float, most: int) -> None:
    if not value <= most:
        raise PlanError(f"{name}: expected at most {most}, got {value}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise PlanError(f"{name}: expected more than 0, got {value}")
