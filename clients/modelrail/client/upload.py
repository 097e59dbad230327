"""Sends one file to the registry, and goes on where a broken stream left off."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import grpc.aio

from modelrail.client.backoff import Backoff, is_transient
from modelrail.client.ended import errors_of
from modelrail.client.errors import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    ModelrailError,
    NotFound,
    OutOfRange,
    Unavailable,
    mapped_errors,
)
from modelrail.registry.v1 import registry_pb2 as pb
from modelrail.registry.v1.registry_pb2_grpc import RegistryServiceStub

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes in all."""

CHUNK_BYTES = 512 * 1024
# Slower than this, a stream is given up; what has arrived by then is kept, and the next stream goes
# on there.
_MINIMUM_BYTES_PER_SECOND = 64 * 1024
MAXIMUM_FRUITLESS_ATTEMPTS = 8


def no_progress(done: int, total: int) -> None:
    """Shows nothing."""


def transfer_timeout(timeout_seconds: float, size_bytes: int) -> float:
    """Returns the deadline of a transfer, in seconds: the usual one, and time for the bytes."""
    return timeout_seconds + size_bytes / _MINIMUM_BYTES_PER_SECOND


def digest_of(path: Path) -> tuple[str, int]:
    """Returns the SHA-256 of a file, in hexadecimal digits, and its size in bytes."""
    with path.open("rb") as file:
        return _digest_of(file)


def _digest_of(file: BufferedReader) -> tuple[str, int]:
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return sha256, os.fstat(file.fileno()).st_size


class Upload:
    """One file on its way to the registry.

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

    async def send(self, source: Path | BufferedReader) -> tuple[str, int]:
        """Uploads the file unless the registry has it; returns its SHA-256 and its size in bytes.

        Args:
            source: The file to read, or one of the disk that is open for it and stays open.

        Raises:
            OSError: The file cannot be read.
            DataLoss: The file changed while it was sent.
            ModelrailError: The registry refuses it, or cannot be reached for long.
        """
        if isinstance(source, Path):
            with await asyncio.to_thread(source.open, "rb") as file:
                return await self.send(file)
        sha256, size_bytes = await asyncio.to_thread(_digest_of, source)
        await self._send(source, f"blobs/{sha256}", size_bytes)
        return sha256, size_bytes

    async def _send(self, file: BinaryIO, name: str, size_bytes: int) -> None:
        backoff = Backoff()
        furthest = -1
        while True:
            try:
                blob = await self._stored(name)
                if blob.committed_size_bytes > furthest:
                    furthest = blob.committed_size_bytes
                    backoff.reset()
                self._on_progress(blob.committed_size_bytes, size_bytes)
                if not blob.complete:
                    blob = await self._stream(file, name, size_bytes, blob.committed_size_bytes)
                if blob.complete:
                    self._on_progress(size_bytes, size_bytes)
                    return
                failure: ModelrailError = Unavailable(
                    f"the registry has {blob.committed_size_bytes} of {size_bytes} bytes, and ended"
                    " the upload without an error",
                    reason="UPLOAD_INCOMPLETE",
                )
            except ModelrailError as error:
                # OUT_OF_RANGE and ABORTED: somebody else uploads the same bytes and is further by
                # now.
                resumable = isinstance(error, DeadlineExceeded | OutOfRange | Aborted)
                if not resumable and not is_transient(error):
                    raise
                failure = error
            if backoff.failures >= MAXIMUM_FRUITLESS_ATTEMPTS:
                raise failure
            await backoff.wait(failure)

    async def _stored(self, name: str) -> pb.Blob:
        try:
            with mapped_errors():
                return await self._stub.GetBlob(
                    pb.GetBlobRequest(name=name),
                    timeout=self._timeout_seconds,
                    metadata=self._metadata,
                )
        except NotFound:
            return pb.Blob(name=name)

    async def _stream(self, file: BinaryIO, name: str, size_bytes: int, offset: int) -> pb.Blob:
        call = self._stub.UploadBlob(
            timeout=transfer_timeout(self._timeout_seconds, size_bytes - offset),
            metadata=self._metadata,
        )
        header = pb.UploadBlobHeader(name=name, size_bytes=size_bytes)
        try:
            async with errors_of(call):
                try:
                    await call.write(pb.UploadBlobRequest(header=header))
                    while offset < size_bytes:
                        data = await asyncio.to_thread(os.pread, file.fileno(), CHUNK_BYTES, offset)
                        if not data:
                            raise DataLoss(
                                f"{file.name} became shorter while it was sent; push it again",
                                reason="FILE_CHANGED",
                            )
                        chunk = pb.BlobChunk(offset_bytes=offset, data=data)
                        await call.write(pb.UploadBlobRequest(chunk=chunk))
                        offset += len(data)
                        self._on_progress(offset, size_bytes)
                    await call.done_writing()
                except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    # The registry has answered before the end: the call holds the answer or the
                    # error.
                    pass
                return await call
        finally:
            call.cancel()
