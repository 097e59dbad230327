"""The scheduler: one fair pool of threads for the batches of all models.

    event loop                          threads
    ──────────                          ───────
    submit ▸ admission ▸ RequestQueue ◀─ take: the model that had least time, the batch as it is now
       ▾                                 assemble ▸ session.run ▸ take apart
    LoopRuns ▸ assemble ▸ session.run ▸ take apart
    answers  ◀── one call for each batch ──

Threads take batches by themselves: the queue is looked at in the very moment in which a session is
free, so batches grow until then, and between two batches no thread waits for the event loop.
The requests of quick models do not wait for threads: they run on the event loop as they come,
because the way to a thread and back would cost more (`run_at_once`); on a saturated loop they wait
some milliseconds for others like them and run there together (`LoopRuns`). One lock guards the
queues; it is held for the length of a few list operations.

Promises: the queues are bounded in items and bytes, for each model and for all together, and what
waits on the event loop is bounded in number. What cannot be answered before its deadline is refused
at once. What is late or left by its caller does not run; a run for which nobody waits is stopped.
No model waits for ever because of another: while a run takes long, a further thread stands in for
its own, for models of which nothing runs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import structlog

from modelrail_inference.model.definition import LoadedModel
from modelrail_inference.request.feed import Feed
from modelrail_inference.scheduling.admission import MOST_STAND_INS, Admission, QueueLimits
from modelrail_inference.scheduling.batch import Answer, Batch, BatchRunner, Outcome
from modelrail_inference.scheduling.lane import Lane
from modelrail_inference.scheduling.on_loop.gathering import Patience
from modelrail_inference.scheduling.on_loop.loop_budget import LoopBudget
from modelrail_inference.scheduling.on_loop.loop_load import LoopLoad
from modelrail_inference.scheduling.on_loop.loop_runs import LoopRuns
from modelrail_inference.scheduling.queue.queued import QueuedRequest
from modelrail_inference.scheduling.queue.refusals import (
    exiting,
    expired,
    too_late,
)
from modelrail_inference.scheduling.queue.request_queue import is_late
from modelrail_inference.scheduling.timeouts import Timeouts
from modelrail_inference.scheduling.workload import Workload
from modelrail_inference.threads.limit import ThreadLimitReached, start_thread
from modelrail_inference.threads.niceness import give_way
from modelrail_inference.threads.placement import Placement
from modelrail_server.errors import ServiceError, Unavailable

_log = structlog.get_logger(__name__)

THREAD_NAME = "session"

_JOIN_SECONDS = 0.2
_LONG_RUN_SECONDS = 0.25


class Scheduler:
    """Queues, batches and runs.

    Belongs to the event loop on which it is made; only `_serve` and what it calls run on threads.

    Args:
        threads: Runs at a time, of all models together.
        limits: What may wait.
        cpus: One for each of the threads to stay on while all of them compute; none: Linux places.
        load: Tells whether the event loop is saturated.
        patience: How long requests of quick models then wait for each other.
        long_run_seconds: A run that takes longer no longer keeps other models from running.
    """

    def __init__(
        self,
        *,
        threads: int,
        limits: QueueLimits,
        cpus: Sequence[int] = (),
        load: LoopLoad | None = None,
        patience: Patience | None = None,
        long_run_seconds: float = _LONG_RUN_SECONDS,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread_count = threads
        self._cpus = cpus
        self._threads: list[threading.Thread] = []
        self._stand_in_threads: list[threading.Thread] = []
        self._long_run_seconds = long_run_seconds
        self._changed = threading.Condition(threading.Lock())
        # Guarded by the lock of `_changed`:
        self._work = Workload()
        self._idle = 0
        self._stand_ins = 0
        self._closed = False
        self._admission = Admission(limits, threads, self._work, long_run_seconds=long_run_seconds)
        # Of the event loop alone:
        self._timeouts = Timeouts(self._loop, self._time_out)
        self._looks = False
        self._relief: asyncio.TimerHandle | None = None
        self._budget = LoopBudget()
        self._on_loop = LoopRuns(
            self._loop,
            self._changed,
            load=load or LoopLoad(),
            budget=self._budget,
            patience=patience,
            deliver=self._deliver,
            fail=self._fail,
            leave_to_threads=self._leave_to_threads,
        )

    @property
    def waiting(self) -> int:
        """Requests that wait for a session on a thread."""
        return self._work.items

    @property
    def held_bytes(self) -> int:
        """Memory of the requests that wait for a thread or run on one, in bytes."""
        return self._work.held_bytes

    def open_lane(self, model: LoadedModel) -> Lane:
        """Returns the place of a model that was just loaded."""
        return Lane(model, instances=self.instances_of(model), budget=self._budget)

    def instances_of(self, model: LoadedModel) -> int:
        """Returns how many runs of a model there are at a time: never more than threads.

        Recorded runs wait for each other, and would hold a thread meanwhile.
        """
        cuda = model.settings.session.cuda
        if cuda is not None and cuda.records_graphs:
            return 1
        return min(model.settings.instances or self._thread_count, self._thread_count)

    def run_at_once(self, lane: Lane, feed: Feed, deadline: float | None) -> Answer | None:
        """Runs a request of a quick model, here on the event loop; see `LoopRuns.run_at_once`."""
        return self._on_loop.run_at_once(lane, feed, deadline)

    def submit(self, request: QueuedRequest) -> None:
        """Lets a request wait, for a session or for others; its future gets the outcome.

        Raises:
            Unavailable: The queue is full, the deadline has passed, the server ends, or the system
                allows it no thread.
            ResourceExhausted: The request alone is more than may wait, or cannot be answered before
                its deadline.
        """
        lane = request.lane
        request.queued_ns = time.perf_counter_ns()
        now = time.monotonic()
        request.queued_at = now
        if self._on_loop.hold_or_run(request, now):
            return
        if len(self._threads) < self._thread_count and not self._closed:
            self._start_thread()
        with self._changed:
            if self._closed:
                raise exiting()
            self._admission.check(request, now)
            self._work.push(request)
        if lane.ordering is not None:
            request.sequence = lane.ordering.ticket()
        self._waits(request)

    def abandon(self, request: QueuedRequest) -> None:
        """The caller has gone: a request that waits never runs, and a lonely run is stopped."""
        self._timeouts.forget(request)
        gathered = self._on_loop.discard(request)
        with self._changed:
            waited = gathered or self._drop(request)
            # Whoever was answered, as at a deadline, and is cancelled then, has left before.
            if request.batch is not None and request.future.cancelled():
                request.batch.leave()
        if waited:
            _finish(request)

    def close(self) -> None:
        """Refuses what waits, ends the threads after their present runs; does not wait long."""
        with self._changed:
            self._closed = True
            waiting = [request for lane in self._work.active for request in lane.queue.requests()]
            for request in waiting:
                self._drop(request)
            self._changed.notify_all()
        for request in (*self._on_loop.close(), *waiting):
            self._fail(request, exiting())
        self._timeouts.close()
        if self._relief is not None:
            self._relief.cancel()
        latest = time.monotonic() + _JOIN_SECONDS
        for thread in (*self._threads, *self._stand_in_threads):
            thread.join(max(0.0, latest - time.monotonic()))

    def _leave_to_threads(self, requests: list[QueuedRequest]) -> None:
        """Has requests of a quick model wait for a thread: they were let in before.

        There is a thread: on one the model has shown how quick it is.
        """
        with self._changed:
            for request in requests:
                self._work.push(request)
        for request in requests:
            self._waits(request)

    def _waits(self, request: QueuedRequest) -> None:
        """Has a request looked after that was put into the queue."""
        self._look_soon()
        self._timeouts.watch(request)

    def _look_soon(self) -> None:
        """Has the queues looked at in the next step of the event loop.

        Not here and now: what comes in the same step shall be taken too, and waking a thread for
        each request costs more than many a run.
        """
        if not self._looks:
            self._looks = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Has a thread look after the queues, and looks again in case long runs have them all."""
        self._looks = False
        with self._changed:
            if not self._work.active:
                return
            self._wake()
        if self._relief is None and not self._closed:
            self._relief = self._loop.call_later(self._long_run_seconds, self._relieve)

    def _relieve(self) -> None:
        """Starts a thread for models of which nothing runs, if long runs have all the others."""
        self._relief = None
        with self._changed:
            if not self._work.active:
                return
            is_needed = (
                any(not lane.in_flight for lane in self._work.active)
                and not self._idle
                and self._stand_ins
                < min(
                    MOST_STAND_INS, self._work.long_runs(time.monotonic() - self._long_run_seconds)
                )
            )
            self._stand_ins += is_needed
        if is_needed and not self._start_thread(stands_in=True):
            with self._changed:
                self._stand_ins -= 1
        self._relief = self._loop.call_later(self._long_run_seconds, self._relieve)

    # --- with the lock held -----------------------------------------------------------------------

    def _drop(self, request: QueuedRequest) -> bool:
        """Takes a request out of the queue; returns whether it waited there."""
        if request.batch is not None or not request.lane.queue.discard(request):
            return False
        self._work.left(request)
        return True

    # --- on the threads ---------------------------------------------------------------------------

    def _start_thread(self, *, stands_in: bool = False) -> bool:
        """Starts one more thread; returns whether the system allows it.

        Raises:
            Unavailable: It does not, and there is no other.
        """
        # Daemons, so that a run that is stuck in native code does not keep the process from ending.
        cpu = None if stands_in or not self._cpus else self._cpus[len(self._threads)]
        thread = threading.Thread(target=self._serve, args=(cpu, stands_in), daemon=True)
        thread.name = f"{THREAD_NAME}-{'stand-in' if stands_in else len(self._threads)}"
        try:
            start_thread(thread)
        except ThreadLimitReached as error:
            if self._threads:
                return False  # those that there are do the work, only later
            raise Unavailable(
                str(error.strerror), reason="THREAD_LIMIT", retry_after_seconds=1.0
            ) from error
        if stands_in:
            alive = [one for one in self._stand_in_threads if one.is_alive()]
            self._stand_in_threads = [*alive, thread]
        else:
            self._threads.append(thread)
        return True

    def _serve(self, cpu: int | None, stands_in: bool) -> None:
        """Takes one batch after the other and runs it, until the scheduler is closed.

        Args:
            cpu: Where it stays while all threads compute; None for none.
            stands_in: Whether it does so only while there are long runs, for other models.
        """
        give_way()
        placement = Placement(cpu, self._cpus)
        while (batch := self._take(placement, stands_in=stands_in)) is not None:
            placement.stay(self._work.running_count == self._thread_count)
            self._call(self._deliver, batch, self._run(batch))
            # What the batch held must not live until the next comes.
            del batch

    def _run(self, batch: Batch) -> BatchRunner:
        """Runs a batch, on a thread or on the event loop."""
        lane = batch.lane
        with self._changed:
            buffers = lane.lend_buffers()
        runner = BatchRunner(batch, buffers)
        runner.run()
        with self._changed:
            lane.return_buffers(buffers)
            self._ended(batch, runner)
        return runner

    def _ended(self, batch: Batch, runner: BatchRunner) -> None:
        lane = batch.lane
        seconds = time.monotonic() - batch.started_at
        lane.virtual_seconds += seconds
        self._work.ended(batch, runner.executions)
        lane.answered(batch, time.monotonic())
        if batch.run.terminated:
            lane.stopped(batch, seconds)
        lane.ran(batch, runner.executions)
        if self._stand_ins:  # they may not be needed any more
            self._wake()

    def _take(self, placement: Placement, *, stands_in: bool = False) -> Batch | None:
        """Waits for the next batch; None when the scheduler is closed or nobody's part is taken."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                if (
                    stands_in
                    and self._work.long_runs(now - self._long_run_seconds) < self._stand_ins
                ):
                    self._stand_ins -= 1
                    # Whoever woke this thread meant one that looks after the queues.
                    self._wake()
                    return None
                lane, wake = self._work.choose(now, only_starved=stands_in)
                if lane is not None:
                    if (batch := self._take_from(lane, now, stands_in)) is not None:
                        return batch
                    continue
                placement.stay(False)
                self._idle += 1
                self._changed.wait(None if wake is None else max(0.0, wake - now))
                self._idle -= 1
        return None

    def _wake(self) -> None:
        """Wakes a thread that waits; all of them where not each takes every model's batches."""
        if self._idle:
            self._changed.notify(len(self._threads) + self._stand_ins if self._stand_ins else 1)

    def _take_from(self, lane: Lane, now: float, stands_in: bool) -> Batch | None:
        # Other models' batches are as good for the other threads as the rest of this one.
        alone = len(self._work.active) == 1
        requests, late = lane.queue.take(now, lane.run_times, lane.share() if alone else None)
        for request, seconds in late:
            self._work.left(request)
            self._call(self._fail, request, too_late(request, now, seconds))
        if not requests:
            return None
        batch = Batch(lane, requests, now, stands_in=stands_in)
        self._work.took(batch)
        # Another thread may sleep until a moment that this one kept an eye on.
        if self._work.active:
            self._wake()
        lane.model.statistics.taken_count += len(requests)
        return batch

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *arguments)

    # --- back on the event loop -------------------------------------------------------------------

    def _deliver(self, batch: Batch, runner: BatchRunner) -> None:
        ordering, model = batch.lane.ordering, batch.lane.model
        if runner.why_alone:
            self._run_alone(batch.lane, runner.why_alone)
        for execution in runner.executions:
            model.statistics.executed(
                execution.items, execution.input_ns, execution.infer_ns, execution.output_ns
            )
        # Its requests hold the batch: each by the other, they would stay, with all of their bytes,
        # until the garbage collector comes by.
        batch.requests = []
        for request, outcome in runner.outcomes:
            request.release()
            if ordering is None:
                self._answer(request, outcome)
            else:
                # Until its turn has come, its deadline can still pass.
                ordering.done(request.sequence, partial(self._answer, request, outcome))

    def _run_alone(self, lane: Lane, reason: str) -> None:
        """Puts no requests of a model together any more, and says so once."""
        with self._changed:
            is_news = lane.run_alone(reason)
        if is_news:
            model = lane.model
            _log.warning(
                "requests are not put together",
                model=model.model,
                version=model.number,
                reason=reason,
            )

    def _answer(self, request: QueuedRequest, outcome: Outcome) -> None:
        self._timeouts.forget(request)
        future = request.future
        if future.done():
            return  # the caller has gone
        if outcome.error is not None:
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome)

    def _fail(self, request: QueuedRequest, error: ServiceError) -> None:
        """Answers a request that has left the queue without having run."""
        self._timeouts.forget(request)
        if not request.future.done():
            request.future.set_exception(error)
        _finish(request)

    def _time_out(self, request: QueuedRequest, now: float) -> None:
        """Answers what has waited too long. A transport may have told it before."""
        with self._changed:
            # As soon as the lock is free, a thread may take it: what counts is decided here.
            batch = request.batch
            out = batch is None and request.lane.queue.lose_patience(request, now)
            if out:
                self._work.left(request)
            # One that was taken meanwhile has no patience to lose any more.
            late = batch is not None and is_late(request, now)
            if batch is not None and late and not request.future.done():
                batch.leave()
        if out:
            self._fail(request, expired())
        elif late:
            self._timeouts.forget(request)
            if not request.future.done():
                request.future.set_exception(expired())
        elif request.next_timeout() is None:
            self._timeouts.forget(request)


def _finish(request: QueuedRequest) -> None:
    """Frees the place of a request that has left the queue and will not run."""
    request.release()
    if request.lane.ordering is not None:
        request.lane.ordering.done(request.sequence, _nothing)


def _nothing() -> None:
    """Is what an abandoned place sends."""
