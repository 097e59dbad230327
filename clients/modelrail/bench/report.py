"""What a load test found, as data that programs read and people are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from modelrail.bench.figures import (
    ClientFigures,
    DueLatency,
    FailureFigures,
    LatencySummary,
    ServerFigures,
)
from modelrail.bench.measurement.failure import STREAM_ERROR
from modelrail.bench.measurement.histogram import LatencyHistogram
from modelrail.bench.measurement.tally import Tally
from modelrail.bench.plan import BenchPlan, ClosedLoop

__all__ = ["BenchReport", "SweepReport"]


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
            warnings=(
                *(_stop_warnings(tally) if interrupted else ()),
                *_client_warnings(plan, tally, client),
                *_load_warnings(plan, tally),
            ),
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
        if latency is None:
            continue
        found.append(
            FailureFigures(
                code=code,
                reason="" if code == STREAM_ERROR else reason,
                example=example,
                latency=latency,
            )
        )
    found.sort(key=lambda one: (-one.latency.count, one.code, one.reason, one.example))
    return tuple(found)


# Above this part of its time an event loop makes requests wait for it.
_BUSY_LOOP_SHARE = 0.85
_WORKING_LOOP_SHARE = 0.5
# A client that is this much of the latency hides the server's.
_CLIENT_PART = 0.2
_NEGLIGIBLE_SECONDS = 0.001
_OFFERED_PART = 0.95


def _stop_warnings(tally: Tally) -> list[str]:
    if not tally.window_seconds:
        return ["the run was stopped during its warm-up: nothing was measured"]
    return [f"the run was stopped early: {tally.window_seconds:.3f} s were measured"]


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
            f"{tally.unsent:,} of {due:,} requests that were due could not be sent:"
            f" {plan.load.in_flight:,} were in flight already, or the client was behind. They have"
            " no latency; the error rate and the objectives count them"
        )
    if isinstance(plan.load, ClosedLoop) or not tally.window_seconds or tally.unfinished:
        return found
    rate = tally.answers / tally.window_seconds
    expected = due / tally.window_seconds
    if rate < _OFFERED_PART * expected:
        found.append(
            f"of {expected:,.1f} requests a second that were due, {rate:,.1f} a second were"
            " answered well: latencies may grow with the length of the run"
        )
    return found
