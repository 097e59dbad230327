"""Everything that the scheduler keeps about one loaded model."""

from __future__ import annotations

from modelrail_inference.repository.batching import DynamicBatching
from modelrail_inference.repository.definition import LoadedModel
from modelrail_inference.request.check import RequestChecker
from modelrail_inference.scheduling.assembly import BatchBuffers, BatchLayout
from modelrail_inference.scheduling.ordering import Ordering
from modelrail_inference.scheduling.request_queue import RequestQueue
from modelrail_inference.scheduling.run_time import RunTime

_QUICK_SECONDS = 0.0005
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
        "checker",
        "in_flight",
        "instances",
        "layout",
        "max_rows",
        "model",
        "ordering",
        "queue",
        "run_time",
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
        self._buffers: list[BatchBuffers] = []

    def lend_buffers(self) -> BatchBuffers:
        """Returns memory for one batch; there are as many as runs at a time."""
        return self._buffers.pop() if self._buffers else BatchBuffers()

    def return_buffers(self, buffers: BatchBuffers) -> None:
        """Takes the memory back for the next batch."""
        self._buffers.append(buffers)

    def is_quick(self) -> bool:
        """Whether the next batch runs on the event loop.

        Handing it to a thread and back costs more than such a run takes. It must be certain that it
        ends: nothing but the sizes of the inputs may decide about its time.
        """
        return (
            self.model.is_bounded
            and not self.queue.delay_seconds
            and self.run_time.runs >= _TRIALS
            and self.batch_seconds() < _QUICK_SECONDS
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
