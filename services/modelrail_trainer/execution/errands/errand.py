"""Errands: a process like that of a job answers a caller who waits, and leaves nothing behind.

As confined as a job, in a directory that goes with it. One runs at a time, beside the jobs;
cancelling the call ends the process.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import structlog

from modelrail.names import TrainingJobName
from modelrail_server.errors import ResourceExhausted, Unavailable
from modelrail_trainer.execution.patience import passes
from modelrail_trainer.execution.processes.diagnosis import diagnose
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.processes.executor import Execution, Executor, ProcessExit
from modelrail_trainer.execution.processes.strays import end_strays
from modelrail_trainer.failure.full_disk import is_full_disk
from modelrail_trainer.handover.journal import JOURNAL_NAME, FailedEvent, JournalError, read_events
from modelrail_trainer.handover.last_word import load_last_word
from modelrail_trainer.jobs.job import JobError
from modelrail_trainer.jobs.state import Reason
from modelrail_trainer.objects.fetching import FetchFailed, ObjectFetcher
from modelrail_trainer.threads import Threads
from modelrail_trainer.waiting import to_the_end, wait_first

T = TypeVar("T")
_log = structlog.get_logger(__name__)
MAX_WAITING = 16
"""Callers that wait for their errand; each has a call open."""


class DamagedResult(ValueError):
    """A process left something else than the result of its errand."""


class Errands:
    """Runs errands of one kind, one at a time, beside the jobs, while it is open as a context.

    Args:
        kind: Such as `dry run`; for messages and directories.
        directories: Where they work; what an earlier run of the trainer left there goes.
        executor: Runs their processes.
        fetcher: Copies what they read out of object stores.
        threads: For disk work.
        stopping: Set when the service stops.
        limit_seconds: How long one may take.
    """

    def __init__(
        self,
        kind: str,
        *,
        directories: JobDirectories,
        executor: Executor,
        fetcher: ObjectFetcher,
        threads: Threads,
        stopping: asyncio.Event,
        limit_seconds: float,
    ) -> None:
        self._kind = kind
        self._directories = directories
        self._executor = executor
        self._fetcher = fetcher
        self._threads = threads
        self._stopping = stopping
        self.limit_seconds = limit_seconds
        self._place = asyncio.Lock()
        self._callers = 0

    async def __aenter__(self) -> Self:
        root = self._directories.root
        # Of a trainer that was killed; nobody waits for them any more.
        left = await self._threads.run(self._executor.executions, root)
        await end_strays(left, (), grace_seconds=0)
        await self._threads.run(_empty, root)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Callers have ended by now, and with each its process."""

    async def run(
        self,
        specification: bytes,
        options: Sequence[str],
        read: Callable[[Path], T | None],
        *,
        furnish: Callable[[Path], None] | None = None,
        limit_seconds: float | None = None,
        processes: int = 1,
    ) -> T | JobError | None:
        """Returns what a process found out, or why it failed. Cancelling ends the process.

        Args:
            specification: What it works on.
            options: For the worker program.
            read: Reads the result from the directory, where the process said nothing of a failure;
                None where there is no result.
            furnish: Puts what else it works on into the directory, when its turn has come.
            limit_seconds: How long it may take, where that is less than any may.
            processes: How many work together.

        Returns:
            The result, or the failure; Reason.TIMEOUT without a message when its time was up.

        Raises:
            ResourceExhausted: Too many callers wait.
            Unavailable: The service stops, or its machine cannot do it now.
        """
        if self._callers > MAX_WAITING:
            raise ResourceExhausted(
                f"one {self._kind} is under way and {self._callers - 1} wait, as many as may; call "
                "again later",
                reason=f"TOO_MANY_{self._kind.upper().replace(' ', '_')}S",
                limit=str(MAX_WAITING),
            )
        self._callers += 1
        try:
            async with self._place:
                return await self._run(
                    specification,
                    options,
                    read,
                    processes=processes,
                    furnish=furnish,
                    limit_seconds=self.limit_seconds if limit_seconds is None else limit_seconds,
                )
        except OSError as error:
            _log.warning("errand failed", kind=self._kind, error=str(error))
            if is_full_disk(error):
                return JobError(
                    Reason.DISK_FULL,
                    "the trainer's disk is full; have room made there, then try again",
                )
            if not passes(error):
                raise
            raise Unavailable(
                f"the trainer's machine cannot carry out the {self._kind} now ({error.strerror}); "
                "try again later",
                reason="MACHINE_BUSY",
            ) from error
        finally:
            self._callers -= 1

    async def _run(
        self,
        specification: bytes,
        options: Sequence[str],
        read: Callable[[Path], T | None],
        *,
        processes: int,
        furnish: Callable[[Path], None] | None,
        limit_seconds: float,
    ) -> T | JobError | None:
        name = TrainingJobName(f"{self._kind.replace(' ', '-')}-{secrets.token_hex(8)}")
        try:
            # A caller who leaves meanwhile must not have it removed while it is filled.
            directory = await self._threads.finish(
                partial(self._directories.prepare, name, specification)
            )
            try:
                async with asyncio.timeout(self.limit_seconds):
                    objects = self._fetcher.objects_of(specification)
                    await self._fetcher.fetch(objects, directory)
            except FetchFailed as failed:
                return failed.error
            except TimeoutError:
                return JobError(
                    Reason.TIMEOUT,
                    f"its objects were not all copied after {self.limit_seconds:g} s; name fewer, "
                    f"or have the trainer's --{self._kind.replace(' ', '-')}-seconds raised",
                )
            if furnish is not None:
                await self._threads.finish(partial(furnish, directory))
            process = await self._threads.finish(
                partial(self._executor.submit, directory, options, processes=processes),
                dispose=_end,
            )
            async with process:
                try:
                    process.release()
                    await wait_first(
                        process.exit_event, self._stopping, timeout_seconds=limit_seconds
                    )
                    in_time = process.exited
                finally:
                    ended = await to_the_end(process.wait() if process.exited else process.stop(0))
            if self._stopping.is_set():
                raise Unavailable("the trainer is stopping", reason="STOPPING")
            if not in_time:
                return JobError(Reason.TIMEOUT, "")
            return await self._threads.run(self._outcome, name, ended, read)
        finally:
            await self._threads.finish(partial(self._remove, name))

    def _outcome(
        self, name: TrainingJobName, ended: ProcessExit, read: Callable[[Path], T | None]
    ) -> T | JobError:
        directory = self._directories.path(name)
        said: JobError | None = None
        try:
            offset = -1
            position = 0
            while position != offset:
                offset = position
                events, position = read_events(directory / JOURNAL_NAME, offset)
                for event in events:
                    if isinstance(event, FailedEvent):
                        said = JobError(Reason(event.reason.value), event.message)
            if said is None and (result := read(directory)) is not None:
                return result
            if said is None and (failed := load_last_word(directory)) is not None:
                said = JobError(Reason(failed.reason.value), failed.message)
        except (DamagedResult, JournalError) as error:
            return JobError(Reason.INTERNAL, f"what it left is damaged: {error}")
        limits = self._executor.limits
        return diagnose(self._directories, name, ended, said, limits, is_job=False)

    def _remove(self, name: TrainingJobName) -> None:
        try:
            self._directories.remove(name)
        except OSError:
            _log.exception("directory of an errand could not be removed", directory=str(name))


async def _end(process: Execution) -> None:
    async with process:
        await process.stop(0)


def _empty(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o700, exist_ok=True)
