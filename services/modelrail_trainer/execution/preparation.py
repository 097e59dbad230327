"""What is done for a job before it has a process, as long as somebody wants it.

A disk that is full now may have room later, and a machine that refuses a process may allow one. So
what fails in such a way is tried again, and the job says meanwhile what it waits for. It waits no
longer than its time lasts, and obeys its clients.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from modelrail_trainer.execution.limits.excess import Excess
from modelrail_trainer.execution.limits.stopwatch import NOTE_SECONDS, Stopwatch
from modelrail_trainer.execution.patience import Patience, passes
from modelrail_trainer.execution.processes.executor import ProcessExit
from modelrail_trainer.execution.settlement import TRAINER_STOPPED, Settlement
from modelrail_trainer.execution.wishes import Wishes
from modelrail_trainer.failure.full_disk import is_full_disk
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError
from modelrail_trainer.jobs.state import Reason
from modelrail_trainer.waiting import wait_first

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Preparation:
    """Does what comes before the process, until somebody wants a job to stop or its time is up.

    Args:
        book: The jobs.
        settlement: Decides what becomes of a job that gets no process.
        patience: Says how long to wait between two attempts.
        stopping: Set when the service stops.
    """

    def __init__(
        self,
        *,
        book: JobBook,
        settlement: Settlement,
        patience: Patience,
        stopping: asyncio.Event,
    ) -> None:
        self._book = book
        self._settlement = settlement
        self._patience = patience
        self._stopping = stopping

    async def done(
        self, job: Job, wishes: Wishes, stopwatch: Stopwatch, work: Callable[[], Awaitable[T]]
    ) -> T | None:
        """Returns what `work` returns, after as many attempts as that takes.

        An attempt is not interrupted, only the wait for the next one.

        Returns:
            The result; None when the job is not to go on, and then what becomes of it is settled.

        Raises:
            Exception: What `work` raised, when it does not pass.
        """
        backoff = self._patience.backoff()
        while True:
            try:
                return await work()
            except Exception as error:
                if not passes(error):
                    raise
                _log.warning("job cannot begin now", job=str(job.name), error=str(error))
                await self._note(job, error)
            if not await self.is_wanted_until(
                asyncio.Event(), job, wishes, stopwatch, within_seconds=backoff.next_seconds()
            ):
                await self.give_up(job, stopwatch)
                return None

    async def is_wanted_until(
        self,
        done: asyncio.Event,
        job: Job,
        wishes: Wishes,
        stopwatch: Stopwatch,
        *,
        within_seconds: float = math.inf,
    ) -> bool:
        """Waits until `done` is set or the time is over; returns early when the job has to stop."""
        clock = asyncio.get_running_loop().time
        end = clock() + within_seconds
        while not done.is_set() and clock() < end:
            if self._stopping.is_set() or not stopwatch.remaining_seconds:
                return False
            await wait_first(
                *(done, wishes.changed, self._stopping),
                timeout_seconds=min(NOTE_SECONDS, stopwatch.remaining_seconds, end - clock()),
            )
            if stopwatch.should_be_noted:
                await self._note_time(job, stopwatch)
            if wishes.changed.is_set():
                wishes.changed.clear()
                if await self._settlement.is_to_stop(job.lease):
                    return False
        return True

    async def give_up(
        self, job: Job, stopwatch: Stopwatch, failure: JobError | None = None
    ) -> None:
        """Settles what becomes of a job that gets no process, for this reason or another."""
        excess: Excess | None = None
        if stopwatch.is_limited:
            await self._note_time(job, stopwatch)
            if failure is None and not stopwatch.remaining_seconds:
                excess = Excess(0, timed_out=True)
        await self._settlement.settle(
            job.lease,
            ProcessExit(None),
            requeue=TRAINER_STOPPED if self._stopping.is_set() else None,
            excess=excess,
            failure=failure,
        )

    async def _note(self, job: Job, error: Exception) -> None:
        try:
            await self._book.change(self._book.store.note, job.lease, _why(error))
        except Exception as trouble:
            # A full disk may hold the database too, which then has to do without.
            if not passes(trouble):
                raise

    async def _note_time(self, job: Job, stopwatch: Stopwatch) -> None:
        seconds = stopwatch.seconds
        await self._settlement.change(self._book.store.set_run_seconds, job.lease, seconds)
        stopwatch.noted(seconds)


def _why(error: Exception) -> JobError:
    if is_full_disk(error):
        return JobError(
            Reason.DISK_FULL, "the trainer's disk is full; the job begins when room is made there"
        )
    said = error.strerror if isinstance(error, OSError) else str(error)
    return JobError(
        Reason.INTERNAL, f"the trainer's machine cannot begin the job now ({said}); trying again"
    )
