"""Plain counters of one model version. They change on the event loop only, so they need no lock."""

from __future__ import annotations

import enum
import time
from bisect import bisect_left
from dataclasses import dataclass, field

LATENCY_BUCKETS_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


class Failure(enum.Enum):
    """Why a request got no answer, in Triton's words."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


@dataclass(slots=True)
class Duration:
    """A count of events and the time they took together, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Counts one event."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class BatchStatistics:
    """The runs of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Statistics:
    """What one model version has done since it was loaded.

    Attributes:
        inference_count: Answered batch items.
        execution_count: Runs of the session that gave an answer.
        last_inference_ms: Time of the last run, in milliseconds since 1970; 0 when there was none.
    """

    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    pending: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    failures: dict[Failure, int] = field(default_factory=lambda: dict.fromkeys(Failure, 0))
    latency_buckets: list[int] = field(
        default_factory=lambda: [0] * (len(LATENCY_BUCKETS_SECONDS) + 1)
    )

    def executed(self, batch_size: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Counts a run that gave an answer."""
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        batch = self.batches.setdefault(batch_size, BatchStatistics())
        batch.compute_input.add(input_ns)
        batch.compute_infer.add(infer_ns)
        batch.compute_output.add(output_ns)

    def answered(
        self,
        items: int,
        *,
        queue_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
        total_ns: int,
    ) -> None:
        """Counts a request that was answered. Every duration has the same count afterwards."""
        self.inference_count += items
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.compute_input.add(input_ns)
        self.compute_infer.add(infer_ns)
        self.compute_output.add(output_ns)
        self.latency_buckets[bisect_left(LATENCY_BUCKETS_SECONDS, total_ns / 1e9)] += 1

    def failed(self, reason: Failure, elapsed_ns: int) -> None:
        """Counts a request that was not answered."""
        self.fail.add(elapsed_ns)
        self.failures[reason] += 1
