"""Runs of quick models on the event loop: as requests come, or on a saturated loop together.

The way to a thread and back would cost more than such a run. Nothing here waits for a thread, and
nothing that waits for a thread is here: of one model all is here, or nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from modelrail_inference.request.feed import Feed
from modelrail_inference.runtime.session import Run
from modelrail_inference.scheduling.batch import (
    Answer,
    Batch,
    BatchRunner,
    compute_alone,
)
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.on_loop.gathering import Gathering, Patience
from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.on_loop.loop_load import LoopLoad
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.queue.refusals import exiting, expired, is_out
from modelrail_server.errors import ServiceError


class LoopRuns:
    """Runs requests on the event loop to which it belongs.

    Args:
        loop: The event loop.
        lock: Guards the lanes, which threads share.
        load: Tells whether the loop is saturated.
        budget: What runs may take of the loop.
        patience: How long requests of quick models then wait for each other.
        deliver: Gets a batch that has run.
        fail: Answers a request that does not run.
        leave_to_threads: Gets requests of one model that the loop may not run after all.

    Attributes:
        gathering: The requests that wait for others.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lock: threading.Condition,
        *,
        load: LoopLoad,
        budget: LoopBudget,
        patience: Patience | None,
        deliver: Callable[[Batch, BatchRunner], None],
        fail: Callable[[QueuedRequest, ServiceError], None],
        leave_to_threads: Callable[[list[QueuedRequest]], None],
    ) -> None:
        self.gathering = Gathering(loop, self._run_gathered, load.would_have_waited, patience)
        self._lock = lock
        self._load = load
        self._budget = budget
        self._deliver = deliver
        self._fail = fail
        self._leave_to_threads = leave_to_threads
        self._closed = False

    def run_at_once(self, lane: Lane, feed: Feed, deadline: float | None) -> Answer | None:
        """Runs a request of a quick model, here on the event loop.

        It must be certain that such a run ends soon: nothing but the sizes of the inputs decides
        about its time.

        Returns:
            The outputs as they travel, and the run; None for a request that has to be submitted,
            as it waits: for a thread or, on a saturated event loop, for others to run with.

        Raises:
            Unavailable: The deadline has passed, or the server ends.
            ResourceExhausted: The outputs are larger than a reply may be.
            RunError: The model cannot compute these inputs.
        """
        now = time.monotonic()
        is_saturated = self._load.came(now)
        if is_saturated:
            self._make_room(lane, feed, deadline, now)
            if self._gathers(lane, feed, deadline, now):
                return None
        with self._lock:
            if not lane.runs_at_once(feed, now):
                return None
        if self._closed:
            raise exiting()
        if deadline is not None and deadline <= now:
            raise expired()
        # It takes no thread from anybody, so `virtual_seconds` stay: a model that paid for it would
        # wait as long again behind the others once its requests come to the queue.
        began = time.monotonic()
        try:
            outputs, execution = compute_alone(lane.model, feed, Run(), time.perf_counter_ns())
        finally:
            ended = time.monotonic()
            self._budget.spent(ended - began, ended)
        with self._lock:
            lane.learn(execution)
        if is_saturated:
            lane.came_alone()
        lane.model.statistics.executed(
            execution.items, execution.input_ns, execution.infer_ns, execution.output_ns
        )
        if isinstance(outputs, ServiceError):
            raise outputs
        return outputs, execution

    def hold_or_run(self, request: QueuedRequest, now: float) -> bool:
        """Holds a request here, or runs it, if the loop is saturated and may run it.

        No limit of the queue concerns it: what is held is few, and takes no thread.

        Returns:
            Whether it was held or has run. Otherwise it is for a thread, and nothing of its model
            is held any more.

        Raises:
            Unavailable: The deadline has passed, or the server ends.
        """
        lane, feed = request.lane, request.feed
        if not self._load.is_saturated:
            self.gathering.end(lane)
            return False
        self._make_room(lane, feed, request.next_timeout(), now)
        gathers = self._gathers(lane, feed, request.next_timeout(), now)
        if not gathers:
            # Perhaps it would have waited, had its timeout not come near or been near all the time.
            with self._lock:
                runs = lane.runs_at_once(feed, now)
            if not runs:
                self.gathering.end(lane)
                return False
        if self._closed:
            raise exiting()
        if request.deadline is not None and request.deadline <= now:
            raise expired()
        if gathers:
            self.gathering.add(request, now)
        else:
            self._run(lane, [request], now)
        return True

    def discard(self, request: QueuedRequest) -> bool:
        """Takes out a request whose caller has gone; returns whether it was held."""
        return self.gathering.discard(request)

    def close(self) -> list[QueuedRequest]:
        """Runs nothing any more; returns what was held."""
        self._closed = True
        return self.gathering.clear()

    def _make_room(self, lane: Lane, feed: Feed, timeout: float | None, now: float) -> None:
        """Runs what is held of a model, if a request that would wait does not fit beside it.

        What came before it shall not wait for it, nor find the loop's time used up by it.
        """
        if self.gathering.patience.allows(timeout, now) and not self.gathering.fits(lane, feed):
            self.gathering.end(lane)

    def _gathers(self, lane: Lane, feed: Feed, timeout: float | None, now: float) -> bool:
        """Whether a request waits for others on the event loop, which is saturated."""
        if not self.gathering.patience.allows(timeout, now):
            return False
        with self._lock:
            return lane.gathers(feed)

    def _run_gathered(self, lane: Lane, requests: list[QueuedRequest]) -> None:
        """Runs the requests of a model that have waited for each other; all fit into one batch.

        If the event loop may not run them after all, they are left to the threads.
        """
        now = time.monotonic()
        # Of a caller who has gone the future tells before `abandon` does.
        gone = [request for request in requests if request.future.done() or is_out(request, now)]
        for request in gone:
            self._fail(request, expired())
            requests.remove(request)
        if lane.quickness.allows(sum(request.feed.batch_size for request in requests), now):
            lane.crowd.came(len(requests) + len(gone))
            if requests:
                self._run(lane, requests, now)
            return
        if requests and now - requests[0].queued_at >= self.gathering.patience.most_seconds:
            lane.crowd.was_in_vain()
        self._leave_to_threads(requests)

    def _run(self, lane: Lane, requests: list[QueuedRequest], now: float) -> None:
        """Runs requests of a quick model as one batch, here on the event loop."""
        batch = Batch(lane, requests, now)
        for request in requests:
            request.batch = batch
        with self._lock:
            buffers = lane.lend_buffers()
            lane.model.statistics.taken_count += len(requests)
        runner = BatchRunner(batch, buffers, singly=True)
        runner.run()
        ended = time.monotonic()
        self._budget.spent(ended - now, ended)
        with self._lock:
            lane.return_buffers(buffers)
            # No thread was busy, so neither `virtual_seconds` nor the mean of batches change.
            for execution in runner.executions:
                lane.learn(execution)
        self._deliver(batch, runner)
