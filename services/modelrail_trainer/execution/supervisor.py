"""Runs the jobs: takes them from the queue, follows their processes, hands results on.

    queue ▸ process ▸ journal ▸ events in the store ▸ result ▸ publisher

The supervisor keeps nothing that it could not read again from the database, the job directories and
`/proc`. So after a crash the next one goes on: it adopts the processes that live, publishes the
results that are complete, and runs again what was lost. Nor does trouble with the storage end a
job: what cannot be stored now is stored later, by this trainer or the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, Self

import structlog

from modelrail_trainer.execution.following import Follower
from modelrail_trainer.execution.leases import LeaseKeeper
from modelrail_trainer.execution.limits.stopwatch import Stopwatch
from modelrail_trainer.execution.objects import JobObjects
from modelrail_trainer.execution.patience import Backoff, Patience, passes
from modelrail_trainer.execution.preparation import Preparation
from modelrail_trainer.execution.processes.diagnosis import lost_too_often
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.executor import Execution, Executor, ProcessExit
from modelrail_trainer.execution.processes.strays import end_strays
from modelrail_trainer.execution.processes.transcript import Transcript
from modelrail_trainer.execution.publication.publisher import Publisher
from modelrail_trainer.execution.settlement import PROCESS_STOPPED, Settlement
from modelrail_trainer.execution.wishes import Wishes, Wishing
from modelrail_trainer.failure.trace import told
from modelrail_trainer.handover.artifact import ArtifactError
from modelrail_trainer.handover.journal import JournalError
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError
from modelrail_trainer.jobs.lease import Lease, StaleLease
from modelrail_trainer.jobs.state import (
    STOPPING,
    TERMINAL,
    JobState,
    Reason,
)
from modelrail_trainer.jobs.storage.running import MAX_LOSSES
from modelrail_trainer.metrics import TrainerMetrics
from modelrail_trainer.objects.fetching import ObjectFetcher
from modelrail_trainer.threads import Threads
from modelrail_trainer.waiting import wait_first

_log = structlog.get_logger(__name__)

_QUEUE_RETRY_SECONDS = 5.0
_FIRST_RESTART_SECONDS = 1.0
_MAX_RESTART_SECONDS = 60.0
_LOST = JobError(
    Reason.PROCESS_DIED,
    "its process was lost with the trainer; the job runs again, from its last checkpoint if there "
    "is one",
)


class Supervisor:
    """Carries out the jobs of one trainer, while it is open as an asynchronous context manager.

    Args:
        book: The jobs.
        executor: Runs their processes.
        fetcher: Copies what they learn from out of object stores.
        directories: Where the processes work.
        publisher: Takes finished results to the registry.
        threads: For disk work.
        metrics: Told of jobs that end.
        max_running_jobs: Processes at a time. Adopted ones count, and may exceed the bound.
        stop_grace_seconds: Time between SIGTERM and SIGKILL, and between the last word of a process
            and its exit.
        max_silence_seconds: Time in which a process must make progress; 0: any.
        lease_seconds: How long a job that is not renewed stays this trainer's.
        poll_seconds: Time between two looks into the journal of a running job.
    """

    def __init__(
        self,
        *,
        book: JobBook,
        executor: Executor,
        fetcher: ObjectFetcher,
        directories: JobDirectories,
        publisher: Publisher,
        threads: Threads,
        metrics: TrainerMetrics,
        max_running_jobs: int,
        stop_grace_seconds: float,
        max_silence_seconds: float = 0,
        lease_seconds: float = 30.0,
        poll_seconds: float = 0.1,
    ) -> None:
        self._book = book
        self._store = book.store
        self._executor = executor
        self._directories = directories
        self._publisher = publisher
        self._threads = threads
        self._max_running_jobs = max_running_jobs
        self._stop_grace_seconds = stop_grace_seconds
        self._running = 0
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._patience = Patience(self._stopping)
        self._settlement = Settlement(
            book=book,
            directories=directories,
            threads=threads,
            metrics=metrics,
            patience=self._patience,
            limits=executor.limits,
        )
        self._preparation = Preparation(
            book=book,
            settlement=self._settlement,
            patience=self._patience,
            stopping=self._stopping,
        )
        self._objects = JobObjects(
            fetcher=fetcher,
            book=book,
            directories=directories,
            settlement=self._settlement,
            preparation=self._preparation,
        )
        self._follower = Follower(
            book=book,
            directories=directories,
            threads=threads,
            settlement=self._settlement,
            patience=self._patience,
            limits=executor.limits,
            stopping=self._stopping,
            stop_grace_seconds=stop_grace_seconds,
            max_silence_seconds=max_silence_seconds,
            poll_seconds=poll_seconds,
        )
        self._wishing = Wishing()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leases = LeaseKeeper(
            book=book,
            wishing=self._wishing,
            lease_seconds=lease_seconds,
            clock=time.monotonic,
            go_on=self._resume,
            settled=self.changed,
        )

    async def __aenter__(self) -> Self:
        executions = await self._threads.run(self._executor.executions, self._directories.root)
        await self._leases.adopt()
        await end_strays(executions, self._leases.held, grace_seconds=self._stop_grace_seconds)
        self._spawn(self._leases.keep(self._stopping))
        self._spawn(self._settlement.trim_ended())
        self._spawn(self._serve_queue())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stops the processes that run, queues their jobs for the next start, and ends."""
        self._stopping.set()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What clients bring about

    def queue_changed(self) -> None:
        """Tells that a job was queued, or a place became free."""
        self._wake.set()

    def changed(self, job: Job) -> None:
        """Tells that a client changed the state of a job."""
        self._wishing.tell(job)
        if job.state in TERMINAL:
            self._spawn(self._settlement.conclude(job))
        self.queue_changed()

    # The queue

    async def _serve_queue(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            wait_seconds = _QUEUE_RETRY_SECONDS
            try:
                wait_seconds = min(wait_seconds, await self._settlement.expire_queued())
                while self._running < self._max_running_jobs and not self._stopping.is_set():
                    queued = await self._book.read(self._store.next_queued)
                    if queued is None:
                        break
                    if await self._settlement.expire_spent(queued):
                        continue
                    if not await self._start():
                        break
            except Exception:  # noqa: BLE001 - the queue outlives a bad moment of the disk
                _log.exception("the queue could not be served")
            await wait_first(self._wake, self._stopping, timeout_seconds=wait_seconds)

    async def _start(self) -> bool:
        """Takes the next job of the queue; False when others took the last ones."""
        async with self._leases.taking():
            job = await self._book.read(self._store.start_next)
            if job is None:
                return False
            self._leases.hold(job.lease)
        self._book.stir(job.name)
        wishes = self._wishing.expect(job.name)
        # What a client wanted in between was told to nobody.
        wishes.changed.set()
        self._occupy(job, wishes, self._launch(job, wishes))
        return True

    def _occupy(self, job: Job, wishes: Wishes, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` for the job on one of the places."""
        self._running += 1
        self._spawn(self._on_place(job, wishes, work))

    async def _on_place(self, job: Job, wishes: Wishes, work: Coroutine[Any, Any, None]) -> None:
        try:
            await self._guarded(job.lease, work)
        finally:
            self._running -= 1
            self._wake.set()
        await self._go_on(job, wishes)

    async def _go_on(self, job: Job, wishes: Wishes) -> None:
        """Does what is left of an attempt whose process is gone; that takes no place."""
        try:
            await self._guarded(job.lease, self._finish(job, wishes))
        finally:
            self._wishing.forget(job.name, wishes)
            self._leases.let_go(job.lease)

    async def _guarded(self, lease: Lease, work: Coroutine[Any, Any, None]) -> None:
        """Turns a defect into the failure of the one job that met it."""
        name = lease.name
        try:
            await work
        except StaleLease:
            _log.warning("job is another's now", job=str(name), epoch=lease.epoch)
        except Exception as error:  # noqa: BLE001 - whatever it is, only this job fails
            if passes(error):
                _log.exception("job is left to the next start", job=str(name))
                return
            reason = _defect(error)
            if isinstance(error, JournalError | ArtifactError):
                _log.warning("job left something damaged", job=str(name), error=str(error))
                reason = JobError(Reason.INTERNAL, f"what its process left is damaged: {error}")
            else:
                _log.exception("job met a defect of the trainer", job=str(name))
            try:
                await self._settlement.end(lease, JobState.FAILED, reason)
            except StaleLease:
                _log.warning("job is another's now", job=str(name), epoch=lease.epoch)
            except Exception:  # noqa: BLE001 - the next start finds the job as it is
                _log.exception("job could not be marked as failed", job=str(name))

    # One process

    async def _launch(self, job: Job, wishes: Wishes) -> None:
        name = job.name
        stopwatch = Stopwatch(job, asyncio.get_running_loop().time)
        patiently = partial(self._preparation.done, job, wishes, stopwatch)
        try:
            directory = await patiently(
                lambda: self._threads.run(self._directories.prepare, name, job.specification)
            )
            if directory is None or not await self._objects.bring(job, wishes, stopwatch):
                return
            process = await patiently(
                lambda: self._threads.run(
                    self._executor.submit, directory, processes=job.policy.processes
                )
            )
        except OSError as error:
            _log.exception("process could not be started", job=str(name))
            await self._settlement.end(job.lease, JobState.FAILED, _defect(error))
            return
        if process is None:
            return
        async with process:
            try:
                job = await self._settlement.change(
                    self._store.set_process,
                    job.lease,
                    process.handle,
                    earlier_run_seconds=stopwatch.seconds,
                )
                process.release()
                await self._follower.follow(job, process, wishes, stopwatch)
            finally:
                # A defect leaves it alive here, and so does the loss of the lease; a process that
                # nobody follows must not run on. One that ended meanwhile may have left others.
                if process.exited:
                    await process.wait()
                else:
                    await process.stop(self._stop_grace_seconds)

    # After the process

    async def _finish(self, job: Job, wishes: Wishes) -> None:
        lease = job.lease
        job = await self._settlement.read(self._store.get, lease.name)
        # A later attempt, started meanwhile, is not the business of this one. A job that was
        # cancelled just now is: the publisher tells how it ends.
        if job.lease != lease:
            return
        if job.state is JobState.RESTARTING:
            await self._restart(job, wishes)
        elif job.state in {JobState.REGISTERING, JobState.CANCELLING}:
            await self._publish(lease, wishes)

    async def _restart(self, job: Job, wishes: Wishes) -> None:
        """Queues the job again after a while; at a stop of the service the next start does it."""
        first = min(_FIRST_RESTART_SECONDS * 2 ** (job.retries - 1), _MAX_RESTART_SECONDS)
        seconds = Backoff(first, _MAX_RESTART_SECONDS).next_seconds()
        await wait_first(wishes.changed, self._stopping, timeout_seconds=seconds)
        if not self._stopping.is_set():
            await self._settlement.change(self._store.restart, job.lease)
            self.queue_changed()

    async def _publish(self, lease: Lease, wishes: Wishes) -> None:
        ended = await self._publisher.publish(
            lease, cancelled=wishes.cancelled, stopping=self._stopping
        )
        if ended is not None and ended.state is JobState.LOST:
            self.changed(await self._settlement.change(self._store.lose, lease))
        elif ended is not None:
            await self._settlement.end(lease, ended.state, ended.error)

    # After a restart

    def _resume(self, job: Job) -> None:
        wishes = self._wishing.expect(job.name)
        if job.state in {JobState.REGISTERING, JobState.RESTARTING}:
            self._spawn(self._go_on(job, wishes))
        elif job.process and (adopted := self._executor.find(job.process)) is not None:
            self._occupy(job, wishes, self._adopt(job, adopted, wishes))
        else:
            self._occupy(job, wishes, self._recover(job))

    async def _adopt(self, job: Job, process: Execution, wishes: Wishes) -> None:
        _log.info("process adopted", job=str(job.name), attempt=job.attempt)
        async with process:
            if job.state in STOPPING:
                wishes.changed.set()
            stopwatch = Stopwatch(
                job, asyncio.get_running_loop().time, age_seconds=process.age_seconds
            )
            try:
                await self._follower.follow(job, process, wishes, stopwatch)
            finally:
                if process.exited:  # as in `_launch`
                    await process.wait()
                else:
                    await process.stop(self._stop_grace_seconds)

    async def _recover(self, job: Job) -> None:
        """Goes on with a job whose process went, or never came, while no trainer looked."""
        name, lease = job.name, job.lease
        is_over = False
        # Without a process, what lies in the directory is of the attempt before.
        if job.process:
            transcript = Transcript(self._book, job, self._directories.path(name), self._threads)
            await self._patience.until_done(lambda: transcript.catch_up(ended=True))
            job = await self._settlement.read(self._store.get, name)
            complete = await self._settlement.read(self._directories.has_result, name)
            is_over = job.said is not None or complete or transcript.stopped
        if job.state in STOPPING or is_over:
            await self._settlement.settle(lease, ProcessExit(None), requeue=PROCESS_STOPPED)
        elif job.losses + 1 >= MAX_LOSSES:
            tail = await self._settlement.read(self._directories.log_tail, name)
            await self._settlement.end(
                lease, JobState.FAILED, lost_too_often(MAX_LOSSES, tail), lost=True
            )
        else:
            await self._settlement.end(lease, JobState.QUEUED, _LOST, lost=True)


def _defect(error: Exception) -> JobError:
    return JobError(Reason.INTERNAL, f"a defect of the trainer: {told(error)}")
