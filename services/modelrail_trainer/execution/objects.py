"""Has the objects that a job learns from copied, before it has a process."""

from __future__ import annotations

import asyncio

from modelrail_trainer.execution.directory import JobDirectories
from modelrail_trainer.execution.executor import ProcessExit
from modelrail_trainer.execution.settlement import Settlement
from modelrail_trainer.execution.wishes import Wishes
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError, LogLine
from modelrail_trainer.objects.fetching import FetchFailed, ObjectFetcher
from modelrail_trainer.waiting import wait_first


class JobObjects:
    """Brings objects to jobs, until somebody wants a job to stop.

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

    async def bring(self, job: Job, wishes: Wishes) -> bool:
        """Returns whether the job has its objects; if not, what becomes of it is settled."""
        objects = self._fetcher.objects_of(job.specification)
        if not objects:
            return True
        fetching = asyncio.ensure_future(
            self._fetcher.fetch(objects, self._directories.path(job.name))
        )
        done = asyncio.Event()
        fetching.add_done_callback(lambda _: done.set())
        failure: JobError | None = None
        is_wanted = True
        try:
            while is_wanted and not (done.is_set() or self._stopping.is_set()):
                await wait_first(done, wishes.changed, self._stopping)
                if wishes.changed.is_set():
                    wishes.changed.clear()
                    is_wanted = not await self._settlement.is_to_stop(job.lease)
            if is_wanted and done.is_set():
                size = await fetching
                said = f"objects copied: {len(set(objects.values()))}, of {size} bytes"
                await self._settlement.change(
                    self._book.store.record, job.lease, [LogLine(said)], journal_offset=0
                )
                return True
        except FetchFailed as failed:
            failure = failed.error
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
        await self._settlement.settle(
            job.lease, ProcessExit(None), requeue=self._stopping.is_set(), failure=failure
        )
        return False
