"""Removes what is left of deleted jobs, and deletes ended jobs that are not kept.

Published versions are the registry's, and stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Self

import structlog

from modelrail.names import TrainingJobName
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import TRAINER
from modelrail_trainer.threads import Threads
from modelrail_trainer.waiting import wait_first

_log = structlog.get_logger(__name__)
_SWEEP_SECONDS = 60.0
_FOLDERS_AT_ONCE = 200


class Retention:
    """Sweeps, while it is open as an asynchronous context manager.

    Args:
        book: The jobs.
        directories: Where their processes worked.
        threads: For disk work.
        keep_ended_jobs: How many of the ended jobs are kept, those that ended last; 0: all.
    """

    def __init__(
        self,
        *,
        book: JobBook,
        directories: JobDirectories,
        threads: Threads,
        keep_ended_jobs: int = 0,
    ) -> None:
        self._book = book
        self._store = book.store
        self._directories = directories
        self._threads = threads
        self._keep_ended_jobs = keep_ended_jobs
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._sweeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sweeping = asyncio.create_task(self._sweep_on())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Ends after the transaction that is under way; the next start does the rest."""
        self._stopping.set()
        if self._sweeping is not None:
            await self._sweeping

    def deleted(self, name: TrainingJobName, actor: str) -> None:
        """Tells that a client deleted a job."""
        # Its events go, so this line is what is left to read.
        _log.info("job deleted", job=str(name), actor=actor)
        self._wake.set()

    async def _sweep_on(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001 - the next sweep comes, whatever the disk says
                _log.exception("deleted jobs could not be removed")
            await wait_first(self._wake, self._stopping, timeout_seconds=_SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Deletes what is not kept, and removes what is left of deleted jobs."""
        if self._keep_ended_jobs:
            await self._delete_surplus()
        failed: set[TrainingJobName] = set()
        while not self._stopping.is_set():
            names = [n for n in await self._book.read(self._store.deleted) if n not in failed]
            if not names:
                break
            for name in names:
                try:
                    await self._remove(name)
                except OSError:
                    _log.exception("folder of a deleted job could not be removed", job=str(name))
                    failed.add(name)
        if self._store.is_shared:
            await self._remove_folders()

    async def _delete_surplus(self) -> None:
        while not self._stopping.is_set():
            names = await self._book.read(self._store.delete_surplus, self._keep_ended_jobs)
            if not names:
                return
            for name in names:
                _log.info("job deleted", job=str(name), actor=TRAINER)
                self._book.stir(name)

    async def _remove(self, name: TrainingJobName) -> None:
        # The row goes last: it is what tells that there is something to remove.
        await self._threads.run(self._directories.remove, name)
        while not self._stopping.is_set():
            if await self._book.read(self._store.purge, name):
                return

    async def _remove_folders(self) -> None:
        """Removes the folders that jobs left here which another trainer removed from the database.

        What an ended job does not need is gone from them: should the database be another one by
        mistake, no job loses a checkpoint.
        """
        folders = await self._threads.run(self._directories.trimmed)
        for names in _portions(folders):
            for name in await self._book.read(self._store.unknown, names):
                await self._threads.run(self._directories.remove, name)


def _portions(names: Sequence[TrainingJobName]) -> Iterator[Sequence[TrainingJobName]]:
    for start in range(0, len(names), _FOLDERS_AT_ONCE):
        yield names[start : start + _FOLDERS_AT_ONCE]
