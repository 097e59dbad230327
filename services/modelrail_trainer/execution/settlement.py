"""Decides what becomes of a job, and writes it down however the storage fares meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Concatenate, ParamSpec, TypeVar

import structlog

from modelrail.names import TrainingJobName
from modelrail_server.errors import NotFound
from modelrail_trainer.execution.limits.excess import Excess
from modelrail_trainer.execution.limits.silence import stalled
from modelrail_trainer.execution.patience import Patience
from modelrail_trainer.execution.processes.diagnosis import diagnose
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.executor import ProcessExit
from modelrail_trainer.execution.processes.transcript import Findings, findings
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError
from modelrail_trainer.jobs.lease import Lease, StaleLease
from modelrail_trainer.jobs.state import (
    MOST_RETRIES,
    STOPPING,
    TERMINAL,
    IllegalTransition,
    JobState,
    Reason,
)
from modelrail_trainer.metrics import TrainerMetrics
from modelrail_trainer.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")
_log = structlog.get_logger(__name__)

TRAINER_STOPPED = JobError(
    Reason.PROCESS_DIED,
    "the trainer was stopped; the job runs again, from its last checkpoint if there is one",
)
"""Why a job is queued again whose trainer stops."""
PROCESS_STOPPED = JobError(
    Reason.PROCESS_DIED,
    "its process was told to stop by SIGTERM; the job runs again, from its last checkpoint",
)
"""Why one is whose process was stopped by somebody else."""


def ran_too_long(job: Job) -> JobError:
    """Returns why a job ends whose time is up."""
    limit = job.policy.max_run_duration
    allowed = 0.0 if limit is None else limit.total_seconds()
    message = (
        f"it ran for {job.run_seconds:.1f} s without a result; max_run_duration is {allowed:g} s"
    )
    # Of a queued job it says what brought it there.
    if job.error is not None and job.said is None and job.state is not JobState.QUEUED:
        message += f"; it waited because {job.error.message}"
    return JobError(Reason.TIMEOUT, message)


class Settlement:
    """Ends jobs, or moves them on.

    Args:
        book: The jobs.
        directories: Where their processes worked.
        threads: For disk work.
        metrics: Told of jobs that end.
        patience: Repeats what the storage does not take now.
        limits: What each job may take of the machine.
    """

    def __init__(
        self,
        *,
        book: JobBook,
        directories: JobDirectories,
        threads: Threads,
        metrics: TrainerMetrics,
        patience: Patience,
        limits: JobLimits,
    ) -> None:
        self._book = book
        self._store = book.store
        self._directories = directories
        self._threads = threads
        self._metrics = metrics
        self._patience = patience
        self._limits = limits

    async def read(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Reads from the disk, after a bad moment of it again."""
        return await self._patience.until_done(lambda: self._threads.run(method, *args, **kwargs))

    async def change(
        self,
        method: Callable[Concatenate[Lease, P], Job],
        lease: Lease,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Job:
        """Changes a job, after a bad moment of the database again."""
        return await self._patience.until_done(
            lambda: self._book.change(method, lease, *args, **kwargs)
        )

    async def is_to_stop(self, lease: Lease) -> bool:
        """Whether a client wants the job to stop that is being worked on.

        Raises:
            StaleLease: It is another's by now.
        """
        job = await self.read(self._store.get, lease.name)
        if job.lease != lease:
            raise StaleLease(f"epoch {lease.epoch} of {lease.name} is over")
        return job.state in STOPPING

    async def _trim(self, name: TrainingJobName) -> None:
        """Removes what an ended job does not need; the next start does what fails now."""
        try:
            await self._threads.run(self._directories.trim, name)
        except OSError:
            _log.exception("job directory could not be trimmed", job=str(name))

    async def trim_ended(self) -> None:
        """Trims the directories of jobs that ended while this could not be done."""
        try:
            for name in await self._threads.run(self._directories.untrimmed):
                with suppress(NotFound):
                    if (await self._book.read(self._store.get, name)).state in TERMINAL:
                        await self._trim(name)
        except Exception:  # noqa: BLE001 - only disk space is lost, until the next start
            _log.exception("directories of ended jobs could not be trimmed")

    async def settle(
        self,
        lease: Lease,
        ended: ProcessExit,
        *,
        requeue: JobError | None,
        excess: Excess | None = None,
        failure: JobError | None = None,
    ) -> None:
        """Decides what becomes of a job whose process is gone, or never came.

        Args:
            lease: The job, held by this trainer.
            ended: How the process ended.
            requeue: Why the job is queued again, where its process was stopped for no fault of it.
            excess: What it was stopped for, when nobody wished that.
            failure: Why there was no process.
        """
        name = lease.name
        job = await self.read(self._store.get, name)
        if job.state is JobState.CANCELLING:
            await self.end(lease, JobState.CANCELLED, job.error)
        elif (
            job.process and job.said is None and await self.read(self._directories.has_result, name)
        ):
            found = await self.read(findings, self._directories.path(name))
            await self.end(lease, JobState.REGISTERING, None, found)
        elif job.said is None and job.state is JobState.PAUSING:
            await self.end(lease, JobState.PAUSED, None)
        elif job.said is None and excess is not None and excess.timed_out:
            await self.end(lease, JobState.EXPIRED, ran_too_long(job))
        elif job.said is None and excess is not None and excess.silent_seconds:
            tail = await self.read(self._directories.log_tail, lease.name)
            await self._fail(lease, job, stalled(excess.silent_seconds, tail))
        elif job.said is None and requeue is not None:
            await self.end(lease, JobState.QUEUED, requeue)
        elif failure is not None:
            await self._fail(lease, job, failure)
        else:
            error = await self.read(
                diagnose, self._directories, name, ended, job.said, self._limits
            )
            await self._fail(lease, job, error)

    async def _fail(self, lease: Lease, job: Job, error: JobError) -> None:
        """Fails a job, or has it run again when that may help and it has retries left."""
        done, allowed = job.retries, job.policy.max_retries
        of_reason = job.retries_by_reason.get(error.reason, 0)
        if done < allowed and of_reason < MOST_RETRIES[error.reason]:
            message = f"retry {done + 1} of {allowed} follows: {error.message}"
            await self.end(lease, JobState.RESTARTING, JobError(error.reason, message))
            return
        if done:
            error = JobError(error.reason, f"retries: {done}; {error.message}")
        await self.end(lease, JobState.FAILED, error)

    async def end(
        self,
        lease: Lease,
        new: JobState,
        error: JobError | None,
        found: Findings | None = None,
        *,
        lost: bool = False,
    ) -> None:
        """Moves the job on, or to where a client who was faster wants it.

        Raises:
            StaleLease: It is another's to move; this trainer leaves it as it is.
        """
        while True:
            try:
                job = await self.change(
                    self._store.move,
                    lease,
                    new,
                    error=error,
                    metrics=None if found is None else found.metrics,
                    evaluation=None if found is None else found.evaluation,
                    lost=lost,
                )
                break
            except IllegalTransition:
                job = await self.read(self._store.get, lease.name)
                if job.state is new:
                    break
                if job.state not in STOPPING:
                    raise
                # Only another wish can come between now: a cancellation, and that is the last.
                new, error, found = STOPPING[job.state], job.error, None
        if job.state in TERMINAL:
            await self.conclude(job)

    async def expire_queued(self) -> float:
        """Ends the jobs that waited too long; returns the seconds until the next such moment."""
        while (job := await self._book.read(self._store.next_expiring)) is not None:
            expire_time = job.policy.expire_time or job.create_time
            seconds = (expire_time - datetime.now(UTC)).total_seconds()
            if seconds > 0:
                return seconds
            error = JobError(Reason.TIMEOUT, f"it had not started by {expire_time:%Y-%m-%d %X} UTC")
            await self._expire(job, error)
        return math.inf

    async def expire_spent(self, queued: Job) -> bool:
        """Ends a queued job whose time to run is used up; returns whether it is."""
        limit = queued.policy.max_run_duration
        if limit is None or queued.run_seconds < limit.total_seconds():
            return False
        await self._expire(queued, ran_too_long(queued))
        return True

    async def _expire(self, queued: Job, error: JobError) -> None:
        # Between two looks it may have been cancelled, or started by another trainer.
        with suppress(IllegalTransition, StaleLease):
            await self.end(queued.lease, JobState.EXPIRED, error)

    async def conclude(self, job: Job) -> None:
        """Does what is left to do for a job that has ended."""
        self._metrics.ended(job)
        _log.info("job ended", job=str(job.name), state=job.state.value)
        # First the state, then the files: a model goes only when nobody can ask for it again.
        await self._trim(job.name)
