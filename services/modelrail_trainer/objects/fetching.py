"""Brings the objects of a specification to the job that learns from them.

A job's process has neither the network nor credentials. So the service copies the objects into the
job's directory before the process starts: while nothing of the job runs, nobody can put a link in
the way. Each attempt gets new copies; that their content is the one of the attempt before is for
the digest in its checkpoints to say.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from modelrail_trainer.data_roots import DataPathError
from modelrail_trainer.jobs.job import JobError
from modelrail_trainer.jobs.state import Reason
from modelrail_trainer.objects.roots import ObjectRoots
from modelrail_trainer.objects.uri import copy_path, is_uri
from modelrail_trainer.threads import Threads

# What a job writes beside its data.
_ROOM_BYTES = 64 << 20


class FetchFailed(Exception):
    """The objects of a job are not there; `error` says why."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


class ObjectFetcher:
    """Copies objects beside jobs.

    Args:
        paths_of: Returns the files that a specification in its encoding names, by their field.
        roots: What may be read.
        threads: For disk work.
        max_bytes: What the copies of one job may take.
        count: Told of bytes that were copied.
    """

    def __init__(
        self,
        paths_of: Callable[[bytes], Mapping[str, str]],
        roots: ObjectRoots,
        threads: Threads,
        *,
        max_bytes: int,
        count: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._paths_of = paths_of
        self._roots = roots
        self._threads = threads
        self._max_bytes = max_bytes
        self._count = count

    def objects_of(self, specification: bytes) -> dict[str, str]:
        """Returns the URIs that a specification names, by their field."""
        return {
            field: path for field, path in self._paths_of(specification).items() if is_uri(path)
        }

    async def fetch(self, objects: Mapping[str, str], directory: Path) -> int:
        """Copies objects into the directory of a job, and returns how many bytes that were.

        Args:
            objects: URIs, by the field that names them.
            directory: The job's own, with nothing in it that the job left.

        Raises:
            FetchFailed: One cannot be had, or there is no room for them.
        """
        fields = {uri: field for field, uri in reversed(list(objects.items()))}
        for uri, field in fields.items():
            try:
                self._roots.check(uri)  # what may be read can have changed since the job was made
            except DataPathError as error:
                raise FetchFailed(JobError(Reason.DATA, f"{field}: {error}")) from None
        if not fields:
            return 0
        # The library takes a tenth of a second to import, and need not be there where no objects
        # are read.
        from modelrail_trainer.objects.store import ObjectError, ObjectReader, Unreachable

        reader = ObjectReader(asyncio.sleep)
        uri = ""
        try:
            versions = []
            for uri in fields:
                versions.append(await reader.look(uri))  # noqa: PERF401  # an error is of this one
            await self._check_room(sum(version.size_bytes for version in versions), directory)
            for version in versions:
                uri = version.uri
                await self._copy(reader.parts(version), copy_path(directory, uri))
        except ObjectError as error:
            reason = Reason.DATA_UNAVAILABLE if isinstance(error, Unreachable) else Reason.DATA
            raise FetchFailed(JobError(reason, f"{fields[uri]}: {uri[:200]}: {error}")) from None
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise FetchFailed(_full("it filled up")) from None
        return sum(version.size_bytes for version in versions)

    async def _check_room(self, size_bytes: int, directory: Path) -> None:
        if size_bytes > self._max_bytes:
            raise FetchFailed(
                JobError(
                    Reason.DATA,
                    f"the objects of the job take {size_bytes} bytes, and it may have copies of "
                    f"{self._max_bytes}; name fewer, or have the trainer's --max-object-bytes "
                    "raised",
                )
            )
        free = (await self._threads.run(shutil.disk_usage, directory)).free
        if size_bytes + _ROOM_BYTES > free:
            raise FetchFailed(_full(f"the objects take {size_bytes} bytes, and {free} are free"))

    async def _copy(self, parts: AsyncIterator[bytes], path: Path) -> None:
        await self._threads.run(path.parent.mkdir, mode=0o700, parents=True)
        file = await self._threads.run(path.open, "xb")
        try:
            async for part in parts:
                await self._threads.run(file.write, part)
                self._count(len(part))
        finally:
            await self._threads.run(file.close)


def _full(why: str) -> JobError:
    return JobError(
        Reason.DISK_FULL,
        f"the trainer's disk has no room for the objects of the job: {why}; have room made there, "
        "then clone the job",
    )
