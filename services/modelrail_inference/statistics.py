"""Plain counters of one model version. They change on the event loop only, so they need no lock.

The thread of a scrape reads them meanwhile, which is sound: numbers are replaced, never changed;
lists and dictionaries are copied in one operation of the interpreter. See
`modelrail_server.observability.metrics`.
"""

from __future__ import annotations

import enum
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

LATENCY_EDGES_US = (
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
)  # fmt: skip
"""Upper edges of the latency histograms, inclusive, in microseconds; one more bucket is above."""

BATCH_SIZE_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper edges of the histogram of batch sizes, inclusive, in items."""

_EDGES_NS = tuple(edge * 1000 for edge in LATENCY_EDGES_US)


class Failure(enum.Enum):
    """Why a request got no answer, in Triton's words."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


class Refusal(enum.Enum):
    """Why a request was refused: not let in, or its reply not sent."""

    QUEUE_FULL = "QUEUE_FULL"
    """As many requests wait as may."""
    BYTES_FULL = "BYTES_FULL"
    """The requests that wait and run hold as much memory as they may."""
    DEADLINE_UNREACHABLE = "DEADLINE_UNREACHABLE"
    """The answer would come after the deadline."""
    TOO_LARGE = "TOO_LARGE"
    """The request alone takes more memory than all together may."""
    REPLY_TOO_LARGE = "REPLY_TOO_LARGE"
    """The reply would be larger than the transport carries."""
    REPLIES_UNREAD = "REPLIES_UNREAD"
    """The caller, or all of them, leave too many replies unread."""
    THREAD_LIMIT = "THREAD_LIMIT"
    """The system allowed no thread that could run it."""
    SHUTTING_DOWN = "SHUTTING_DOWN"
    """The server ends."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A count of events and the time they took together, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.count + other.count, self.ns + other.ns)


class Latency:
    """The durations of events: their sum and how many lie between two edges."""

    __slots__ = ("buckets", "ns")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_EDGES_NS) + 1)
        self.ns = 0

    def add(self, ns: int) -> None:
        """Counts one event."""
        self.buckets[bisect_left(_EDGES_NS, ns)] += 1
        self.ns += ns


@dataclass(slots=True)
class BatchStatistics:
    """The runs of one batch size.

    Attributes:
        count: Runs.
        input_ns: Time that gathering the inputs took, in nanoseconds.
        infer_ns: Time in the session.
        output_ns: Time that taking the outputs apart took.
    """

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0

    @property
    def compute_input(self) -> Duration:
        """Gathering the inputs."""
        return Duration(self.count, self.input_ns)

    @property
    def compute_infer(self) -> Duration:
        """The session."""
        return Duration(self.count, self.infer_ns)

    @property
    def compute_output(self) -> Duration:
        """Taking the outputs apart."""
        return Duration(self.count, self.output_ns)


@dataclass(slots=True)
class Statistics:
    """What one model version has done since it was loaded.

    A version that is loaded anew in place (its file or its configuration changed) goes on with the
    counters that it has: requests in flight on the old file still belong to them, and a scrape sees
    no step back. A version that was unloaded and comes back begins at zero, as in Triton.

    Attributes:
        inference_count: Answered batch items.
        execution_count: Runs of the session that gave an answer.
        last_inference_ms: Time of the last run, in milliseconds since 1970; 0 when there was none.
        in_flight: Requests that came in and have no answer yet.
        taken_count: Requests that a session has taken. Threads count here, one at a time.
        taken_and_left_count: Those of them that have their answer, or whose callers have gone.
        success_count: Answered requests.
        fail_count: Requests that were not answered.
        fail_ns: Time until those failed, in nanoseconds.
        input_ns: Time that the inputs of the answered requests took; of a batch, each has all of
            it. Likewise `infer_ns` and `output_ns`.
        request_latency: From arrival to answer, of the answered requests.
        queue_latency: From the queue's door to the session, of the answered requests.
        input_latency: Gathering the inputs, of the runs.
        infer_latency: The session, of the runs.
        output_latency: Taking the outputs apart, of the runs.
        batches: Runs by batch size; items, before any padding of the batch.
        failures: Requests that were not answered, by Triton's reasons.
        refusals: Those of them that were refused.
        expired_count: Those of them whose time ran out before a session took them.
        run_expired_count: Those of them whose deadline passed after that.
    """

    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    in_flight: int = 0
    taken_count: int = 0
    taken_and_left_count: int = 0
    success_count: int = 0
    fail_count: int = 0
    fail_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    request_latency: Latency = field(default_factory=Latency)
    queue_latency: Latency = field(default_factory=Latency)
    input_latency: Latency = field(default_factory=Latency)
    infer_latency: Latency = field(default_factory=Latency)
    output_latency: Latency = field(default_factory=Latency)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    failures: dict[Failure, int] = field(default_factory=lambda: dict.fromkeys(Failure, 0))
    refusals: dict[Refusal, int] = field(default_factory=lambda: dict.fromkeys(Refusal, 0))
    expired_count: int = 0
    run_expired_count: int = 0

    def executed(self, batch_size: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Counts a run that gave an answer."""
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        batch = self.batches.get(batch_size)
        if batch is None:
            batch = self.batches[batch_size] = BatchStatistics()
        batch.count += 1
        batch.input_ns += input_ns
        batch.infer_ns += infer_ns
        batch.output_ns += output_ns
        self.input_latency.add(input_ns)
        self.infer_latency.add(infer_ns)
        self.output_latency.add(output_ns)

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
        self.success_count += 1
        self.input_ns += input_ns
        self.infer_ns += infer_ns
        self.output_ns += output_ns
        self.queue_latency.add(queue_ns)
        self.request_latency.add(total_ns)

    def failed(self, failure: Failure, elapsed_ns: int) -> None:
        """Counts a request that was not answered."""
        self.fail_count += 1
        self.fail_ns += elapsed_ns
        self.failures[failure] += 1

    def refused(self, refusal: Refusal, elapsed_ns: int = 0) -> None:
        """Counts a request that was refused, which Triton calls rejected."""
        self.refusals[refusal] += 1
        self.failed(Failure.REJECTED, elapsed_ns)

    def expired(self, elapsed_ns: int = 0, *, ran: bool = False) -> None:
        """Counts a request whose time ran out, which Triton calls rejected too.

        Args:
            elapsed_ns: Time until then, in nanoseconds.
            ran: Whether a session had taken it.
        """
        if ran:
            self.run_expired_count += 1
        else:
            self.expired_count += 1
        self.failed(Failure.REJECTED, elapsed_ns)

    def cancelled(self, elapsed_ns: int = 0) -> None:
        """Counts a request whose caller went away."""
        self.failed(Failure.CANCELED, elapsed_ns)

    @property
    def pending(self) -> int:
        """Requests that no session has taken yet: what Triton calls pending."""
        # Read in this order: what comes or leaves meanwhile makes it no less than it was.
        in_flight, taken = self.in_flight, self.taken_count
        return max(0, in_flight - (taken - self.taken_and_left_count))

    @property
    def success(self) -> Duration:
        """Answered requests, from arrival to answer."""
        return Duration(self.success_count, self.request_latency.ns)

    @property
    def fail(self) -> Duration:
        """Requests that were not answered."""
        return Duration(self.fail_count, self.fail_ns)

    @property
    def queue(self) -> Duration:
        """Answered requests in the queue."""
        return Duration(self.success_count, self.queue_latency.ns)

    @property
    def compute_input(self) -> Duration:
        """Answered requests while the inputs of their batches were gathered."""
        return Duration(self.success_count, self.input_ns)

    @property
    def compute_infer(self) -> Duration:
        """Answered requests in the session."""
        return Duration(self.success_count, self.infer_ns)

    @property
    def compute_output(self) -> Duration:
        """Answered requests while the outputs of their batches were taken apart."""
        return Duration(self.success_count, self.output_ns)

    def batch_size_buckets(self) -> tuple[list[int], int]:
        """Returns the runs between two of `BATCH_SIZE_EDGES`, and the items of all runs."""
        runs: Mapping[int, BatchStatistics] = self.batches.copy()
        buckets, items = [0] * (len(BATCH_SIZE_EDGES) + 1), 0
        for size, batch in runs.items():
            count = batch.count
            buckets[bisect_left(BATCH_SIZE_EDGES, size)] += count
            items += size * count
        return buckets, items


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """The counters of one version at one moment, of one process or of several.

    Attributes:
        model: Name of the model.
        number: Number of the version.
        last_inference_ms: Time of the last run, in milliseconds since 1970; 0: there was none.
        inference_count: Answered batch items.
        execution_count: Runs of the session that gave an answer.
        success: Answered requests, from arrival to answer. The other durations are those of
            `Statistics`.
        batches: Runs by batch size.
    """

    model: str
    number: int
    last_inference_ms: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    batches: Mapping[int, BatchStatistics]

    @classmethod
    def of(cls, model: str, number: int, counters: Statistics) -> Self:
        """Returns the counters of a version as they are now."""
        return cls(
            model,
            number,
            counters.last_inference_ms,
            counters.inference_count,
            counters.execution_count,
            counters.success,
            counters.fail,
            counters.queue,
            counters.compute_input,
            counters.compute_infer,
            counters.compute_output,
            {size: replace(batch) for size, batch in counters.batches.items()},
        )

    @classmethod
    def from_counts(cls, model: str, number: int, counts: Mapping[str, Any]) -> Self:
        """Reads what `counts` returned, or several of these added up, also after JSON."""
        batches = {
            int(size): BatchStatistics(**batch)
            for size, batch in sorted(counts["batches"].items(), key=lambda item: int(item[0]))
        }
        durations = {name: Duration(**counts[name]) for name in _DURATIONS}
        return cls(model=model, number=number, **{**counts, **durations, "batches": batches})

    def counts(self) -> dict[str, Any]:
        """Returns the numbers as a document whose numbers can be added up.

        But of the number whose name begins with `last_`, the largest is that of several.
        """
        document = asdict(self)
        del document["model"], document["number"]
        return document


_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
