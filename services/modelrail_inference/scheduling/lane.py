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
"""Longest run on the event loop, in seconds, of the largest batch that there was."""
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
        self.virtual_seconds = 0.0
        """Time of the threads that the model has had, by which the next model is chosen."""
        self.max_rows = model.max_batch_size if batching is not None else 1
        self.ordering = Ordering() if _keeps_order(batching) and instances > 1 else None
        self._largest = 1
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
            and self.run_time.seconds(self._largest) < _QUICK_SECONDS
        )

    def takes_in_step(self, feed: Feed) -> bool:
        """Whether a request runs in the next step of the event loop.

        Not when others wait, nor when it has to be decoded or is larger than what was quick so far.
        """
        return (
            self.is_quick
            and feed.is_exact
            and self.in_flight == 0
            and self.queue.count == 0
            and (
                feed.batch_size <= self._largest
                or self.run_time.seconds(feed.batch_size) < _QUICK_SECONDS
            )
        )

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
