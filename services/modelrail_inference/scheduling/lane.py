"""Everything that the scheduler keeps about one loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelrail_inference.model.batching import DynamicBatching
from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.request.assembly import BatchBuffers, BatchLayout
from modelrail_inference.request.check import RequestChecker
from modelrail_inference.scheduling.even_share import UnderWay, even_share
from modelrail_inference.scheduling.linger import Linger
from modelrail_inference.scheduling.on_loop.crowd import Crowd
from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.on_loop.quickness import Quickness
from modelrail_inference.scheduling.queue.ordering import Ordering
from modelrail_inference.scheduling.queue.request_queue import RequestQueue
from modelrail_inference.scheduling.run_time import RunTimes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelrail_inference.request.feed import Feed
    from modelrail_inference.scheduling.batch import Batch, Execution

_FADING = 0.95


class Lane:
    """One loaded model's queue, the sessions that may run at a time, and what its runs take.

    Args:
        model: The loaded model.
        instances: Runs of the model at a time.
        budget: What runs may take of the event loop; all lanes of a scheduler share one.
    """

    __slots__ = (
        "_buffers",
        "_linger",
        "_may_gather",
        "_row_output_bytes",
        "checker",
        "crowd",
        "in_flight",
        "instances",
        "layout",
        "model",
        "ordering",
        "queue",
        "quickness",
        "run_times",
        "running_rows",
        "under_way",
        "virtual_seconds",
    )

    def __init__(self, model: LoadedModel, *, instances: int, budget: LoopBudget) -> None:
        batching = model.batching()
        self.model = model
        self.instances = instances
        self.layout = _layout(model)
        self.checker = RequestChecker(model)
        self.queue = RequestQueue(batching, model.rows_together())
        self.run_times = RunTimes()
        self.in_flight = 0
        self.running_rows = 0
        self.under_way = UnderWay(instances)
        self.virtual_seconds = 0.0
        """Time of the threads that the model has had, by which the next model is chosen."""
        self.ordering = Ordering() if _keeps_order(batching) else None
        # Where some requests are urgent, none waits for others.
        self._linger = Linger(
            is_possible=self.queue.max_rows > 1 and not self.queue.batching.priority_levels
        )
        self.quickness = Quickness(
            is_possible=model.is_bounded
            and self.ordering is None
            and self.layout.padding is None
            and not self.layout.buckets
            and not self.queue.delay_seconds
            and not self.queue.batching.priority_levels,
            budget=budget,
        )
        # Batches form on the event loop as they come: where sizes are preferred, they would not.
        self._may_gather = self.queue.max_rows > 1 and not self.queue.batching.preferred_sizes
        self.crowd = Crowd()
        self._buffers: list[BatchBuffers] = []
        self._row_output_bytes = 0.0

    def lend_buffers(self) -> BatchBuffers:
        """Returns memory for one batch; there are as many as runs at a time."""
        return self._buffers.pop() if self._buffers else BatchBuffers()

    def return_buffers(self, buffers: BatchBuffers) -> None:
        """Takes the memory back for the next batch."""
        self._buffers.append(buffers)

    def ran(self, batch: Batch, executions: Sequence[Execution]) -> None:
        """Learns from the runs of a batch on a thread that gave answers.

        What a trial has disproved does not count any more.
        """
        seconds = sum(execution.seconds for execution in executions)
        if executions and batch.is_trial and seconds < self.predicted_seconds(batch):
            self.run_times.forget(batch.key)
        for execution in executions:
            self.learn(execution)

    def learn(self, execution: Execution) -> None:
        """Learns from a run that gave an answer."""
        self.run_times.add(execution.key, execution.items, execution.seconds)
        self.quickness.learn(execution.items, execution.cpu_ns / 1e9)
        # The largest of the last runs, which fades.
        row_bytes = execution.output_bytes / execution.items
        self._row_output_bytes = max(row_bytes, _FADING * self._row_output_bytes)

    def stopped(self, batch: Batch, seconds: float) -> None:
        """Learns from a run that was stopped after so many seconds: it takes longer than that."""
        guess = self.predicted_seconds(batch)
        if seconds > guess or not self.run_times.knows(batch.key):
            self.run_times.add(batch.key, batch.items, max(seconds, guess))
        if batch.is_trial:
            self.run_times.of(batch.key).tried(seconds)

    def run_alone(self, reason: str) -> bool:
        """Puts no requests together any more: a batch has shown that it cannot be taken apart.

        Each such batch costs a run in vain beside those of its requests.

        Args:
            reason: What was wrong with it; empty: nothing was.

        Returns:
            Whether that is news.
        """
        if not reason or self.model.batching_reason:
            return False
        self.model.batching_reason = reason
        self._may_gather = False
        self.queue.take_alone()
        return True

    def runs_at_once(self, feed: Feed, now: float) -> bool:
        """Whether a request that comes now runs on the event loop, without a queue.

        Not when others wait or run, nor when it has to be decoded first.
        """
        return (
            feed.is_exact
            and self.in_flight == 0
            and self.queue.count == 0
            and self.quickness.allows(feed.batch_size, now)
        )

    def gathers(self, feed: Feed) -> bool:
        """Whether a request that comes now can run on the event loop together with others like it.

        Where no other like it fits, nor any other is expected, there is nothing to wait for.
        """
        return (
            self.crowd.wanted > 1
            and self._may_gather
            and feed.is_exact
            and self.in_flight == 0
            and self.queue.count == 0
            and self.fits(2 * feed.batch_size)
        )

    def fits(self, rows: int) -> bool:
        """Whether so many rows may run on the event loop together."""
        return rows <= self.queue.max_rows and self.quickness.is_quick(rows)

    def came_alone(self) -> None:
        """Counts a run of one request on a saturated event loop that was to wait for no others."""
        if self._may_gather and self.crowd.wanted == 1:
            self.crowd.came(1)

    def share(self, answered: int = 0) -> int:
        """Returns the items that one batch shall have at most.

        Where the configuration says which sizes it wants, or how long to wait for them, that
        counts.

        Args:
            answered: Items that were just answered, whose callers may ask again.
        """
        if self.queue.delay_seconds or self.queue.batching.preferred_sizes:
            return self.queue.max_rows
        return even_share(
            self.under_way.rows(self.queue.rows + self.running_rows + answered),
            self.queue.max_rows,
            instances=self.instances,
            run_time=self.run_times.of(self.queue.next_key()),
            wait_seconds=self._linger.seconds,
        )

    def answered(self, batch: Batch, now: float) -> None:
        """A batch has ended: whoever waited for it may ask again as soon as the answers come."""
        self.under_way.ended(self.queue.rows + self.running_rows)
        items = batch.items
        if items > 1:
            # No more come back than were answered: the rest of an even share may run elsewhere.
            expected_rows = min(self.share(items), self.queue.rows + items)
            expected_rows = self.queue.preferred_rows(expected_rows)
            self._linger.answered(self.predicted_seconds(batch), expected_rows, now)

    def predicted_seconds(self, batch: Batch) -> float:
        """Returns the expected time of the run of a batch, in seconds."""
        return self.run_times.of(batch.key).seconds(batch.items)

    def ready_at(self, now: float) -> float | None:
        """Returns when a batch can be taken: a moment of `time.monotonic()`; None for no requests.

        A moment in the past means now.
        """
        ready_at = self.queue.ready_at(self.run_times)
        if ready_at is None or not self._linger.lasts:
            return ready_at
        latest_start = self.queue.latest_start(self.run_times)
        return max(ready_at, self._linger.until(self.queue.rows, latest_start, now))

    def predicted_output_bytes(self, rows: int) -> int:
        """Returns what the outputs of so many items may take, going by the last runs."""
        return int(rows * self._row_output_bytes)

    def doubt_outputs(self) -> None:
        """Expects smaller outputs: for what was expected, a request was refused."""
        self._row_output_bytes *= _FADING

    def batch_seconds(self) -> float:
        """Returns the expected time of the largest batch that waits, in seconds."""
        return self.run_times.whole.seconds(max(1, self.queue.largest_batch_rows()))


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
