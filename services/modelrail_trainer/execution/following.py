"""Follows one process of a job until it is gone, and stores what it writes."""

from __future__ import annotations

import asyncio

import structlog

from modelrail_trainer.execution.limits.excess import Excess, Excesses
from modelrail_trainer.execution.limits.silence import Silence
from modelrail_trainer.execution.limits.stopwatch import Stopwatch
from modelrail_trainer.execution.patience import Backoff, Patience, passes
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.executor import Execution, ProcessExit
from modelrail_trainer.execution.processes.transcript import Transcript
from modelrail_trainer.execution.settlement import PROCESS_STOPPED, TRAINER_STOPPED, Settlement
from modelrail_trainer.execution.wishes import Wishes
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job
from modelrail_trainer.threads import Threads
from modelrail_trainer.waiting import wait_first

_log = structlog.get_logger(__name__)


class Follower:
    """Follows processes, whoever started them.

    Args:
        book: The jobs.
        directories: Where the processes work.
        threads: For disk work.
        settlement: Decides what becomes of a job whose process is gone.
        patience: Repeats what the storage does not take now.
        limits: What each process may take of the machine.
        stopping: Set when the service stops.
        stop_grace_seconds: Time between SIGTERM and SIGKILL, and between the last word of a process
            and its exit.
        max_silence_seconds: Time in which a process must make progress; 0: any.
        poll_seconds: Time between two looks into the journal of a running job.
    """

    def __init__(
        self,
        *,
        book: JobBook,
        directories: JobDirectories,
        threads: Threads,
        settlement: Settlement,
        patience: Patience,
        limits: JobLimits,
        stopping: asyncio.Event,
        stop_grace_seconds: float,
        max_silence_seconds: float,
        poll_seconds: float,
    ) -> None:
        self._book = book
        self._directories = directories
        self._threads = threads
        self._settlement = settlement
        self._patience = patience
        self._stopping = stopping
        self._stop_grace_seconds = stop_grace_seconds
        self._max_silence_seconds = max_silence_seconds
        self._poll_seconds = poll_seconds
        self._excesses = Excesses(
            settlement.read, directories, limits, grace_seconds=stop_grace_seconds
        )

    async def follow(
        self, job: Job, process: Execution, wishes: Wishes, stopwatch: Stopwatch
    ) -> None:
        """Stores what the process writes until it is gone, then decides what becomes of the job."""
        directory = self._directories.path(job.name)
        transcript = Transcript(self._book, job, directory, self._threads)
        clock = asyncio.get_running_loop().time
        silence = Silence(directory, clock, self._max_silence_seconds)
        deadline: float | None = None
        trouble: Backoff | None = None
        poll_seconds = self._poll_seconds
        excess: Excess | None = None
        while not (process.exited or self._stopping.is_set()):
            await wait_first(
                process.exit_event,
                *(wishes.changed, self._stopping),
                timeout_seconds=min(poll_seconds, stopwatch.remaining_seconds or poll_seconds),
            )
            if wishes.changed.is_set():
                wishes.changed.clear()
                if await self._settlement.is_to_stop(job.lease):
                    break
            try:
                await transcript.catch_up()
                if stopwatch.should_be_noted:
                    await self._note_time(job, stopwatch)
            except Exception as error:
                if not passes(error):
                    raise
                # The journal keeps what the store does not take now, and the process goes on.
                _log.warning("journal not stored", job=str(job.name), error=str(error))
                trouble = trouble or self._patience.backoff()
                poll_seconds = trouble.next_seconds()
            else:
                trouble, poll_seconds = None, self._poll_seconds
            if transcript.complete and deadline is None:
                deadline = clock() + self._stop_grace_seconds
            if deadline is not None and clock() > deadline:
                break
            excess = await self._excesses.find(job, transcript, stopwatch, silence)
            if excess is not None:
                break
        ended = await self._ended(process, excess)
        await self._patience.until_done(lambda: transcript.catch_up(ended=True))
        if stopwatch.is_limited:
            await self._patience.until_done(lambda: self._note_time(job, stopwatch))
        requeue = TRAINER_STOPPED if self._stopping.is_set() else None
        # Nobody here asked a process to stop that was neither unwanted nor took too much: whoever
        # cleared the machine did, and the job goes on from its checkpoint.
        if requeue is None and transcript.stopped and excess is None:
            requeue = PROCESS_STOPPED
        await self._settlement.settle(job.lease, ended, requeue=requeue, excess=excess)

    async def _ended(self, process: Execution, excess: Excess | None) -> ProcessExit:
        """Returns how the process ended, after stopping it if it lives."""
        if process.exited:
            return await process.wait()
        if excess is None:
            return await process.stop(self._stop_grace_seconds)
        return await process.stop(excess.grace_seconds, first=excess.signal)

    async def _note_time(self, job: Job, stopwatch: Stopwatch) -> None:
        seconds = stopwatch.seconds
        await self._book.change(self._book.store.set_run_seconds, job.lease, seconds)
        stopwatch.noted(seconds)
