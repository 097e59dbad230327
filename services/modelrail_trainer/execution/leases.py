"""Keeps the jobs that this trainer holds, and takes those of trainers that are not heard of.

Three times in the life of a lease the trainer renews what it holds, looks for what clients of other
trainers want of its jobs, and looks at the leases of the others. So a wish that was made at another
trainer is heard within a third of a lease.

No wall clock decides here, neither this machine's nor the database's: a lease is over when this
trainer itself has seen no change of it for as long as a lease lasts, by a clock that only goes
forward. Setting a clock by an hour neither steals a job nor keeps one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import structlog

from modelrail.names import TrainingJobName
from modelrail_trainer.execution.wishes import Wishing
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job
from modelrail_trainer.jobs.lease import Lease, StaleLease
from modelrail_trainer.jobs.state import STOPPING
from modelrail_trainer.waiting import wait_first

_log = structlog.get_logger(__name__)


class Watch:
    """Watches leases that others renew.

    Args:
        lease_seconds: How long a lease lasts that is not renewed.
        clock: Seconds that only grow.
    """

    def __init__(self, lease_seconds: float, clock: Callable[[], float]) -> None:
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._since: dict[tuple[Lease, datetime | None], float] = {}

    def expired(self, jobs: Sequence[Job]) -> list[Job]:
        """Returns those of the jobs whose leases have not changed for as long as a lease lasts.

        Args:
            jobs: All that others hold, as they are now.
        """
        now = self._clock()
        marks = [(job.lease, job.lease_expires) for job in jobs]
        self._since = {mark: self._since.get(mark, now) for mark in marks}
        return [
            job
            for job, mark in zip(jobs, marks, strict=True)
            if now - self._since[mark] >= self._lease_seconds
        ]


class LeaseKeeper:
    """Holds the leases of one trainer.

    Args:
        book: The jobs.
        wishing: Told of what clients of other trainers want.
        lease_seconds: How long a lease lasts that is not renewed.
        clock: Seconds that only grow.
        go_on: Called with each job that this trainer took and has to go on with.
        settled: Called with each job of a lost trainer that needed no more than a word.
    """

    def __init__(
        self,
        *,
        book: JobBook,
        wishing: Wishing,
        lease_seconds: float,
        clock: Callable[[], float],
        go_on: Callable[[Job], None],
        settled: Callable[[Job], None],
    ) -> None:
        self._book = book
        self._store = book.store
        self._wishing = wishing
        self._pause_seconds = lease_seconds / 3
        self._watch = Watch(lease_seconds, clock)
        self._go_on = go_on
        self._settled = settled
        self._held: dict[TrainingJobName, Lease] = {}
        # Between the taking of a job and `hold` nobody may ask which jobs nobody works on.
        self._taking = asyncio.Lock()

    def hold(self, lease: Lease) -> None:
        """Tells that this trainer works on the job from now on."""
        self._held[lease.name] = lease

    @property
    def held(self) -> Collection[TrainingJobName]:
        """The jobs that this trainer works on."""
        return self._held.keys()

    def let_go(self, lease: Lease) -> None:
        """Tells that it does not any more."""
        # By now a later attempt of the job may be held in its place.
        if self._held.get(lease.name) == lease:
            del self._held[lease.name]

    @asynccontextmanager
    async def taking(self) -> AsyncIterator[None]:
        """In its context a job is taken from the queue, and held."""
        async with self._taking:
            yield

    async def adopt(self) -> None:
        """Takes the jobs that an earlier run of this trainer left behind."""
        async with self._taking:
            for job in await self._book.read(self._store.renew, []):
                await self._take(self._book.change(self._store.adopt, job.lease))

    async def keep(self, stopping: asyncio.Event) -> None:
        """Renews and looks until the service stops; the leases end by themselves after that."""
        while not stopping.is_set():
            try:
                await self._renew()
                await self._take_over()
            except Exception:  # noqa: BLE001 - the next look comes, whatever the database says
                _log.exception("leases could not be renewed")
            await wait_first(stopping, timeout_seconds=self._pause_seconds)

    async def _renew(self) -> None:
        async with self._taking:
            held = dict(self._held)
            mine = await self._book.read(self._store.renew, [*held.values()])
            jobs = {job.name: job for job in mine}
            for name in jobs.keys() - held.keys():
                # Taken in a transaction whose answer was lost.
                await self._take(self._book.change(self._store.adopt, jobs[name].lease))
        for name, lease in held.items():
            job = jobs.get(name)
            if job is None or job.lease != lease:
                self._wishing.stir(name)
            elif job.state in STOPPING:
                self._wishing.tell(job)

    async def _take_over(self) -> None:
        async with self._taking:
            others = await self._book.read(self._store.held_by_others)
            for job in self._watch.expired(others):
                _log.warning(
                    "trainer not heard of", trainer=job.trainer, job=str(job.name), state=job.state
                )
                await self._take(
                    self._book.change(self._store.take_over, job.lease, expires=job.lease_expires)
                )

    async def _take(self, taking: Awaitable[Job]) -> None:
        with suppress(StaleLease):
            job = await taking
            if job.trainer:
                self.hold(job.lease)
                self._go_on(job)
            else:
                self._settled(job)
