"""Content by digest on a local disk.

    <root>/blobs/sha256/aa/<digest>       complete and verified; never changed
    <root>/uploads/<digest>-<size>.part   what has arrived of an upload, from its start
    <root>/quarantine/<digest>            was complete and is damaged now; the next upload of it
    heals

A blob appears under its final name only after fsync(file), by rename, followed by fsync(folder).
The digest is always computed over bytes that are read back or were written by this process, so a
partial file needs no trust: whatever a power cut leaves in it, a wrong byte ends as a digest that
does not match, and the upload starts over. `committed` counts bytes that an fsync covered; at start
every partial file is synced once, so that its size is such a count again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from modelrail_registry.storage.uploads import Upload
from modelrail_server.errors import (
    Aborted,
    DataLoss,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)

READ_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PARTIAL = re.compile(r"([0-9a-f]{64})-([0-9]{1,19})\.part")
_RETRY_SECONDS = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BlobStatus:
    """How much of a blob is stored."""

    sha256: str
    size_bytes: int
    committed_size_bytes: int
    complete: bool


class BlobStore:
    """Keeps blobs below a folder. Every method blocks on the disk; any thread may call it.

    Args:
        root: The folder; only one store at a time may use it.
        max_blob_bytes: Largest blob.
    """

    def __init__(self, root: Path, *, max_blob_bytes: int) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._uploads = root / "uploads"
        self._quarantine = root / "quarantine"
        self._max_blob_bytes = max_blob_bytes
        self._active: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def recover(self) -> None:
        """Makes the folders, and makes durable what an earlier process left behind."""
        for folder in (self._blobs, self._uploads, self._quarantine):
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder)
        for partial in self._uploads.iterdir():
            with _storage_errors(), partial.open("rb+") as file:
                try:
                    os.fsync(file.fileno())
                except OSError:
                    # Its size says nothing now, and the next sync would not tell.
                    partial.unlink()
        # A process that was killed between rename and fsync(folder) left a name that may
        # not be durable yet.
        for shard in self._blobs.iterdir():
            sync_folder(shard)

    def path(self, sha256: str) -> Path:
        """Returns where the complete blob is or will be."""
        return self._blobs / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """Returns the size of a complete blob in bytes, None when there is none.

        Raises:
            Unavailable: The disk failed.
        """
        with _storage_errors():
            try:
                return self.path(sha256).stat().st_size
            except FileNotFoundError:
                return None

    def status(self, sha256: str) -> BlobStatus:
        """Tells how much of a blob is stored.

        Raises:
            NotFound: Nothing of it is.
            Unavailable: The disk failed, or this process may open no more files.
        """
        size = self.size(sha256)
        if size is not None:
            return BlobStatus(sha256, size, size, complete=True)
        with self._lock:
            upload = self._active.get(sha256)
        if upload is not None:
            return BlobStatus(sha256, upload.size, upload.durable, complete=False)
        with _storage_errors():
            partial = self._newest_partial(sha256)
        if partial is None:
            raise NotFound(
                f"nothing of blobs/{sha256} is stored",
                reason="BLOB_NOT_FOUND",
                resource=f"blobs/{sha256}",
            )
        return partial

    def begin(self, sha256: str, size: int) -> Upload | None:
        """Opens an upload where the stored bytes end; None when the blob is complete already.

        Raises:
            InvalidArgument: The size is negative, or another one than that of the complete blob.
            ResourceExhausted: The size is above the limit, or the disk is full.
            Aborted: Another stream uploads this blob now.
        """
        self._check_size(sha256, size)
        stored = self.size(sha256)
        if stored is not None:
            if stored != size:
                raise InvalidArgument.field(
                    "header.size_bytes",
                    f"expected {stored}, the size of the stored blob, got {size}",
                    expected=str(stored),
                    got=str(size),
                )
            return None
        upload = Upload(
            self._uploads / f"{sha256}-{size}.part",
            sha256=sha256,
            size=size,
            release=lambda: self._release(sha256),
        )
        with self._lock:
            if sha256 in self._active:
                raise Aborted(
                    f"another stream uploads blobs/{sha256} now; read it again, then go on",
                    reason="UPLOAD_IN_PROGRESS",
                    resource=f"blobs/{sha256}",
                    retry_after_seconds=_RETRY_SECONDS,
                )
            self._active[sha256] = upload
        try:
            with _storage_errors():
                upload.open()
        except BaseException:
            upload.close()
            raise
        return upload

    def write(self, upload: Upload, offset: int, data: bytes) -> None:
        """Appends a chunk.

        Raises:
            OutOfRange: The offset is not where the stored bytes end.
            InvalidArgument: The chunk is empty, or goes beyond the size.
            ResourceExhausted: The disk is full; the bytes stored before are kept.
        """
        with _storage_errors():
            upload.write(offset, data)

    def finish(self, upload: Upload) -> BlobStatus:
        """Makes the bytes durable, and the blob complete when they are all there.

        Raises:
            InvalidArgument: The bytes have another digest; they are removed.
            Aborted: The same, of an upload that went on after an interruption.
            Unavailable: The disk failed; bytes whose sync failed are not trusted and are removed.
            ResourceExhausted: The disk is full; the same.
        """
        final = self.path(upload.sha256)
        with upload.finishing() as complete, _storage_errors():
            upload.sync()
            if complete:
                make_folder(final.parent)
                with self._lock:  # no reader is about to set aside what it finds under this name
                    upload.move(final)
                try:
                    sync_folder(final.parent)
                except OSError:
                    # The name may be lost, and the next sync of the folder may say it is not.
                    final.unlink(missing_ok=True)
                    raise
        if complete:
            with _storage_errors():
                (self._quarantine / upload.sha256).unlink(missing_ok=True)
        return BlobStatus(upload.sha256, upload.size, upload.durable, complete=complete)

    def read(self, sha256: str, offset: int = 0) -> Generator[tuple[int, bytes], None, None]:
        """Gives pieces of a complete blob, each with its position.

        Read from the start, the last piece is held back until the digest of the whole is found
        right.

        Raises:
            NotFound: There is no such complete blob.
            InvalidArgument: The offset is negative.
            OutOfRange: The offset lies behind the end.
            DataLoss: The stored bytes are not what they were.
            Unavailable: The disk failed, or this process may open no more files.
        """
        with _storage_errors(), self._open(sha256) as file:
            size = os.fstat(file.fileno()).st_size
            _check_offset(offset, size)
            file.seek(offset)
            digest = hashlib.sha256() if offset == 0 else None
            held: tuple[int, bytes] | None = None
            while data := file.read(READ_BYTES):
                if digest is not None:
                    digest.update(data)
                if held is not None:
                    yield held
                held = (offset, data)
                offset += len(data)
            if digest is not None and digest.hexdigest() != sha256:
                raise self._set_aside(sha256, file)
            if held is not None:
                yield held

    def head(self, sha256: str, length: int) -> bytes:
        """Returns the first bytes of a complete blob."""
        with _storage_errors(), self.path(sha256).open("rb") as file:
            return file.read(length)

    def tail(self, sha256: str, length: int) -> bytes:
        """Returns the last bytes of a complete blob."""
        with _storage_errors(), self.path(sha256).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - length))
            return file.read(length)

    def sweep(self, expiry_seconds: float) -> int:
        """Removes unfinished uploads whose last byte is older than the expiry; returns how many."""
        removed = 0
        oldest = time.time() - expiry_seconds
        for partial in self._uploads.iterdir():
            try:
                with self._lock:
                    if partial.name[:64] in self._active or partial.stat().st_mtime >= oldest:
                        continue
                    partial.unlink()
                removed += 1
            except FileNotFoundError:
                continue
            except OSError as error:  # the others can still go
                _log.warning(
                    "an old upload cannot be removed", upload=partial.name, error=str(error)
                )
        return removed

    def _release(self, sha256: str) -> None:
        with self._lock:
            self._active.pop(sha256, None)

    def _check_size(self, sha256: str, size: int) -> None:
        if size < 0:
            raise InvalidArgument.field(
                "header.size_bytes", f"expected 0 or more, got {size}", got=str(size)
            )
        if size > self._max_blob_bytes:
            raise ResourceExhausted(
                f"header.size_bytes: expected at most {self._max_blob_bytes}, got {size}",
                reason="BLOB_TOO_LARGE",
                resource=f"blobs/{sha256}",
                field="header.size_bytes",
                limit=str(self._max_blob_bytes),
                got=str(size),
            )

    def _newest_partial(self, sha256: str) -> BlobStatus | None:
        newest: tuple[float, BlobStatus] | None = None
        for partial in self._uploads.glob(f"{sha256}-*.part"):
            match = _PARTIAL.fullmatch(partial.name)
            with contextlib.suppress(FileNotFoundError):
                stat = partial.stat()
                if match and (newest is None or stat.st_mtime > newest[0]):
                    status = BlobStatus(sha256, int(match[2]), stat.st_size, complete=False)
                    newest = (stat.st_mtime, status)
        return newest[1] if newest else None

    def _open(self, sha256: str) -> BinaryIO:
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError:
            raise self._absent(sha256) from None

    def _set_aside(self, sha256: str, file: BinaryIO) -> ServiceError:
        """Sets damaged bytes aside, and returns what their reader is told.

        Args:
            sha256: Digest that they should have.
            file: What was read. It may lie under its name no more: another reader was faster, and
                the bytes may have been uploaded again since.
        """
        path = self.path(sha256)
        with self._lock:
            try:
                current = path.stat()
            except FileNotFoundError:
                return self._absent(sha256)
            if os.path.samestat(current, os.fstat(file.fileno())):
                path.rename(self._quarantine / sha256)
                return self._absent(sha256)
        return DataLoss(
            f"the bytes of blobs/{sha256} that were read are damaged; they were repaired since, "
            "read them again from the start",
            reason="BLOB_DAMAGED",
            resource=f"blobs/{sha256}",
        )

    def _absent(self, sha256: str) -> NotFound | DataLoss:
        name = f"blobs/{sha256}"
        if (self._quarantine / sha256).exists():
            return DataLoss(
                f"the stored bytes of {name} are damaged; upload them again to repair them",
                reason="BLOB_DAMAGED",
                resource=name,
            )
        return NotFound(f"there is no complete {name}", reason="BLOB_NOT_FOUND", resource=name)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder whose own name is durable."""
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        try:
            sync_folder(folder.parent)
        except OSError:
            # Else the next caller takes it for durable. It stays when that one was faster.
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise


def _check_offset(offset: int, size: int) -> None:
    if offset < 0:
        raise InvalidArgument.field(
            "offset_bytes", f"expected 0 or more, got {offset}", got=str(offset)
        )
    if offset > size:
        raise OutOfRange(
            f"offset_bytes: expected at most {size}, the size of the blob, got {offset}",
            reason="OFFSET_BEHIND_END",
            field="offset_bytes",
            expected=str(size),
            got=str(offset),
        )


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceExhausted(
                "the storage of the registry is full; what is stored can be read",
                reason="STORAGE_FULL",
            ) from error
        raise Unavailable(
            "the storage of the registry failed; nothing was published",
            reason="STORAGE_ERROR",
            retry_after_seconds=_RETRY_SECONDS,
        ) from error
