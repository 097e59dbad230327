"""Has the objects that a job learns from copied, before it has a process."""

from __future__ import annotations

import asyncio

from modelrail_trainer.execution.directory import JobDirectories
from modelrail_trainer.execution.excess import Excess
from modelrail_trainer.execution.executor import ProcessExit
from modelrail_trainer.execution.settlement import Settlement
from modelrail_trainer.execution.stopwatch import NOTE_SECONDS, Stopwatch
from modelrail_trainer.execution.wishes import Wishes
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError, LogLine
from modelrail_trainer.objects.fetching import Fetched, FetchFailed, ObjectFetcher
from modelrail_trainer.waiting import wait_first


class JobObjects:
    """Brings objects to jobs, until somebody wants a job to stop or its time is up.

    Args:
        fetcher: Copies them.
        book: The jobs.
        directories: Where the copies belong.
        settlement: Decides what becomes of a job that does not get its objects.
        stopping: Set when the service stops.
    """

    def __init__(
        self,
        *,
        fetcher: ObjectFetcher,
        book: JobBook,
        directories: JobDirectories,
        settlement: Settlement,
        stopping: asyncio.Event,
    ) -> None:
        self._fetcher = fetcher
        self._book = book
        self._directories = directories
        self._settlement = settlement
        self._stopping = stopping

    async def bring(self, job: Job, wishes: Wishes, stopwatch: Stopwatch) -> bool:
        """Returns whether the job has its objects; if not, what becomes of it is settled."""
        objects = self._fetcher.objects_of(job.specification)
        if not objects.any:
            return True
        fetching = asyncio.ensure_future(
            self._fetcher.fetch(objects, self._directories.path(job.name))
        )
        done = asyncio.Event()
        fetching.add_done_callback(lambda _: done.set())
        failure: JobError | None = None
        is_wanted = True
        try:
            while (
                is_wanted
                and stopwatch.remaining_seconds
                and not (done.is_set() or self._stopping.is_set())
            ):
                await wait_first(
                    *(done, wishes.changed, self._stopping),
                    timeout_seconds=min(NOTE_SECONDS, stopwatch.remaining_seconds),
                )
                if stopwatch.should_be_noted:
                    await self._note_time(job, stopwatch)
                if wishes.changed.is_set():
                    wishes.changed.clear()
                    is_wanted = not await self._settlement.is_to_stop(job.lease)
            if is_wanted and done.is_set():
                said = _said(await fetching)
                await self._settlement.change(
                    self._book.store.record, job.lease, [LogLine(said)], journal_offset=0
                )
                return True
        except FetchFailed as failed:
            failure = failed.error
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
        excess: Excess | None = None
        if stopwatch.is_limited:
            await self._note_time(job, stopwatch)
            if failure is None and not stopwatch.remaining_seconds:
                excess = Excess(0, timed_out=True)
        await self._settlement.settle(
            job.lease,
            ProcessExit(None),
            requeue=self._stopping.is_set(),
            excess=excess,
            failure=failure,
        )
        return False

    async def _note_time(self, job: Job, stopwatch: Stopwatch) -> None:
        seconds = stopwatch.seconds
        await self._settlement.change(self._book.store.set_run_seconds, job.lease, seconds)
        stopwatch.noted(seconds)


def _said(fetched: Fetched) -> str:
    said = f"objects copied: {fetched.objects}, of {fetched.size_bytes} bytes"
    if fetched.others:
        said += (
            f"; left where they are: {fetched.others}, which by their endings or places are no "
            "images of a class"
        )
    return said
