"""What clients can do with training jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import MappingProxyType

from modelrail.names import TrainingJobName
from modelrail_server.errors import FieldViolation, InvalidArgument
from modelrail_trainer.code_roots import CodeRoots, EntryPointError
from modelrail_trainer.data_roots import DataPathError, DataRoots
from modelrail_trainer.execution.errands.dry_run import DryRuns
from modelrail_trainer.execution.errands.inspections import Inspections
from modelrail_trainer.execution.retention import Retention
from modelrail_trainer.execution.supervisor import Supervisor
from modelrail_trainer.handover.inspection import Inspection
from modelrail_trainer.jobs.book import JobBook
from modelrail_trainer.jobs.job import Job, JobError, JobEvent, JobPage, NewJob
from modelrail_trainer.jobs.state import Reason
from modelrail_trainer.objects.roots import ObjectRoots
from modelrail_trainer.objects.uri import is_uri
from modelrail_trainer.waiting import to_the_end

_CANCELLED = JobError(Reason.CANCELLED_BY_USER, "a client cancelled the job")


class Trainer:
    """Creates, shows, cancels, pauses, follows and deletes jobs.

    Args:
        book: The jobs.
        supervisor: Carries them out.
        retention: Removes what is left of deleted ones.
        dry_runs: Try a specification before its job is queued.
        inspections: Look into tables.
        data_roots: Where their files may lie.
        code_roots: Where functions may lie that they call.
        stopping: Set when the service stops and streams shall end.
    """

    def __init__(
        self,
        book: JobBook,
        supervisor: Supervisor,
        *,
        retention: Retention,
        dry_runs: DryRuns,
        inspections: Inspections,
        data_roots: DataRoots,
        object_roots: ObjectRoots,
        code_roots: CodeRoots,
        stopping: asyncio.Event,
    ) -> None:
        self._book = book
        self._store = book.store
        self._supervisor = supervisor
        self._retention = retention
        self._dry_runs = dry_runs
        self._inspections = inspections
        self._data_roots = data_roots
        self._object_roots = object_roots
        self._code_roots = code_roots
        self._stopping = stopping

    async def create(
        self, new: NewJob, request_id: str, actor: str, *, dry_run: bool = False
    ) -> Job:
        """Queues a job for the client `actor`; a repeated request id returns the first call's job.

        Args:
            new: The job.
            request_id: The client's id of this wish; empty for none.
            actor: Who asks.
            dry_run: Whether a dry run must pass before the job is queued.

        Raises:
            AlreadyExists: The request id made another job.
            FailedPrecondition: The dry run failed.
            InvalidArgument: A file or folder of the data set is not below a data root, or a
                function that the job names is in no folder of user code.
            ResourceExhausted: Too many jobs wait, or too many dry runs.
        """
        # A repeated call gets its job, whatever has become of the files meanwhile.
        known = await self._book.read(self._store.known, new, request_id=request_id)
        if known is not None:
            return known
        await self.check(new, dry_run=dry_run)
        return await _then(
            self._book.read(self._store.create, new, request_id=request_id, actor=actor),
            lambda _: self._supervisor.queue_changed(),
        )

    async def check(self, new: NewJob, *, dry_run: bool = False) -> None:
        """Returns when a job could be queued, and queues nothing.

        Raises:
            FailedPrecondition: The dry run failed.
            InvalidArgument: A file or folder of the data set is not below a data root, or a
                function that the job names is in no folder of user code.
            ResourceExhausted: Too many dry runs wait.
        """
        await self._book.read(
            self._check_names,
            files=new.data_paths,
            folders=new.data_folders,
            entry_points=new.entry_points,
        )
        if dry_run:
            await self._dry_runs.run(new.specification, new.policy.processes)

    async def inspect(
        self, specification: bytes, data_paths: Mapping[str, str], rows: int
    ) -> Inspection:
        """Returns what a table holds, and makes no job.

        Args:
            specification: One with nothing but the data set and the split.
            data_paths: Its files, by the field of the request that names them.
            rows: Rows to show.

        Raises:
            FailedPrecondition: The files cannot be read, or hold no table.
            InvalidArgument: A file is not below a data root.
            ResourceExhausted: Too many inspections wait.
        """
        await self._book.read(self._check_names, files=data_paths)
        return await self._inspections.run(specification, len(data_paths), rows)

    def _find_file(self, path: str) -> None:
        if is_uri(path):
            self._object_roots.check(path)
        else:
            self._data_roots.resolve(path)

    def _find_folder(self, path: str) -> None:
        if is_uri(path):
            self._object_roots.check_folder(path)
        else:
            self._data_roots.resolve_folder(path)

    def _check_names(
        self,
        *,
        files: Mapping[str, str],
        folders: Mapping[str, str] = MappingProxyType({}),
        entry_points: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        violations = []
        looks: tuple[tuple[Callable[[str], object], Mapping[str, str]], ...] = (
            (self._find_file, files),
            (self._find_folder, folders),
            (self._code_roots.find, entry_points),
        )
        for look, names in looks:
            for field, name in names.items():
                try:
                    look(name)
                except (DataPathError, EntryPointError) as error:
                    violations.append(FieldViolation(field, str(error)))
        if violations:
            raise InvalidArgument(
                "; ".join(f"{one.field}: {one.description}" for one in violations[:10]),
                violations=violations[:100],
            )

    async def get(self, name: TrainingJobName) -> Job:
        """Returns one job.

        Raises:
            NotFound: There is none of that name.
        """
        return await self._book.read(self._store.get, name)

    async def page(self, size: int, before_number: int | None) -> JobPage:
        """Returns a page of jobs, newest first."""
        return await self._book.read(self._store.page, size=size, before_number=before_number)

    async def cancel(self, name: TrainingJobName, actor: str) -> Job:
        """Stops a job for the client `actor`.

        Raises:
            NotFound: There is none of that name.
            FailedPrecondition: It has ended, or is being published.
        """
        return await _then(
            self._book.change(self._store.cancel, name, _CANCELLED, actor=actor),
            self._supervisor.changed,
        )

    async def pause(self, name: TrainingJobName, actor: str) -> Job:
        """Takes a job out of the queue, or stops its process, for the client `actor`.

        Raises:
            NotFound: There is none of that name.
            FailedPrecondition: It has ended, is being cancelled or is being published.
        """
        return await _then(
            self._book.change(self._store.pause, name, actor=actor),
            self._supervisor.changed,
        )

    async def resume(self, name: TrainingJobName, processes: int, actor: str) -> Job:
        """Queues a paused job again for the client `actor`.

        Args:
            name: The job.
            processes: How many train together from now on; 0: as many as before.
            actor: Who asks.

        Raises:
            NotFound: There is none of that name.
            FailedPrecondition: It has ended, or its process is being stopped.
            ResourceExhausted: Too many jobs wait.
        """
        return await _then(
            self._book.change(self._store.resume, name, processes=processes, actor=actor),
            self._supervisor.changed,
        )

    async def clone(self, name: TrainingJobName, request_id: str, actor: str) -> Job:
        """Queues a new job like another for the client `actor`.

        Raises:
            NotFound: There is none of that name.
            AlreadyExists: The request id made another job.
            ResourceExhausted: Too many jobs wait.
        """
        return await _then(
            self._book.read(self._store.clone, name, request_id=request_id, actor=actor),
            lambda _: self._supervisor.queue_changed(),
        )

    async def delete(self, name: TrainingJobName, actor: str) -> None:
        """Deletes a job that has ended for the client `actor`; its version stays.

        Raises:
            NotFound: There is none of that name.
            FailedPrecondition: It has not ended.
        """
        await _then(
            self._book.change(self._store.delete, name),
            lambda job: self._retention.deleted(job.name, actor),
        )

    def watch(self, name: TrainingJobName, after_sequence: int) -> AsyncGenerator[JobEvent, None]:
        """Yields the job's events after a position, up to its last or until the service stops.

        Raises:
            NotFound: There is none of that name.
            OutOfRange: The job has no event of that number.
        """
        return self._book.watch(name, after_sequence, self._stopping)


async def _then(stored: Awaitable[Job], act: Callable[[Job], None]) -> Job:
    """Acts on what is stored, although the caller leaves meanwhile."""

    async def work() -> Job:
        job = await stored
        act(job)
        return job

    return await to_the_end(work())
