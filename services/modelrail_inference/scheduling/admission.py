"""Which requests are let in: there is room for them, and time enough to answer them."""

from __future__ import annotations

from dataclasses import dataclass

from modelrail_inference.scheduling.batch import Batch
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.queue.refusals import LEAST_RETRY_SECONDS, expired, unreachable
from modelrail_inference.scheduling.workload import Workload
from modelrail_server.errors import ResourceExhausted, Unavailable

MOST_STAND_INS = 16
"""Threads that stand in for others at most: every one of them is one run more on the same CPUs."""
_OUTPUTS_SHARE = 4
"""Part of the memory that the expected outputs of one request may take."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait.

    Attributes:
        max_items: Requests of all models that may wait.
        max_bytes: Memory of all requests that wait or run, in bytes: of their inputs, and of the
            outputs that they are expected to have.
        max_model_items: Requests of one model that may wait.
        max_model_bytes: Memory of the requests of one model that wait, in bytes.
    """

    max_items: int
    max_bytes: int
    max_model_items: int
    max_model_bytes: int


class Admission:
    """Decides about each request as it comes. No locks here: the scheduler holds one.

    Args:
        limits: What may wait.
        threads: Runs at a time, of all models together.
        work: What waits and what runs.
        long_run_seconds: After that a run no longer keeps other models from running, at the latest
            when as much again has passed.
    """

    def __init__(
        self, limits: QueueLimits, threads: int, work: Workload, *, long_run_seconds: float
    ) -> None:
        self._limits = limits
        self._thread_count = threads
        self._work = work
        self._long_run_seconds = long_run_seconds

    def check(self, request: QueuedRequest, now: float) -> None:
        """Lets a request wait, and notes with how many others it is expected to run.

        Args:
            request: The request.
            now: Moment of `time.monotonic()`.

        Raises:
            Unavailable: The queue is full, or the deadline has passed.
            ResourceExhausted: The request alone is more than may wait, or cannot be answered before
                its deadline.
        """
        lane = request.lane
        if request.deadline is not None and request.deadline <= now:
            raise expired()
        self._check_bytes(request, now)
        at_once = self._takes_at_once(lane)
        if not at_once:  # no bound on waiting concerns what does not wait
            self._check_room(request, now)
        request.admitted_rows = lane.queue.rows_with(request)
        if request.deadline is not None:
            self._check_time(request, request.deadline, now, at_once=at_once)

    def _check_bytes(self, request: QueuedRequest, now: float) -> None:
        limits, lane = self._limits, request.lane
        largest = min(limits.max_bytes, limits.max_model_bytes)
        if request.size_bytes > largest:
            who = "together" if largest == limits.max_bytes else "for one model"
            raise ResourceExhausted(
                f"the inputs take about {request.size_bytes} bytes once they are decoded, and all "
                f"requests {who} may hold {largest}",
                reason="REQUEST_TOO_LARGE",
            )
        # Only a guess: it makes no request too large, nor takes all room from the others.
        outputs = lane.predicted_output_bytes(request.feed.batch_size)
        outputs = min(outputs, request.feed.max_reply_bytes, largest // _OUTPUTS_SHARE)
        request.size_bytes = min(largest, request.size_bytes + outputs)
        if (
            self._work.held_bytes + request.size_bytes > limits.max_bytes
            or lane.queue.size_bytes + request.size_bytes > limits.max_model_bytes
        ):
            # Where something runs or waits, the next run tells how large they are.
            if not (lane.in_flight or lane.queue.count):
                lane.doubt_outputs()
            raise self._full(request, now, "QUEUE_BYTES_FULL")

    def _check_room(self, request: QueuedRequest, now: float) -> None:
        limits, queue = self._limits, request.lane.queue
        max_level_items = queue.batching.policy_of(request.level).max_items
        if (
            self._work.items >= limits.max_items
            or queue.count >= limits.max_model_items
            or (max_level_items and queue.count_of(request.level) >= max_level_items)
        ):
            raise self._full(request, now, "QUEUE_FULL")

    def _check_time(
        self, request: QueuedRequest, deadline: float, now: float, *, at_once: bool
    ) -> None:
        run_times, key = request.lane.run_times, request.feed.key
        wait = 0.0 if at_once else self._wait_seconds(request, now)
        run_time, rows = run_times.of(key), request.admitted_rows
        if now + wait + run_time.longest(rows) <= deadline:
            return
        # Of a shape that has never run the guess is tried, unless one is there already that tells.
        running = self._work.running.get(request.lane, ())
        is_first = not request.lane.queue.rows_beside(request) and all(
            batch.key != key for batch in running
        )
        request.is_trial = (
            now + wait <= deadline
            and (is_first or run_times.knows(key))
            and run_times.tries(key, now, deadline - now)
        )
        if not request.is_trial:
            raise unreachable(wait + run_time.seconds(rows), deadline - now)

    def _full(self, request: QueuedRequest, now: float, reason: str) -> Unavailable:
        return Unavailable(
            "Exceeds maximum queue size",
            reason=reason,
            retry_after_seconds=max(LEAST_RETRY_SECONDS, self._wait_seconds(request, now)),
        )

    def _takes_at_once(self, lane: Lane) -> bool:
        """Whether a thread is free for this model's next batch."""
        free = self._thread_count - self._work.running_count
        return free > self._work.items and lane.in_flight < lane.instances

    def _wait_seconds(self, request: QueuedRequest, now: float) -> float:
        """Predicts how long a request that comes now waits: the batches of its model before it.

        The threads are shared fairly: each of the model's batches waits for one of every other
        model that has work, but not for long runs of them.
        """
        lane = request.lane
        batches = lane.queue.batches_before(request)
        running = sum(_rest_seconds(batch, now) for batch in self._work.running.get(lane, ()))
        own = (running + batches * lane.batch_seconds()) / lane.instances
        others = (self._work.active | self._work.running.keys()) - {lane}
        if not others:
            return own
        theirs = (batches + 1) * len(others) * self._work.mean_batch_seconds / self._thread_count
        wait = max(own + theirs, self._busy_seconds(now))
        if lane.in_flight or not self._is_relieved(now):
            return wait
        return min(wait, own + 2 * self._long_run_seconds)

    def _is_relieved(self, now: float) -> bool:
        """Whether a thread stands in soon for models of which nothing runs: a run takes long."""
        running = [batch for batches in self._work.running.values() for batch in batches]
        stand_ins = sum(batch.stands_in for batch in running)
        return stand_ins < MOST_STAND_INS and any(
            now - batch.started_at + _rest_seconds(batch, now) >= self._long_run_seconds
            for batch in running
        )

    def _busy_seconds(self, now: float) -> float:
        """Predicts how long no thread will be free, whoever has them."""
        if self._work.running_count < self._thread_count:
            return 0.0
        return min(
            _rest_seconds(batch, now)
            for batches in self._work.running.values()
            for batch in batches
            if not batch.stands_in
        )


def _rest_seconds(batch: Batch, now: float) -> float:
    """Returns how long a batch that runs is expected to run on."""
    return max(0.0, batch.started_at + batch.lane.predicted_seconds(batch) - now)
