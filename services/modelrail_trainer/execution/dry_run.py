"""Dry runs: one batch through the whole path, before anybody waits for a place.

A dry run is a process like that of a job, as confined, in a directory that goes with it. It reads
some of the rows, trains one step, evaluates, exports and passes the gate, and publishes nothing.
"""

from __future__ import annotations

import asyncio
import secrets

import structlog

from modelrail.names import TrainingJobName
from modelrail_server.errors import FailedPrecondition, ResourceExhausted, Unavailable
from modelrail_trainer.artifact import ArtifactError, load_result, verify_files
from modelrail_trainer.execution.diagnosis import diagnose
from modelrail_trainer.execution.directory import JobDirectories
from modelrail_trainer.execution.process import ProcessExit, ProcessLauncher
from modelrail_trainer.jobs.job import JobError
from modelrail_trainer.jobs.state import Reason
from modelrail_trainer.journal import JOURNAL_NAME, FailedEvent, JournalError, read_events
from modelrail_trainer.threads import Threads
from modelrail_trainer.waiting import wait_first

_log = structlog.get_logger(__name__)
_MAX_WAITING = 16
"""Callers that wait for their dry run; each has a call open."""


class DryRuns:
    """Carries out dry runs, one at a time, beside the jobs.

    Args:
        directories: Where they work.
        launcher: Starts their processes.
        threads: For disk work.
        stopping: Set when the service stops.
        limit_seconds: How long one may take.
    """

    def __init__(
        self,
        *,
        directories: JobDirectories,
        launcher: ProcessLauncher,
        threads: Threads,
        stopping: asyncio.Event,
        limit_seconds: float,
    ) -> None:
        self._directories = directories
        self._launcher = launcher
        self._threads = threads
        self._stopping = stopping
        self._limit_seconds = limit_seconds
        self._place = asyncio.Lock()
        self._callers = 0

    async def run(self, specification: bytes) -> None:
        """Returns when the dry run of a specification has passed. Cancelling ends its process.

        Raises:
            FailedPrecondition: It failed, and so would the job; the message says of what.
            ResourceExhausted: Too many callers wait.
            Unavailable: The service stops.
        """
        if self._callers > _MAX_WAITING:
            raise ResourceExhausted(
                f"{self._callers} dry runs wait already, and the trainer takes {_MAX_WAITING}",
                reason="TOO_MANY_DRY_RUNS",
                limit=str(_MAX_WAITING),
            )
        self._callers += 1
        try:
            async with self._place:
                error = await self._run(specification)
        finally:
            self._callers -= 1
        if error is not None:
            raise FailedPrecondition(
                f"the dry run failed: {error.reason}: {error.message}",
                reason="DRY_RUN_FAILED",
                failure=str(error.reason),
            )

    async def _run(self, specification: bytes) -> JobError | None:
        name = TrainingJobName(f"dry-run-{secrets.token_hex(8)}")
        try:
            directory = await self._threads.run(self._directories.prepare, name, specification)
            process = await self._threads.run(self._launcher.spawn, directory, ["--dry-run"])
            async with process:
                try:
                    process.release()
                    await wait_first(
                        process.exit_event, self._stopping, timeout_seconds=self._limit_seconds
                    )
                    in_time = process.exited
                finally:
                    ended = await (process.wait() if process.exited else process.stop(0))
            if self._stopping.is_set():
                raise Unavailable("the trainer is stopping", reason="STOPPING")
            if not in_time:
                return JobError(
                    Reason.TIMEOUT,
                    f"it had no result after {self._limit_seconds:g} s; ask for a smaller model or "
                    "batch, or have the trainer's --dry-run-seconds raised",
                )
            return await self._threads.run(self._failure, name, ended)
        finally:
            await self._threads.run(self._remove, name)

    def _failure(self, name: TrainingJobName, ended: ProcessExit) -> JobError | None:
        """Returns why the dry run failed, if it did."""
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
            if said is None and self._directories.has_result(name):
                verify_files(load_result(directory), directory)
                return None
        except (ArtifactError, JournalError) as error:
            return JobError(Reason.INTERNAL, f"what it left is damaged: {error}")
        return diagnose(self._directories, name, ended, said, self._launcher.limits)

    def _remove(self, name: TrainingJobName) -> None:
        try:
            self._directories.remove(name)
        except OSError:
            _log.exception("directory of a dry run could not be removed", directory=str(name))
