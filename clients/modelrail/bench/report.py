"""What a load test found, as data that programs read and people are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from modelrail.bench.measurement.histogram import LatencyHistogram
from modelrail.bench.measurement.tally import Tally
from modelrail.bench.plan import BenchPlan, ClosedLoop

__all__ = [
    "BenchReport",
    "ClientFigures",
    "DueLatency",
    "FailureFigures",
    "LatencySummary",
    "ServerFigures",
    "SweepReport",
]


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
    """Requests that failed for one reason."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """One load test."""

    address: str
    server: str
    """Name and version of the server program, where it says them."""
    model: str
    version: str
    """The version asked for; empty when the server chose."""
    load: Mapping[str, Any]
    """`{"kind": "closed", "concurrency": N}`, or
    `{"kind": "open", "rate": R, "max_outstanding": M}`."""
    streaming: bool
    seed: int
    window_seconds: float
    """How long was measured."""
    succeeded: int
    errors: Mapping[str, int]
    """Failed requests by status code; STREAM_ERROR for the error messages of streams, which have no
    code."""
    error_examples: Mapping[str, str]
    """A message of each code."""
    unsent: int
    """Requests that were due and did not leave, because `max_outstanding` were in flight."""
    unfinished: int
    """Requests that were broken off when the run was stopped."""
    requests_per_second: float
    """Good answers in a second."""
    items_per_second: float
    latency: LatencySummary | None
    """Of requests that succeeded; None when none did."""
    due_latency: DueLatency | None
    """Of requests that succeeded, failed or did not leave; None when none was due."""
    failure_latency: LatencySummary | None
    """Of requests that failed."""
    failures: Sequence[FailureFigures]
    """Requests that failed by code and reason, the most frequent ones first."""
    client: ClientFigures
    server_figures: ServerFigures | None
    """None where the server offers no statistics."""
    interrupted: bool
    """Whether the run was stopped before its time."""
    warnings: Sequence[str] = field(default_factory=tuple)
    """Why the figures may say less about the server than they seem to."""
    notes: Sequence[str] = field(default_factory=tuple)
    """What the server did not offer, and what was done instead."""

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return sum(self.errors.values())

    @property
    def lost(self) -> int:
        """Requests that failed or could not be sent."""
        return self.failed + self.unsent

    @property
    def due(self) -> int:
        """Requests that were due, less those that were broken off when the run was stopped."""
        return self.succeeded + self.lost

    @property
    def error_rate(self) -> float:
        """Part of the requests that failed or could not be sent; 0 when there were none."""
        return self.lost / self.due if self.due else 0.0

    @property
    def load_value(self) -> float:
        """Concurrency or rate."""
        return float(self.load["concurrency" if self.load["kind"] == "closed" else "rate"])

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return asdict(self) | {
            "failed": self.failed,
            "error_rate": self.error_rate,
            "failures": [asdict(failure) for failure in self.failures],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    @classmethod
    def of(
        cls,
        plan: BenchPlan,
        tally: Tally,
        *,
        server: str,
        server_figures: ServerFigures | None,
        interrupted: bool,
        notes: Sequence[str],
    ) -> Self:
        """Makes the report of what was counted."""
        seconds = tally.window_seconds
        client = ClientFigures(
            processes=plan.processes,
            cpu_cores=tally.cpu_seconds / seconds if seconds else 0.0,
            busiest_loop_share=tally.busiest_loop_share,
            loop_lag=LatencySummary.of(tally.loop_lag),
            lateness=LatencySummary.of(tally.lateness),
        )
        load, failures = plan.load, _failures(tally)
        return cls(
            address=plan.connection.address,
            server=server,
            model=plan.model,
            version=plan.version,
            load={"kind": "closed", "concurrency": load.concurrency}
            if isinstance(load, ClosedLoop)
            else {"kind": "open", "rate": load.rate, "max_outstanding": load.max_outstanding},
            streaming=plan.streaming,
            seed=plan.seed,
            window_seconds=seconds,
            succeeded=tally.succeeded,
            errors={
                code: sum(one.latency.count for one in failures if one.code == code)
                for code in sorted({one.code for one in failures})
            },
            # The most frequent one of each code comes last here, and stays.
            error_examples={one.code: one.example for one in reversed(failures)},
            unsent=tally.unsent,
            unfinished=tally.unfinished,
            requests_per_second=tally.answers / seconds if seconds else 0.0,
            items_per_second=tally.items / seconds if seconds else 0.0,
            latency=LatencySummary.of(tally.latency),
            due_latency=DueLatency.of(tally.latency, lost=tally.failed + tally.unsent),
            failure_latency=LatencySummary.of(LatencyHistogram.sum(tally.failures.values())),
            failures=failures,
            client=client,
            server_figures=server_figures,
            interrupted=interrupted,
            warnings=tuple(_warnings(plan, tally, client)),
            notes=tuple(notes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """Load tests of one model, each under another load."""

    points: Sequence[BenchReport]
    """In the order in which they were run."""
    interrupted: bool
    """Whether the sweep was stopped before its time."""

    @property
    def varies(self) -> str:
        """`concurrency` or `rate`."""
        return "concurrency" if self.points[0].load["kind"] == "closed" else "rate"

    def to_json(self) -> dict[str, Any]:
        """Returns the reports as JSON."""
        return {
            "points": [point.to_json() for point in self.points],
            "interrupted": self.interrupted,
        }


def _failures(tally: Tally) -> tuple[FailureFigures, ...]:
    found = []
    for kind, histogram in tally.failures.items():
        code, _, reason = kind.partition(" ")
        latency, example = LatencySummary.of(histogram), tally.failure_examples[kind]
        if latency is not None:
            found.append(FailureFigures(code=code, reason=reason, example=example, latency=latency))
    return tuple(sorted(found, key=lambda one: (-one.latency.count, one.code, one.reason)))


# Above this part of its time an event loop makes requests wait for it.
_BUSY_LOOP_SHARE = 0.85
_WORKING_LOOP_SHARE = 0.5
# A client that is this much of the latency hides the server's.
_CLIENT_PART = 0.2
_NEGLIGIBLE_SECONDS = 0.001
_OFFERED_PART = 0.95


def _warnings(plan: BenchPlan, tally: Tally, client: ClientFigures) -> list[str]:
    return [*_client_warnings(plan, tally, client), *_load_warnings(plan, tally)]


def _client_warnings(plan: BenchPlan, tally: Tally, client: ClientFigures) -> list[str]:
    found = []
    can_divide = plan.processes < plan.load.in_flight
    if client.busiest_loop_share > _BUSY_LOOP_SHARE:
        more = "more --processes show" if can_divide else "a faster machine for the client shows"
        found.append(
            f"the client was the limit: its event loop was busy for"
            f" {client.busiest_loop_share:.0%} of the time; {more} what the server can do"
        )
    p99 = tally.latency.quantile(0.99) / 1e9
    waits = client.lateness or client.loop_lag
    if client.busiest_loop_share <= _WORKING_LOOP_SHARE:
        cure = "other work kept it from the processor: a machine of its own sends in time"
    elif can_divide:
        cure = "more --processes send in time"
    else:
        cure = "a faster machine for the client sends in time"
    if client.lateness is not None:
        what = "of its requests left"
    else:
        what = "of its event loop's timers came"
    if waits is not None and waits.p99_seconds > max(_CLIENT_PART * p99, _NEGLIGIBLE_SECONDS):
        found.append(
            f"the client is part of the latencies: one in 100 {what}"
            f" {waits.p99_seconds * 1e3:.2f} ms late or later (p99 {p99 * 1e3:.2f} ms); {cure}"
        )
    return found


def _load_warnings(plan: BenchPlan, tally: Tally) -> list[str]:
    found = []
    due = tally.succeeded + tally.failed + tally.unsent
    if tally.unsent:
        found.append(
            f"{tally.unsent} of {due} requests that were due could not be sent:"
            f" {plan.load.in_flight} were in flight already. They have no latency; the error rate"
            " and the objectives count them"
        )
    if isinstance(plan.load, ClosedLoop) or not tally.window_seconds or tally.unfinished:
        return found
    rate = tally.answers / tally.window_seconds
    expected = due / tally.window_seconds
    if rate < _OFFERED_PART * expected:
        found.append(
            f"of {expected:.1f} requests a second that were due, {rate:.1f} a second were answered"
            " well: latencies may grow with the length of the run"
        )
    return found
