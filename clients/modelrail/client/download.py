"""Receives one file from the registry: verified while it is written, and whole or absent."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import io
import os
from pathlib import Path, PurePosixPath

from modelrail.client.backoff import Backoff, is_transient
from modelrail.client.errors import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    ModelrailError,
    mapped_errors,
)
from modelrail.client.upload import (
    MAXIMUM_FRUITLESS_ATTEMPTS,
    Progress,
    digest_of,
    no_progress,
    transfer_timeout,
)
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.registry.v1.registry_pb2_grpc import RegistryServiceStub

_PARTIAL_SUFFIX = ".part"


def target_path(directory: Path, file_path: str) -> Path:
    """Returns where a version's file goes: inside of `directory`, whatever the registry says.

    Raises:
        DataLoss: The path is absolute, empty, or leads out of the directory, by `..` or by a link.
    """
    parts = PurePosixPath(file_path).parts
    is_plain = file_path and "\\" not in file_path and "\0" not in file_path
    if not is_plain or file_path.startswith("/") or ".." in parts or not parts:
        raise _unsafe(file_path)
    root = directory.resolve()
    target = root.joinpath(*parts)
    if not target.resolve().is_relative_to(root):
        raise _unsafe(file_path)
    return target


def _unsafe(file_path: str) -> DataLoss:
    return DataLoss(
        f"file path {file_path!r} leads out of the version's directory", reason="UNSAFE_PATH"
    )


class Download:
    """One file on its way from the registry.

    Args:
        stub: The registry.
        call_metadata: What every call carries.
        timeout_seconds: Deadline of short calls; transfers get more, by their size.
        on_progress: Called after every chunk.
    """

    def __init__(
        self,
        stub: RegistryServiceStub,
        *,
        call_metadata: tuple[tuple[str, str], ...],
        timeout_seconds: float,
        on_progress: Progress | None,
    ) -> None:
        self._stub = stub
        self._metadata = call_metadata
        self._timeout_seconds = timeout_seconds
        self._on_progress = on_progress or no_progress

    async def receive(self, file: pb.File, directory: Path) -> Path:
        """Writes the file below `directory`, unless it is there already, and returns its path.

        Bytes go to a `.part` file beside the target, which a later call resumes, and only the whole
        and verified file gets the name.

        Raises:
            DataLoss: The bytes are not those that the version names; the `.part` file is removed.
            Aborted: Another process receives the same file into the same directory.
            OSError: The disk is full or the directory cannot be written.
            ModelrailError: The registry refuses, or cannot be reached for long.
        """
        target = await asyncio.to_thread(target_path, directory, file.path)
        if await asyncio.to_thread(_is_whole, target, file):
            self._on_progress(file.size_bytes, file.size_bytes)
            return target
        partial = target.with_name(target.name + _PARTIAL_SUFFIX)
        output = await asyncio.to_thread(_open_partial, partial)
        try:
            digest = await asyncio.to_thread(_resume, output, file.size_bytes)
            await self._fill(output, file, digest)
            if digest.hexdigest() != file.sha256:
                await asyncio.to_thread(partial.unlink, missing_ok=True)
                raise DataLoss(
                    f"{file.path}: expected sha256 {file.sha256}, got {digest.hexdigest()}",
                    reason="DIGEST_MISMATCH",
                    resource=f"blobs/{file.sha256}",
                )
            await asyncio.to_thread(_publish, output, partial, target)
        finally:
            output.close()
        return target

    async def _fill(self, output: io.FileIO, file: pb.File, digest: hashlib._Hash) -> None:
        backoff = Backoff()
        while output.tell() < file.size_bytes:
            before = output.tell()
            self._on_progress(before, file.size_bytes)
            failure: ModelrailError | None = None
            try:
                await self._stream(output, file, digest)
            except ModelrailError as error:
                if not isinstance(error, DeadlineExceeded) and not is_transient(error):
                    raise
                failure = error
            if output.tell() >= file.size_bytes:
                break
            if output.tell() > before:
                backoff.reset()
            elif backoff.failures >= MAXIMUM_FRUITLESS_ATTEMPTS:
                raise failure or DataLoss(f"{file.path}: the registry sends no more bytes")
            await backoff.wait(failure)
        self._on_progress(file.size_bytes, file.size_bytes)

    async def _stream(self, output: io.FileIO, file: pb.File, digest: hashlib._Hash) -> None:
        offset = output.tell()
        call = self._stub.DownloadBlob(
            pb.DownloadBlobRequest(name=f"blobs/{file.sha256}", offset_bytes=offset),
            timeout=transfer_timeout(self._timeout_seconds, file.size_bytes - offset),
            metadata=self._metadata,
        )
        try:
            with mapped_errors():
                async for response in call:
                    chunk = response.chunk
                    end = chunk.offset_bytes + len(chunk.data)
                    if chunk.offset_bytes != offset or end > file.size_bytes:
                        raise DataLoss(
                            f"{file.path}: expected bytes from {offset} to at most"
                            f" {file.size_bytes}, got {chunk.offset_bytes} to {end}",
                            reason="WRONG_OFFSET",
                        )
                    await asyncio.to_thread(_write, output, chunk.data)
                    digest.update(chunk.data)
                    offset = end
                    self._on_progress(offset, file.size_bytes)
        finally:
            call.cancel()


def _is_whole(target: Path, file: pb.File) -> bool:
    if not target.is_file() or target.stat().st_size != file.size_bytes:
        return False
    return digest_of(target)[0] == file.sha256


def _open_partial(partial: Path) -> io.FileIO:
    partial.parent.mkdir(parents=True, exist_ok=True)
    # The directory is the caller's own, but a link planted in it must not make us write elsewhere.
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    output = io.FileIO(descriptor, "r+b")
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        output.close()
        raise Aborted(
            f"{partial.name}: another process is receiving this file", reason="DOWNLOAD_IN_PROGRESS"
        ) from None
    return output


def _resume(output: io.FileIO, size_bytes: int) -> hashlib._Hash:
    """Hashes what an earlier call received and leaves the position at its end."""
    if os.fstat(output.fileno()).st_size > size_bytes:
        output.truncate(0)
    digest = hashlib.file_digest(output, "sha256")
    output.seek(0, os.SEEK_END)
    return digest


def _write(output: io.FileIO, data: bytes) -> None:
    # An unbuffered write may take only a part, on a disk that fills up for one.
    rest = memoryview(data)
    while rest:
        rest = rest[output.write(rest) :]


def _publish(output: io.FileIO, partial: Path, target: Path) -> None:
    """Gives the whole file its name, in a way that survives a power cut."""
    os.fsync(output.fileno())
    partial.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
