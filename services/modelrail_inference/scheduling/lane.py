"""Everything that the scheduler keeps about one loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelrail_inference.repository.batching import DynamicBatching
from modelrail_inference.repository.definition import LoadedModel
from modelrail_inference.request.check import RequestChecker
from modelrail_inference.scheduling.assembly import BatchBuffers, BatchLayout
from modelrail_inference.scheduling.ordering import Ordering
from modelrail_inference.scheduling.request_queue import RequestQueue
from modelrail_inference.scheduling.run_time import RunTime

if TYPE_CHECKING:
    from modelrail_inference.request.feed import Feed
    from modelrail_inference.scheduling.queued import QueuedRequest

_QUICK_SECONDS = 0.001
"""Longest runs on the event loop, in seconds, on average."""
_LINGER_SHARE = 0.05
"""How long a session waits for callers that were just answered, as a share of their batch's run."""
_LINGER_SECONDS = (0.0002, 0.005)
"""Shortest wait that is worth it, and the longest, in seconds."""
_BUSY_GAP_SECONDS = 0.0005
"""Requests of a model that come faster than this keep the event loop busy."""
_GAP_WEIGHT = 0.05
_TRIALS = 3
"""Runs on a thread by which a model shows how quick it is."""


class Lane:
    """One loaded model's queue, the sessions that may run at a time, and what its runs take.

    Args:
        model: The loaded model.
        instances: Runs of the model at a time.
    """

    __slots__ = (
        "_buffers",
        "_came_at",
        "_expected_rows",
        "_expected_until",
        "_gap_seconds",
        "_largest",
        "_may_be_quick",
        "checker",
        "in_flight",
        "instances",
        "is_quick",
        "layout",
        "max_rows",
        "model",
        "ordering",
        "queue",
        "run_time",
        "running_rows",
        "step",
        "step_buffers",
        "virtual_seconds",
    )

    def __init__(self, model: LoadedModel, *, instances: int) -> None:
        batching = model.batching()
        self.model = model
        self.instances = instances
        self.layout = _layout(model)
        self.checker = RequestChecker(model)
        self.queue = RequestQueue(batching, model.max_batch_size)
        self.run_time = RunTime()
        self.in_flight = 0
        self.running_rows = 0
        self.virtual_seconds = 0.0
        """Time of the threads that the model has had, by which the next model is chosen."""
        self.max_rows = model.max_batch_size if batching is not None else 1
        self.ordering = Ordering() if _keeps_order(batching) and instances > 1 else None
        self._expected_rows = 0
        self._expected_until = 0.0
        self._largest = 1
        self._came_at = 0.0
        self._gap_seconds = 1.0
        self.is_quick = False
        """Whether the next batch runs on the event loop."""
        self.step: list[QueuedRequest] = []
        """Requests of a quick model that run in the next step of the event loop."""
        self.step_buffers = BatchBuffers()
        self._may_be_quick = (
            model.is_bounded
            and self.ordering is None
            and self.layout.padding is None
            and not self.queue.delay_seconds
            and not self.queue.batching.priority_levels
        )
        self._buffers: list[BatchBuffers] = []

    def lend_buffers(self) -> BatchBuffers:
        """Returns memory for one batch; there are as many as runs at a time."""
        return self._buffers.pop() if self._buffers else BatchBuffers()

    def return_buffers(self, buffers: BatchBuffers) -> None:
        """Takes the memory back for the next batch."""
        self._buffers.append(buffers)

    def learn(self, items: int, seconds: float) -> None:
        """Learns from a run, and decides where the next batch runs.

        Handing a batch to a thread and back costs more than the run of a quick model takes, so that
        runs on the event loop. It must be certain that it ends: nothing but the sizes of the inputs
        may decide about its time.
        """
        self.run_time.add(items, seconds)
        self._largest = max(self._largest, items)
        self.is_quick = (
            self._may_be_quick
            and self.run_time.runs >= _TRIALS
            and self.run_time.mean_seconds() < _QUICK_SECONDS
        )

    def takes_in_step(self, feed: Feed, now: float) -> bool:
        """Whether a request that comes now runs in the next step of the event loop.

        Not when others wait, nor when it has to be decoded or is larger than what was quick so far;
        and not while requests come so fast that the event loop is what they wait for: a thread then
        runs them beside it.
        """
        self._gap_seconds += _GAP_WEIGHT * (now - self._came_at - self._gap_seconds)
        self._came_at = now
        return (
            self.is_quick
            and self._gap_seconds > _BUSY_GAP_SECONDS
            and feed.is_exact
            and self.in_flight == 0
            and self.queue.count == 0
            and (
                feed.batch_size <= self._largest
                or self.run_time.seconds(feed.batch_size) < _QUICK_SECONDS
            )
        )

    def share(self, answered: int = 0) -> int:
        """Returns the items of one batch when all that are under way are shared evenly.

        A batch of everything that waits would leave the other sessions idle. Where the
        configuration says which sizes it wants, or how long to wait for them, that counts.

        Args:
            answered: Items that were just answered, whose callers may ask again.
        """
        if self.queue.delay_seconds or self.queue.batching.preferred_sizes:
            return self.max_rows
        under_way = self.queue.rows + self.running_rows + answered
        return min(self.max_rows, -(-under_way // self.instances))

    def answered(self, items: int, now: float) -> None:
        """A batch has ended: whoever waited for it may ask again as soon as the answers come.

        Without that a busy model's callers split into ever smaller batches: the first to come back
        would run alone, and the others would find the session taken.
        """
        shortest, longest = _LINGER_SECONDS
        linger = min(longest, _LINGER_SHARE * self.run_time.seconds(items))
        if self.max_rows > 1 and items > 1 and linger >= shortest:
            self._expected_rows = self.share(items)
            self._expected_until = now + linger

    def ready_at(self, now: float) -> float | None:
        """Returns when a batch can be taken: a moment of `time.monotonic()`; None for no requests.

        A moment in the past means now.
        """
        ready_at = self.queue.ready_at()
        if (
            ready_at is not None
            and now < self._expected_until
            and self.queue.rows < self._expected_rows
        ):
            return max(ready_at, self._expected_until)
        return ready_at

    def batch_seconds(self) -> float:
        """Returns the expected time of the largest batch that waits, in seconds."""
        return self.run_time.seconds(max(1, min(self.queue.rows, self.max_rows)))


def _keeps_order(batching: DynamicBatching | None) -> bool:
    return batching is not None and batching.preserve_ordering


def _layout(model: LoadedModel) -> BatchLayout:
    settings = model.settings
    return BatchLayout(
        batchable=model.max_batch_size > 0,
        padding=settings.padding,
        buckets=settings.batch_buckets,
        mask=model.mask,
    )
