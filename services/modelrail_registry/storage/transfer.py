"""Uploads and downloads on the event loop; the disk work runs in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from modelrail_registry.metrics import RegistryMetrics
from modelrail_registry.storage.blobs import BlobStatus, BlobStore
from modelrail_registry.storage.uploads import Upload
from modelrail_server.errors import Aborted, Unavailable

Result = TypeVar("Result")
Part = TypeVar("Part")


class Transfer:
    """Moves bytes between streams and the store.

    A stream has at most one piece of work in the executor, so its queue is bounded by the number of
    streams.

    Args:
        blobs: The store.
        executor: Threads for the disk.
        metrics: What is counted.
        upload_idle_seconds: How long an upload may go without sending its header, or the next chunk
            while it holds its digest.
        download_idle_seconds: How long a download may hold its file without taking a piece.
    """

    def __init__(
        self,
        blobs: BlobStore,
        *,
        executor: Executor,
        metrics: RegistryMetrics,
        upload_idle_seconds: float,
        download_idle_seconds: float,
    ) -> None:
        self._blobs = blobs
        self._executor = executor
        self._metrics = metrics
        self._upload_idle_seconds = upload_idle_seconds
        self._download_idle_seconds = download_idle_seconds

    async def status(self, sha256: str) -> BlobStatus:
        """Tells how much of a blob is stored; raises NotFound when nothing is."""
        return await self._run(lambda: self._blobs.status(sha256))

    async def first(self, parts: AsyncIterator[Part]) -> Part | None:
        """Returns the first message of an upload; None when it ends without one.

        Raises:
            Aborted: It did not come for too long.
        """
        try:
            async with asyncio.timeout(self._upload_idle_seconds):
                return await anext(parts, None)
        except TimeoutError:
            raise Aborted(
                f"no header came for {self._upload_idle_seconds:g} seconds; begin another stream "
                "with it",
                reason="UPLOAD_IDLE",
            ) from None

    async def receive(
        self, sha256: str, size: int, chunks: AsyncIterator[tuple[int, bytes]]
    ) -> BlobStatus:
        """Stores chunks as they come. When they stop early, the stored ones are kept.

        Raises:
            Aborted: No chunk came for too long; the stored ones are kept.
            ServiceError: As `BlobStore.begin`, `write` and `finish` say.
        """
        # Shielded: an upload that was opened for a call that is gone would hold its
        # digest for ever.
        opening = asyncio.ensure_future(self._run(lambda: self._blobs.begin(sha256, size)))
        try:
            upload = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_unwanted)
            raise
        if upload is None:
            return BlobStatus(sha256, size, size, complete=True)
        try:
            if upload.position < size:
                while (chunk := await self._next(chunks, sha256)) is not None:
                    offset, data = chunk
                    await self._run(partial(self._blobs.write, upload, offset, data))
                    self._metrics.blob_received.inc(len(data))
            return await self._run(lambda: self._blobs.finish(upload))
        finally:
            await asyncio.shield(self._run(upload.close))

    async def send(
        self, sha256: str, offset: int, write: Callable[[int, bytes], Awaitable[None]]
    ) -> None:
        """Writes the pieces of a complete blob from an offset; its file is closed in any case.

        Args:
            sha256: Digest of the blob.
            offset: Where to begin, in bytes.
            write: Takes a piece and its position, and waits while the reader is behind.

        Raises:
            Unavailable: The reader took nothing for too long.
            ServiceError: As `BlobStore.read` says.
        """
        async with aclosing(self._pieces(sha256, offset)) as pieces:
            async for position, data in pieces:
                try:
                    async with asyncio.timeout(self._download_idle_seconds):
                        await write(position, data)
                except TimeoutError:
                    raise Unavailable(
                        f"nothing of blobs/{sha256} was read for {self._download_idle_seconds:g} "
                        "seconds; go on behind what has come",
                        reason="DOWNLOAD_IDLE",
                        resource=f"blobs/{sha256}",
                    ) from None

    async def _pieces(self, sha256: str, offset: int) -> AsyncGenerator[tuple[int, bytes], None]:
        pieces = self._blobs.read(sha256, offset)
        reading: asyncio.Future[tuple[int, bytes] | None] | None = None
        try:
            while True:
                reading = asyncio.ensure_future(self._run(lambda: next(pieces, None)))
                piece = await asyncio.shield(reading)
                if piece is None:
                    break
                yield piece
                self._metrics.blob_sent.inc(len(piece[1]))
        finally:
            # A read of a call that is gone still runs in its thread; its file is closed after it.
            if reading is not None:
                await asyncio.wait([reading])
            await self._run(pieces.close)

    async def sweep(self, expiry_seconds: float) -> None:
        """Removes unfinished uploads that nobody goes on with."""
        removed = await self._run(lambda: self._blobs.sweep(expiry_seconds))
        self._metrics.uploads_expired.inc(removed)

    async def _next(
        self, chunks: AsyncIterator[tuple[int, bytes]], sha256: str
    ) -> tuple[int, bytes] | None:
        try:
            async with asyncio.timeout(self._upload_idle_seconds):
                return await anext(chunks, None)
        except TimeoutError:
            raise Aborted(
                f"no chunk of blobs/{sha256} came for {self._upload_idle_seconds:g} seconds, and "
                "others may wait for it; read it again, then go on",
                reason="UPLOAD_IDLE",
                resource=f"blobs/{sha256}",
            ) from None

    async def _run(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def _close_unwanted(self, opening: asyncio.Future[Upload | None]) -> None:
        upload = None if opening.cancelled() or opening.exception() else opening.result()
        if upload is not None:
            self._executor.submit(upload.close)
