"""The job store for the event loop: calls run in threads, and watchers hear of changes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

from modelrail.names import TrainingJobName
from modelrail_trainer.jobs.job import Job, JobEvent
from modelrail_trainer.jobs.lease import Lease
from modelrail_trainer.jobs.storage.store import JobStore
from modelrail_trainer.threads import Threads
from modelrail_trainer.waiting import wait_first

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", TrainingJobName, Lease)
_PAGE = 256
# Between two looks at a job that another trainer may run: its changes wake nobody here.
_LOOK_SECONDS = 1.0


class JobBook:
    """Reads and changes jobs without blocking the event loop.

    Args:
        store: Where the jobs are kept.
        threads: Where the store's methods run.
    """

    def __init__(self, store: JobStore, threads: Threads) -> None:
        self.store = store
        self._threads = threads
        self._look_seconds = _LOOK_SECONDS if store.is_shared else None
        self._watchers: defaultdict[TrainingJobName, set[asyncio.Event]] = defaultdict(set)

    async def read(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a reading method of the store."""
        return await self._threads.run(method, *args, **kwargs)

    async def change(
        self,
        method: Callable[Concatenate[S, P], Job],
        subject: S,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Job:
        """Calls a changing method of the store and wakes whoever watches the job.

        Args:
            method: The method.
            subject: The job: by its name for what a client wants, by its lease for its holder.
            args: More arguments of the method.
            kwargs: The same.
        """
        name = subject.name if isinstance(subject, Lease) else subject
        try:
            return await self._threads.finish(lambda: method(subject, *args, **kwargs))
        finally:
            # Also after a cancellation: the thread has written all the same.
            self.stir(name)

    def stir(self, name: TrainingJobName) -> None:
        """Wakes whoever watches the job."""
        for watcher in self._watchers.get(name, ()):
            watcher.set()

    async def watch(
        self, name: TrainingJobName, after_sequence: int, stopping: asyncio.Event
    ) -> AsyncGenerator[JobEvent, None]:
        """Yields the job's events after a position: stored ones, then new ones, up to the last.

        A slow reader costs nothing: every event comes out of the table when it is asked for.

        Args:
            name: The job.
            after_sequence: Number of the last event that the reader has.
            stopping: Ends the stream early, because the service stops.

        Raises:
            NotFound: There is no such job.
            OutOfRange: The job has no event of that number.
        """
        with self._watcher(name) as news:
            while True:
                news.clear()
                events, complete = await self.read(
                    self.store.events_after, name, after_sequence, limit=_PAGE
                )
                for event in events:
                    yield event
                    after_sequence = event.sequence
                if complete or stopping.is_set():
                    return
                if not events:
                    await wait_first(news, stopping, timeout_seconds=self._look_seconds)

    @contextmanager
    def _watcher(self, name: TrainingJobName) -> Iterator[asyncio.Event]:
        news = asyncio.Event()
        self._watchers[name].add(news)
        try:
            yield news
        finally:
            self._watchers[name].discard(news)
            if not self._watchers[name]:
                del self._watchers[name]
