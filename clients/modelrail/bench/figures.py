"""The figures of which a load test's report is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from modelrail.bench.measurement.histogram import LatencyHistogram

__all__ = ["ClientFigures", "DueLatency", "FailureFigures", "LatencySummary", "ServerFigures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """A distribution of durations in seconds. Quantiles are right to 0.4 %, the rest is exact."""

    count: int
    mean_seconds: float
    least_seconds: float
    p50_seconds: float
    p90_seconds: float
    p99_seconds: float
    p999_seconds: float
    greatest_seconds: float

    @classmethod
    def of(cls, histogram: LatencyHistogram) -> Self | None:
        """Summarises a histogram; None when it is empty."""
        if not histogram.count:
            return None
        p50, p90, p99, p999 = (histogram.quantile(q) / 1e9 for q in (0.5, 0.9, 0.99, 0.999))
        return cls(
            count=histogram.count,
            mean_seconds=histogram.mean / 1e9,
            least_seconds=histogram.least / 1e9,
            p50_seconds=p50,
            p90_seconds=p90,
            p99_seconds=p99,
            p999_seconds=p999,
            greatest_seconds=histogram.greatest / 1e9,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DueLatency:
    """Latencies in seconds of all requests that were due, which is what objectives bound.

    Requests that failed or did not leave rank as slower than any answer: who drops what is slow
    would else have the best quantiles. A field is None where it is one of those; the mean is None
    as soon as there is one.
    """

    mean_seconds: float | None
    p50_seconds: float | None
    p90_seconds: float | None
    p99_seconds: float | None
    p999_seconds: float | None

    @classmethod
    def of(cls, answered: LatencyHistogram, *, lost: int) -> Self | None:
        """Ranks `lost` requests above those that were answered; None when none was due."""
        if not answered.count + lost:
            return None
        p50, p90, p99, p999 = (
            None if math.isinf(value) else value / 1e9
            for value in (answered.quantile(q, beyond=lost) for q in (0.5, 0.9, 0.99, 0.999))
        )
        return cls(
            mean_seconds=None if lost else answered.mean / 1e9,
            p50_seconds=p50,
            p90_seconds=p90,
            p99_seconds=p99,
            p999_seconds=p999,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureFigures:
    """Requests that failed for one reason; on streams, with one message but for its numbers."""

    code: str
    """Status code; STREAM_ERROR for the error messages of streams, which have no code."""
    reason: str
    """What the server says in its google.rpc ErrorInfo, such as QUEUE_FULL; empty without one."""
    example: str
    """The first message."""
    latency: LatencySummary
    """From when a request was due until its failure was known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """The server's own statistics of the model, after the run less before it.

    Requests of other callers, and those of the run's last moments of warm-up, are among them.
    A field is None where the server counted nothing that it could be computed from.
    """

    succeeded: int
    failed: int
    items: int
    """Batch items that the model computed."""
    executions: int
    """Runs of the model, each over one batch."""
    mean_batch_size: float | None
    """Items in a run of the model."""
    queue_seconds: float | None
    """Mean wait for the model, for each request."""
    compute_input_seconds: float | None
    """Mean time to prepare the inputs, for each request."""
    compute_infer_seconds: float | None
    """Mean time in which the model ran, for each request."""
    compute_output_seconds: float | None
    """Mean time to take the outputs, for each request."""
    request_seconds: float | None
    """Mean time from arrival to response, for each request that succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFigures:
    """How hard the load was for the client itself."""

    processes: int
    """How many sent; in a sweep no more than requests in flight."""
    cpu_cores: float
    """Processor seconds in a second, of all client processes."""
    busiest_loop_share: float
    """Part of the time for which the busiest process's event loop was at work, up to 1."""
    loop_lag: LatencySummary | None
    """How late the event loop noticed timers."""
    lateness: LatencySummary | None
    """How late requests of an open loop left, for reasons of the client alone."""
