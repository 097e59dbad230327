"""Takes a finished job's result to the registry: files by digest, then the version, then the alias.

Before any of it another process looks at the files (`second_look.py`), once in a life of the
trainer: nothing is published on the word of the job alone.

Every step can be repeated without doing anything twice. Files go by digest, version and alias carry
request ids that follow from the job. So it does not matter where the trainer or the registry was
interrupted. The registry forgets request ids after some days, so a job that may have asked for its
version before looks for that version first.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from io import BufferedReader

import structlog

from modelrail.client.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    ModelrailError,
    NotFound,
    OutOfRange,
    Unimplemented,
)
from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_trainer.execution.errands.second_look import OutOfTime
from modelrail_trainer.execution.patience import DATABASE_ERRORS, Backoff
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.publication.registry import VersionRegistry
from modelrail_trainer.handover.artifact import (
    ArtifactError,
    TrainingResult,
    load_result,
    open_result_file,
    verify_files,
)
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError
from modelrail_trainer.jobs.lease import Lease, StaleLease
from modelrail_trainer.jobs.state import IllegalTransition, JobState, Reason
from modelrail_trainer.metrics import TrainerMetrics
from modelrail_trainer.threads import Threads
from modelrail_trainer.waiting import wait_first

_log = structlog.get_logger(__name__)

_FIRST_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
# Answers about the version itself. Any other error speaks of the registry or the way to it, which
# can be repaired: no trained model is thrown away because a key expired or a disk was full.
_REFUSALS = (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unimplemented,
)
_STORAGE_FAILED = JobError(
    Reason.INTERNAL, "the trainer's storage cannot be used now; trying again"
)


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of a job after its publication."""

    state: JobState
    error: JobError | None = None


class _NothingToPublishError(Exception):
    """The job's directory has no result, or one that is not published."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(str(ending))
        self.ending = ending


class Publisher:
    """Publishes results.

    Args:
        registry: The registry, reachable or not.
        book: The jobs.
        directories: Where the results are.
        look_again: Returns a result as it can be published, or what is wrong with it; see
            `SecondLooks.look`.
        threads: For reading and hashing files.
        metrics: Counts repeated attempts.
        concurrency: Publications that talk to the registry at a time.
    """

    def __init__(
        self,
        *,
        registry: VersionRegistry,
        book: JobBook,
        directories: JobDirectories,
        look_again: Callable[[Job, TrainingResult], Awaitable[TrainingResult | JobError]],
        threads: Threads,
        metrics: TrainerMetrics,
        concurrency: int = 4,
    ) -> None:
        self._registry = registry
        self._book = book
        self._store = book.store
        self._directories = directories
        self._look_again = look_again
        self._seen: dict[Lease, TrainingResult] = {}
        self._threads = threads
        self._metrics = metrics
        self._slots = asyncio.Semaphore(concurrency)

    async def publish(
        self, lease: Lease, *, cancelled: asyncio.Event, stopping: asyncio.Event
    ) -> Ending | None:
        """Publishes the result of a REGISTERING job, however long the registry cannot be reached.

        Args:
            lease: The job, held by this trainer.
            cancelled: Set when the job became CANCELLING.
            stopping: Set when the service stops; the next start goes on.

        Returns:
            How the job ends; None when the service stops before that is known. LOST when there is
            nothing to publish: the result stayed with a trainer that held the job before.

        Raises:
            StaleLease: The job is another trainer's to publish.
        """
        try:
            return await self._publish(lease, cancelled, stopping)
        finally:
            self._seen.pop(lease, None)

    async def _publish(
        self, lease: Lease, cancelled: asyncio.Event, stopping: asyncio.Event
    ) -> Ending | None:
        name = lease.name
        backoff = Backoff(_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        while not stopping.is_set():
            try:
                if cancelled.is_set():
                    job = await self._book.read(self._store.get, name)
                    return Ending(JobState.CANCELLED, job.error)
                attempt = asyncio.create_task(self._attempt(lease))
                ending = await _unless(attempt, cancelled, stopping)
            except (OSError, *DATABASE_ERRORS) as error:
                _log.warning("storage not usable", job=str(name), error=str(error))
                await self._note(lease, _STORAGE_FAILED)
            except ModelrailError as error:
                _log.warning("registry not usable", job=str(name), error=error.message)
                # Without a reason it is the transport's text, which tells addresses.
                why = error.message if error.reason else "it cannot be reached"
                reason = JobError(
                    Reason.REGISTRY_UNAVAILABLE,
                    f"the registry cannot take the version now: {why}; trying again",
                )
                await self._note(lease, reason)
            else:
                if ending is not None:
                    return ending
                continue
            self._metrics.publish_retries.inc()
            await wait_first(cancelled, stopping, timeout_seconds=backoff.next_seconds())
        return None

    async def _close(self, content: BufferedReader) -> None:
        await self._threads.run(content.close)

    async def _note(self, lease: Lease, error: JobError) -> None:
        """Tells clients why the job waits, if the storage takes it."""
        try:
            await self._book.change(self._store.note, lease, error)
        except DATABASE_ERRORS as failure:
            _log.warning("reason not stored", job=str(lease.name), error=str(failure))

    async def _attempt(self, lease: Lease) -> Ending | None:
        """Tries once; raises `ModelrailError` when another try makes sense."""
        async with self._slots:
            job = await self._book.read(self._store.get, lease.name)
            if job.lease != lease:
                raise StaleLease(f"epoch {lease.epoch} of {lease.name} is over")
            if job.state is not JobState.REGISTERING:
                return Ending(JobState.CANCELLED, job.error)
            try:
                if not job.model_version:
                    job = await self._make_version(job)
            except _NothingToPublishError as error:
                return error.ending
            except IllegalTransition:
                return None  # A client cancelled it right now; the next look finds out.
            except ArtifactError as error:
                return Ending(JobState.FAILED, JobError(Reason.INTERNAL, str(error)))
            except _REFUSALS as error:
                reason = f"the registry refused the version: {error.message}"
                return Ending(JobState.FAILED, JobError(Reason.REGISTRY_REFUSED, reason))
            return await self._move_alias(job)

    async def _make_version(self, job: Job) -> Job:
        if job.committing:
            # The registry was asked before, and its answer was lost.
            version = await self._registry.version_of(job)
            if version is not None:
                return await self._adopt_version(job, version)
        # Before the registry is asked for anything: what cannot be published need not wait for it.
        result = await self._checked(job)
        # Asks something small, because an upload tries on for half a minute.
        await self._registry.probe(ModelName(job.publication.model))
        directory = self._directories.path(job.name)
        for file in result.files:
            # What is sent comes from the file that is opened here, whatever its name leads to then.
            with await self._threads.finish(
                partial(open_result_file, directory, file), dispose=self._close
            ) as content:
                await self._registry.upload(content, file)
        # From here on a trainer that takes the job over asks for the version before it makes one.
        await self._book.change(self._store.begin_commit, job.lease)
        try:
            version = await self._registry.create_version(result, job, _request_id(job, "version"))
        except AlreadyExists:
            # Another holder of the job was faster, with files of its own: they are the version.
            made = await self._registry.version_of(job)
            if made is None:
                raise
            return await self._adopt_version(job, made)
        return await self._book.change(self._store.set_version, job.lease, version)

    async def _checked(self, job: Job) -> TrainingResult:
        """Returns the job's result, after it was looked at once by this trainer."""
        if not await self._threads.run(self._directories.has_result, job.name):
            raise _NothingToPublishError(Ending(JobState.LOST))
        directory = self._directories.path(job.name)
        if (known := self._seen.get(job.lease)) is not None:
            await self._threads.run(verify_files, known, directory)
            return known
        result: TrainingResult = await self._threads.run(load_result, directory)
        await self._threads.run(verify_files, result, directory)
        try:
            seen = await self._look_again(job, result)
        except OutOfTime as error:
            ending = Ending(JobState.EXPIRED, _ran_too_long(job, error.seconds))
            raise _NothingToPublishError(ending) from error
        if isinstance(seen, JobError):
            raise _NothingToPublishError(Ending(JobState.FAILED, seen))
        self._seen[job.lease] = seen
        return seen

    async def _adopt_version(self, job: Job, version: str) -> Job:
        _log.info("version adopted", job=str(job.name), version=version)
        return await self._book.change(self._store.set_version, job.lease, version)

    async def _move_alias(self, job: Job) -> Ending:
        publication = job.publication
        if publication.alias:
            try:
                await self._registry.set_alias(
                    ModelAliasName(publication.model, publication.alias),
                    ModelVersionName.parse(job.model_version),
                    _request_id(job, "alias"),
                )
            except _REFUSALS as error:
                # The version stands, so the job has not failed.
                reason = f"the registry refused to move the alias: {error.message}"
                return Ending(JobState.SUCCEEDED, JobError(Reason.REGISTRY_REFUSED, reason))
        return Ending(JobState.SUCCEEDED)


def _ran_too_long(job: Job, seconds: float) -> JobError:
    limit = job.policy.max_run_duration
    allowed = 0.0 if limit is None else limit.total_seconds()
    return JobError(
        Reason.TIMEOUT,
        f"it ran for {seconds:.1f} s, the second look at its files included, without a version; "
        f"max_run_duration is {allowed:g} s",
    )


def _request_id(job: Job, step: str) -> str:
    """Returns the id that makes a step of this job happen once, in the form of a UUID4."""
    digest = hashlib.sha256(f"modelrail-trainer/{job.uid}/{step}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


async def _unless(
    attempt: asyncio.Task[Ending | None], *interruptions: asyncio.Event
) -> Ending | None:
    """Returns what the attempt returns, or None when an interruption comes first."""
    over = asyncio.Event()
    attempt.add_done_callback(lambda _: over.set())
    try:
        await wait_first(over, *interruptions)
        if attempt.done():
            return attempt.result()
    finally:
        attempt.cancel()
    await asyncio.wait([attempt])
    # It may have finished while it was being cancelled.
    return None if attempt.cancelled() else attempt.result()
