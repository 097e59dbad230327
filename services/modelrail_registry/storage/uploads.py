"""One upload in progress: a partial file, the digest so far, and who may write."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelrail_server.errors import Aborted, InvalidArgument, OutOfRange, ServiceError

CHUNK_BYTES = 1 << 20
# So that a power cut costs a bounded part of a long upload.
_SYNC_BYTES = 64 << 20


class Upload:
    """Writes one partial file.

    A cancelled RPC leaves its last write running in a thread. Every method takes the lock, and
    `close` gives the digest free only when it holds it, so that write has ended before another
    stream can begin.

    Args:
        path: The partial file.
        sha256: Digest that the whole must have.
        size: Full size in bytes.
        release: Called once, when another stream may begin.
    """

    def __init__(self, path: Path, *, sha256: str, size: int, release: Callable[[], None]) -> None:
        self.sha256 = sha256
        self.size = size
        self.durable = 0
        """Bytes that an fsync covered."""
        self._path = path
        self._release = release
        self._lock = threading.Lock()
        self._descriptor = -1
        self._position = 0
        self._resumed_at = 0
        self._digest = hashlib.sha256()
        self._closed = False
        self._poisoned = False

    @property
    def position(self) -> int:
        """Where the next byte belongs."""
        return self._position

    def open(self) -> None:
        """Opens the partial file and takes in the digest of what it holds already."""
        with self._lock:
            self._descriptor = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640
            )
            while data := os.pread(self._descriptor, CHUNK_BYTES, self._position):
                self._digest.update(data)
                self._position += len(data)
            self._resumed_at = self.durable = self._position

    def write(self, offset: int, data: bytes) -> None:
        """Appends a chunk; a chunk that does not fit on the disk leaves no trace."""
        with self._lock:
            self._check_open()
            self._check_chunk(offset, data)
            view = memoryview(data)
            try:
                written = 0
                while written < len(view):
                    written += os.pwrite(self._descriptor, view[written:], self._position + written)
            except OSError:
                self._take_back()
                raise
            self._digest.update(data)
            self._position += len(data)
            if self._position - self.durable >= _SYNC_BYTES:
                self.sync()

    def sync(self) -> None:
        """Makes the bytes durable. A failure is final: `close` removes the bytes.

        After a failed fsync the kernel may drop the pages, and answer the next fsync with success.
        """
        try:
            os.fsync(self._descriptor)
        except OSError:
            self._poison()
            raise
        self.durable = self._position

    @contextmanager
    def finishing(self) -> Iterator[bool]:
        """Holds the lock for the end; tells whether every byte is there and the digest right.

        Raises:
            InvalidArgument: Every byte is there, and the digest is another one. The bytes are
                removed.
            Aborted: The same, of an upload that went on after an interruption: a second try from
                the start tells whether the client or the interruption is to blame.
        """
        with self._lock:
            self._check_open()
            complete = self._position == self.size
            if complete and self._digest.hexdigest() != self.sha256:
                self.discard()
                raise self._mismatch(self._digest.hexdigest())
            yield complete

    def move(self, final: Path) -> None:
        """Gives the complete file its final name."""
        os.fchmod(self._descriptor, 0o440)
        self._path.rename(final)

    def discard(self) -> None:
        """Removes the partial file."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the upload: what arrived is kept and durable, and another stream may begin.

        Nothing is kept of an upload whose bytes could not be made durable, or that had none.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._descriptor >= 0:
                    self._end()
            finally:
                self._release()

    def _end(self) -> None:
        # Nobody waits for these errors any more, and what they leave is found by its digest.
        with contextlib.suppress(OSError):
            if self._position != self.durable and not self._poisoned:
                self.sync()
        with contextlib.suppress(OSError):
            if self._poisoned or not self._position:
                self.discard()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _take_back(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._position)
        except OSError:
            # The file is longer than what was taken in, and its size is what the next one trusts.
            self._poison()

    def _poison(self) -> None:
        self._poisoned = True
        self.durable = 0

    def _check_open(self) -> None:
        if self._closed or self._poisoned:
            raise Aborted(f"the upload of blobs/{self.sha256} has ended", reason="UPLOAD_ENDED")

    def _check_chunk(self, offset: int, data: bytes) -> None:
        if offset != self._position:
            raise OutOfRange(
                f"chunk.offset_bytes: expected {self._position}, the end of the stored bytes, "
                f"got {offset}",
                reason="WRONG_OFFSET",
                resource=f"blobs/{self.sha256}",
                field="chunk.offset_bytes",
                expected=str(self._position),
                got=str(offset),
            )
        if not 1 <= len(data) <= CHUNK_BYTES:
            raise InvalidArgument.field(
                "chunk.data",
                f"expected 1 to {CHUNK_BYTES} bytes, got {len(data)}",
                got=str(len(data)),
            )
        if self._position + len(data) > self.size:
            raise InvalidArgument.field(
                "chunk.data",
                f"expected an end up to {self.size}, the header's size, got {offset + len(data)}",
                expected=str(self.size),
                got=str(offset + len(data)),
            )

    def _mismatch(self, got: str) -> ServiceError:
        if self._resumed_at:
            return Aborted(
                f"the bytes stored before and those sent now have sha256 {got} together, expected "
                f"{self.sha256}; they are removed, upload from the start",
                reason="DIGEST_MISMATCH_AFTER_RESUME",
                resource=f"blobs/{self.sha256}",
                expected=self.sha256,
                got=got,
            )
        error = InvalidArgument.field(
            "header.name",
            f"expected bytes with sha256 {self.sha256}, got bytes with {got}; they are removed",
            expected=self.sha256,
            got=got,
        )
        error.reason = "DIGEST_MISMATCH"
        return error
