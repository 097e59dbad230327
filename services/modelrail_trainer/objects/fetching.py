"""Brings the objects of a specification to the job that learns from them.

A job's process has neither the network nor credentials. So the service copies the objects into the
job's directory before the process starts: while nothing of the job runs, nobody can put a link in
the way. Each attempt gets new copies; that their content is the one of the attempt before is for
the digest in its checkpoints to say.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from modelrail_trainer.data_roots import DataPathError
from modelrail_trainer.failure.full_disk import is_full_disk
from modelrail_trainer.jobs.job import JobError
from modelrail_trainer.jobs.state import Reason
from modelrail_trainer.objects.crew import share
from modelrail_trainer.objects.image_folder import FolderContent, content_of, first_difference
from modelrail_trainer.objects.named import NamedObjects
from modelrail_trainer.objects.roots import ObjectRoots
from modelrail_trainer.objects.uri import copy_path
from modelrail_trainer.objects.version import ObjectError, ObjectVersion, Unreachable
from modelrail_trainer.spec import ImageFolder
from modelrail_trainer.threads import Threads

if TYPE_CHECKING:  # the library behind it is imported only where objects are read
    from modelrail_trainer.objects.store import ObjectReader

# What a job writes beside its data.
_ROOM_BYTES = 64 << 20
# What the smallest file takes of a disk.
_BLOCK_BYTES = 4096
# An object that takes a moment is waited for, and one that takes memory is held: the first so many
# at once, the others so few.
_SMALL_BYTES = 1 << 20
_SMALL_AT_ONCE = 32
_LARGE_AT_ONCE = 4


class FetchFailed(Exception):
    """The objects of a job are not there; `error` says why."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was copied.

    Attributes:
        objects: How many.
        size_bytes: Of all together.
        others: Objects below folders that are not looked at, and so were not copied.
    """

    objects: int = 0
    size_bytes: int = 0
    others: int = 0


@dataclass(frozen=True, slots=True)
class _Copy:
    """An object, the field that named it, and where it goes: a name below a place."""

    field: str
    version: ObjectVersion
    place: Path
    name: str


class ObjectFetcher:
    """Copies objects beside jobs.

    Args:
        objects_of: Returns the objects that a specification in its encoding names.
        roots: What may be read.
        threads: For disk work.
        max_objects: How many objects one job may name, or have below the folders that it names.
        max_bytes: What the copies of one job may take.
        count: Told of bytes that were copied.
    """

    def __init__(
        self,
        objects_of: Callable[[bytes], NamedObjects],
        roots: ObjectRoots,
        threads: Threads,
        *,
        max_objects: int,
        max_bytes: int,
        count: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.objects_of = objects_of
        self._roots = roots
        self._threads = threads
        self._max_objects = max_objects
        self._max_bytes = max_bytes
        self._count = count

    async def fetch(self, named: NamedObjects, directory: Path) -> Fetched:
        """Copies objects into the directory of a job, and returns how many those were.

        Args:
            named: What is wanted.
            directory: The job's own, with nothing in it that the job left.

        Raises:
            FetchFailed: One cannot be had, or there is no room for them.
        """
        # What may be read can have changed since the job was made.
        for field, uri in named.files.items():
            _check(field, uri, self._roots.check)
        for field, folder in named.folders.items():
            _check(field, folder.path, self._roots.check_folder)
        if not named.any:
            return Fetched()
        # The library takes a tenth of a second to import, and need not be there where no objects
        # are read.
        from modelrail_trainer.objects.store import ObjectReader

        reader = ObjectReader(asyncio.sleep)
        try:
            return await self._fetch(reader, named, directory)
        except OSError as error:
            if not is_full_disk(error):
                raise
            raise FetchFailed(_full("it filled up")) from None

    async def _fetch(self, reader: ObjectReader, named: NamedObjects, directory: Path) -> Fetched:
        if len(named.files) > self._max_objects:
            raise FetchFailed(
                JobError(
                    Reason.DATA,
                    f"the job names {len(named.files)} objects, and may read {self._max_objects}; "
                    "name fewer, or have the trainer's --max-objects raised",
                )
            )
        copies = await self._look(reader, named.files, directory)
        contents: dict[str, FolderContent] = {}
        listed = len(named.files)
        for field, folder in named.folders.items():
            found = await self._look_below(reader, field, folder, listed)
            listed += len(found)
            contents[field] = await self._content(field, folder, found)
            place = copy_path(directory, folder.path)
            copies += [
                _Copy(field, version, place, path)
                for path, version in contents[field].images.items()
            ]
        size_bytes = await self._check_room(copies, directory)
        for field, content in contents.items():
            place = copy_path(directory, named.folders[field].path)
            await self._threads.finish(partial(_make_folders, place, content.folders))
        await self._copy_all(reader, copies)
        for field, content in contents.items():
            await self._check_unchanged(reader, field, named.folders[field], content)
        others = sum(content.others for content in contents.values())
        return Fetched(len(copies), size_bytes, others)

    async def _look(
        self, reader: ObjectReader, files: Mapping[str, str], directory: Path
    ) -> list[_Copy]:
        """Returns the copies of single objects, each once, in the order of their fields."""
        fields = {uri: field for field, uri in reversed(list(files.items()))}
        found: dict[str, ObjectVersion] = {}

        async def look(uri: str) -> None:
            with _told(fields[uri], uri):
                found[uri] = await reader.look(uri)

        await share(look, fields, tasks=_SMALL_AT_ONCE)
        paths = {uri: copy_path(directory, uri) for uri in fields}
        return [
            _Copy(field, found[uri], paths[uri].parent, paths[uri].name)
            for uri, field in fields.items()
        ]

    async def _look_below(
        self, reader: ObjectReader, field: str, folder: ImageFolder, besides: int = 0
    ) -> dict[str, ObjectVersion]:
        """Returns the objects below a folder, where so many are read besides."""
        with _told(field, folder.path):
            found = await reader.look_below(folder.path, most=self._max_objects - besides)
            if len(found) + besides > self._max_objects:
                raise ObjectError(
                    f"more than {self._max_objects} objects are to be read with those below it, "
                    "and a job may read no more; name a folder with fewer, or have the trainer's "
                    "--max-objects raised"
                )
        return found

    async def _content(
        self, field: str, folder: ImageFolder, found: Mapping[str, ObjectVersion]
    ) -> FolderContent:
        with _told(field, folder.path):
            # Of many names it takes a while, in which the service has other things to do.
            return await self._threads.run(content_of, folder, found)

    async def _check_room(self, copies: Sequence[_Copy], directory: Path) -> int:
        """Returns how many bytes the copies have, when there is room for them."""
        size_bytes = sum(copy.version.size_bytes for copy in copies)
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
        taken = sum(-(-copy.version.size_bytes // _BLOCK_BYTES) for copy in copies) * _BLOCK_BYTES
        if taken + _ROOM_BYTES > free:
            raise FetchFailed(_full(f"the objects take {taken} bytes, and {free} are free"))
        return size_bytes

    async def _copy_all(self, reader: ObjectReader, copies: Sequence[_Copy]) -> None:
        async def copy(one: _Copy) -> None:
            with _told(one.field, one.version.uri):
                await self._copy(reader, one)

        small = [one for one in copies if one.version.size_bytes <= _SMALL_BYTES]
        large = [one for one in copies if one.version.size_bytes > _SMALL_BYTES]
        await share(copy, small, tasks=_SMALL_AT_ONCE)
        await share(copy, large, tasks=_LARGE_AT_ONCE)

    async def _copy(self, reader: ObjectReader, copy: _Copy) -> None:
        mode = "xb"
        async for part in reader.parts(copy.version):
            await self._threads.finish(partial(_write, copy, part, mode))
            self._count(len(part))
            mode = "ab"
        if not copy.version.size_bytes:
            await self._threads.finish(partial(_write, copy, b"", mode))

    async def _check_unchanged(
        self, reader: ObjectReader, field: str, folder: ImageFolder, before: FolderContent
    ) -> None:
        """Says whether a folder still has the images that were copied.

        Each copy is of one version, and so it was there between the two looks: together they are
        what the folder held at one time, as long as nothing came or went between.
        """
        listed = await self._look_below(reader, field, folder)
        now = await self._content(field, folder, listed)
        path = await self._threads.run(first_difference, before, now)
        if path is not None:
            with _told(field, f"{folder.path.rstrip('/')}/{path}"):
                raise ObjectError(
                    "it came, went or was replaced while the folder was copied; clone the job "
                    "when nobody writes there any more"
                )


@contextmanager
def _told(field: str, uri: str) -> Iterator[None]:
    """Turns what is wrong with an object into the failure of the job, by its field and URI."""
    try:
        yield
    except ObjectError as error:
        reason = Reason.DATA_UNAVAILABLE if isinstance(error, Unreachable) else Reason.DATA
        raise FetchFailed(JobError(reason, f"{field}: {uri[:500]}: {error}")) from None


def _check(field: str, uri: str, check: Callable[[str], None]) -> None:
    try:
        check(uri)
    except DataPathError as error:
        raise FetchFailed(JobError(Reason.DATA, f"{field}: {error}")) from None


def _make_folders(place: Path, folders: Sequence[str]) -> None:
    place.mkdir(mode=0o700, parents=True)
    for folder in folders:
        (place / folder).mkdir(mode=0o700)


def _write(copy: _Copy, part: bytes, mode: str) -> None:
    path = copy.place / copy.name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.write(part)


def _full(why: str) -> JobError:
    return JobError(
        Reason.DISK_FULL,
        f"the trainer's disk has no room for the objects of the job: {why}; have room made there, "
        "then clone the job",
    )
