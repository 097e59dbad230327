"""Has the files of a finished job looked at by a process that is not the job's.

What the job's process says of its files is its own word, and it may have run code of the job's
owner. The one that looks again is as confined as a job, runs no such code and cannot read it, and
gets the files in a directory of its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import structlog

from modelrail_trainer.execution.errands.errand import DamagedResult, Errands
from modelrail_trainer.execution.limits.stopwatch import Stopwatch
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.handover.artifact import (
    BARE_NAME,
    MODEL_NAME,
    REFERENCE_NAME,
    TrainingResult,
    write_result,
)
from modelrail_trainer.handover.job_file import NotAJobFileError, open_job_file
from modelrail_trainer.handover.journal import cut
from modelrail_trainer.handover.verdict import Verdict, VerdictError, load_verdict
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError, LogLine
from modelrail_trainer.jobs.state import Reason

_log = structlog.get_logger(__name__)
OPTION = "--second-look"
_FILES = (MODEL_NAME, BARE_NAME, REFERENCE_NAME)
# A process that was killed says nothing of the files. One that they kill is killed every time.
_MAX_LOOKS = 3


class OutOfTime(Exception):
    """The time that the job may run was up before anything was seen.

    Args:
        seconds: How long it ran, this included.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it ran for {seconds:.1f} s")
        self.seconds = seconds


class SecondLooks:
    """Looks at results a second time.

    Args:
        errands: Runs the processes that look.
        book: The jobs.
        directories: Where their results are.
    """

    def __init__(self, errands: Errands, book: JobBook, directories: JobDirectories) -> None:
        self._errands = errands
        self._book = book
        self._store = book.store
        self._directories = directories

    async def look(self, job: Job, result: TrainingResult) -> TrainingResult | JobError:
        """Returns the result as it can be published, or what is wrong with it.

        No difference on its certificate is smaller than the one that was seen. The time that this
        takes counts as the job's. Cancelling ends the process.

        Args:
            job: REGISTERING, held by this trainer.
            result: What its process left.

        Raises:
            OSError: The disk does not take what the process needs.
            OutOfTime: The job may not run for so long.
        """
        looks = 0
        while True:
            looks += 1
            found, job = await self._look(job, result)
            if isinstance(found, Verdict):
                certificate = result.certificate.with_outputs(found.outputs)
                return replace(result, certificate=certificate)
            _log.warning("second look failed", job=str(job.name), error=found.message)
            if found.reason is Reason.DISK_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if found.reason is not Reason.PROCESS_DIED or looks == _MAX_LOOKS:
                return JobError(found.reason, f"a second look at its files: {found.message}")

    async def _look(self, job: Job, result: TrainingResult) -> tuple[Verdict | JobError, Job]:
        """Returns what a process found, and the job with its time."""
        clock = asyncio.get_running_loop().time
        limit_seconds = self._errands.limit_seconds
        # Too late for an end of the job: the registry may have its version.
        is_bound = job.policy.max_run_duration is not None and not job.committing
        if is_bound:
            limit_seconds = min(limit_seconds, Stopwatch(job, clock).remaining_seconds)
        begun = clock()

        def furnish(directory: Path) -> None:
            # Whoever waits for a place does not run yet.
            nonlocal begun
            begun = clock()
            _furnish(self._directories.path(job.name), result, directory)

        found = await self._errands.run(
            b"",
            [OPTION],
            lambda directory: _verdict(directory, result),
            furnish=furnish,
            limit_seconds=limit_seconds,
        )
        seconds = clock() - begun
        if job.policy.max_run_duration is not None:
            ran = job.run_seconds + seconds
            job = await self._book.change(self._store.set_run_seconds, job.lease, ran)
        if isinstance(found, Verdict):
            said = _said(found, seconds)
            job = await self._book.change(
                self._store.record, job.lease, [LogLine(said)], journal_offset=job.journal_offset
            )
        elif found is None or (found.reason is Reason.TIMEOUT and not found.message):
            if is_bound and limit_seconds < self._errands.limit_seconds:
                raise OutOfTime(job.run_seconds)
            found = JobError(
                Reason.TIMEOUT,
                f"it had no result after {limit_seconds:g} s; ask for a smaller model, or have the "
                "trainer's --second-look-seconds raised",
            )
        return found, job


def _furnish(job_directory: Path, result: TrainingResult, directory: Path) -> None:
    """Puts the files to look at into a directory, without taking room for them."""
    for name in _FILES:
        try:
            file = open_job_file(job_directory, name)
        except (FileNotFoundError, NotAJobFileError):
            continue  # the one who looks misses it
        with file:
            try:
                # What was opened, whatever lies there by now.
                os.link(f"/proc/self/fd/{file.fileno()}", directory / name)
            except OSError:  # another file system, or one without links
                with (directory / name).open("xb") as copy:
                    shutil.copyfileobj(file, copy)
    write_result(result, directory)


def _verdict(directory: Path, result: TrainingResult) -> Verdict | None:
    try:
        verdict = load_verdict(directory)
    except VerdictError as error:
        raise DamagedResult(str(error)) from error
    if verdict is not None and (
        [(file.path, file.sha256) for file in verdict.files]
        != [(file.path, file.sha256) for file in result.files]
    ):
        raise DamagedResult("it is about other files")
    return verdict


def _said(verdict: Verdict, seconds: float) -> str:
    worst = ", ".join(
        f"{output.name} {output.max_absolute_difference:.1e}" for output in verdict.outputs
    )
    return cut(
        f"a second look at the files, by another process, found what the job says: {verdict.rows} "
        f"reference rows, largest difference: {worst}; {seconds:.1f} s"
    )
