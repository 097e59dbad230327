"""What waits for a thread and what runs on one. No locks here: the scheduler holds one."""

from __future__ import annotations

from collections.abc import Sequence

from modelrail_inference.scheduling.batch import Batch, Execution
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.queue.queued import QueuedRequest

_MEAN_WEIGHT = 0.1


class Workload:
    """Keeps the requests of all models and the batches on all threads together.

    Attributes:
        active: The models of which requests wait.
        running: What runs, by model.
        running_count: Batches that run, but for those on threads that stand in.
        items: Requests that wait.
        held_bytes: Memory of the requests that wait or run, in bytes.
        mean_batch_seconds: What the last runs of all models took, in seconds.
    """

    __slots__ = (
        "_virtual_now",
        "active",
        "held_bytes",
        "items",
        "mean_batch_seconds",
        "running",
        "running_count",
    )

    def __init__(self) -> None:
        self.active: set[Lane] = set()
        self.running: dict[Lane, list[Batch]] = {}
        self.running_count = 0
        self.items = 0
        self.held_bytes = 0
        self.mean_batch_seconds = 0.0
        self._virtual_now = 0.0

    def push(self, request: QueuedRequest) -> None:
        """Puts a request into the queue of its model."""
        lane = request.lane
        lane.queue.push(request)
        lane.under_way.came(lane.queue.rows + lane.running_rows)
        self.items += 1
        self.held_bytes += request.size_bytes
        if lane not in self.active:
            # A model that had nothing to do has saved nothing: it begins with the others.
            lane.virtual_seconds = max(lane.virtual_seconds, self._virtual_now)
            self.active.add(lane)

    def left(self, request: QueuedRequest) -> None:
        """Notes that a request has left its queue and will not run."""
        self.items -= 1
        self.held_bytes -= request.size_bytes
        if request.lane.queue.count == 0:
            self.active.discard(request.lane)

    def took(self, batch: Batch) -> None:
        """Notes that the requests of a batch have left their queue, and that it runs now."""
        lane = batch.lane
        for request in batch.requests:
            request.batch = batch
        self.items -= len(batch.requests)
        if lane.queue.count == 0:
            self.active.discard(lane)
        lane.in_flight += 1
        lane.running_rows += batch.items
        self._virtual_now = max(self._virtual_now, lane.virtual_seconds)
        self.running_count += not batch.stands_in
        self.running.setdefault(lane, []).append(batch)

    def ended(self, batch: Batch, executions: Sequence[Execution]) -> None:
        """Notes that a batch has run, and what its runs took."""
        lane = batch.lane
        lane.in_flight -= 1
        lane.running_rows -= batch.items
        self.running_count -= not batch.stands_in
        running = self.running[lane]
        running.remove(batch)
        if not running:
            del self.running[lane]
        for request in batch.requests:
            self.held_bytes -= request.size_bytes
        for execution in executions:
            self.mean_batch_seconds += _MEAN_WEIGHT * (execution.seconds - self.mean_batch_seconds)

    def long_runs(self, before: float) -> int:
        """Returns how many batches run that were taken before a moment of `time.monotonic()`."""
        return sum(batch.started_at <= before for runs in self.running.values() for batch in runs)

    def choose(self, now: float, *, only_starved: bool = False) -> tuple[Lane | None, float | None]:
        """Returns the model whose turn it is; or None, and when one will have its turn.

        Args:
            now: Moment of `time.monotonic()`.
            only_starved: Whether it must be a model of which nothing runs.
        """
        best: Lane | None = None
        wake: float | None = None
        for lane in self.active:
            if lane.in_flight >= (1 if only_starved else lane.instances):
                continue
            if best is not None and lane.virtual_seconds >= best.virtual_seconds:
                continue
            ready_at = lane.ready_at(now)
            if ready_at is None:
                continue
            if ready_at <= now:
                best = lane
            else:
                wake = ready_at if wake is None else min(wake, ready_at)
        return best, wake
