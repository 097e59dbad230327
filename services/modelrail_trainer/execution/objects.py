"""Has the objects that a job learns from copied, before it has a process."""

from __future__ import annotations

import asyncio

from modelrail_trainer.execution.limits.stopwatch import Stopwatch
from modelrail_trainer.execution.preparation import Preparation
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.settlement import Settlement
from modelrail_trainer.execution.wishes import Wishes
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError, LogLine
from modelrail_trainer.objects.fetching import Fetched, FetchFailed, ObjectFetcher


class JobObjects:
    """Brings objects to jobs, until somebody wants a job to stop or its time is up.

    Args:
        fetcher: Copies them.
        book: The jobs.
        directories: Where the copies belong.
        settlement: Writes down what was copied.
        preparation: Waits for the copies as long as somebody wants the job.
    """

    def __init__(
        self,
        *,
        fetcher: ObjectFetcher,
        book: JobBook,
        directories: JobDirectories,
        settlement: Settlement,
        preparation: Preparation,
    ) -> None:
        self._fetcher = fetcher
        self._book = book
        self._directories = directories
        self._settlement = settlement
        self._preparation = preparation

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
        try:
            if await self._preparation.is_wanted_until(done, job, wishes, stopwatch):
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
        await self._preparation.give_up(job, stopwatch, failure)
        return False


def _said(fetched: Fetched) -> str:
    said = f"objects copied: {fetched.objects}, of {fetched.size_bytes} bytes"
    if fetched.others:
        said += (
            f"; left where they are: {fetched.others}, which by their endings or places are no "
            "images of a class"
        )
    return said
