"""What every store of blobs promises; a new back end subclasses `BlobStoreTests`."""

# ruff: noqa: PT012 (an answer that may be an error; a stream is read inside of raises)

from __future__ import annotations

import errno
import hashlib
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelrail_registry.storage import uploads
from modelrail_registry.storage.blobs import READ_BYTES, BlobStore
from modelrail_registry.storage.uploads import CHUNK_BYTES
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

LIMIT = 1 << 24


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(store: BlobStore, data: bytes, *, start: int = 0, stop: int | None = None) -> bool:
    upload = store.begin(digest(data), len(data))
    if upload is None:
        return True
    try:
        stop = len(data) if stop is None else stop
        for offset in range(start, stop, CHUNK_BYTES):
            store.write(upload, offset, data[offset : min(stop, offset + CHUNK_BYTES)])
        return store.finish(upload).complete
    finally:
        upload.close()


def put_in_steps(store: BlobStore, data: bytes, *, start: int = 0) -> bool:
    upload = store.begin(digest(data), len(data))
    assert upload is not None
    try:
        for offset in range(start, len(data), 100):
            store.write(upload, offset, data[offset : offset + 100])
        return store.finish(upload).complete
    finally:
        upload.close()


def read(store: BlobStore, data: bytes, offset: int = 0) -> bytes:
    return b"".join(piece for _, piece in store.read(digest(data), offset))


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class BlobStoreTests:
    """The suite."""

    def make(self, root: Path) -> BlobStore:
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        return self.make(tmp_path)

    @pytest.mark.parametrize(
        "size", [0, 1, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, 3 * READ_BYTES]
    )
    def test_what_goes_in_comes_out(self, store: BlobStore, size: int) -> None:
        data = os.urandom(size)
        assert put(store, data)
        assert read(store, data) == data
        assert read(store, data, size // 2) == data[size // 2 :]
        assert read(store, data, size) == (b"" if size else data)
        assert put(store, data)  # again is no work

    def test_an_upload_goes_on_where_it_stopped(self, store: BlobStore, tmp_path: Path) -> None:
        data = os.urandom(3 * CHUNK_BYTES)
        assert not put(store, data, stop=CHUNK_BYTES + 5)
        assert store.status(digest(data)).committed_size_bytes == CHUNK_BYTES + 5
        later = self.make(tmp_path)  # as after a crash
        assert later.status(digest(data)).committed_size_bytes == CHUNK_BYTES + 5
        assert put(later, data, start=CHUNK_BYTES + 5)
        assert read(later, data) == data

    @pytest.mark.parametrize("offset", [0, 4, 6, 1 << 40, -1])
    def test_a_wrong_offset_is_named_and_harmless(self, store: BlobStore, offset: int) -> None:
        data = os.urandom(10)
        put(store, data, stop=5)
        upload = store.begin(digest(data), 10)
        assert upload is not None
        with pytest.raises(OutOfRange) as caught:
            store.write(upload, offset, data[5:])
        assert caught.value.metadata["expected"] == "5"
        upload.close()
        assert put(store, data, start=5)

    def test_wrong_bytes_never_become_a_blob(self, store: BlobStore) -> None:
        sha256 = digest(b"right")
        upload = store.begin(sha256, 5)
        assert upload is not None
        store.write(upload, 0, b"wrong")
        with pytest.raises(InvalidArgument) as caught:
            store.finish(upload)
        upload.close()
        assert caught.value.metadata == {"expected": sha256, "got": digest(b"wrong")}
        with pytest.raises(NotFound):
            store.status(sha256)

    def test_a_wrong_rest_after_an_interruption_asks_for_a_new_start(
        self, store: BlobStore
    ) -> None:
        data = b"0123456789"
        put(store, data, stop=5)
        upload = store.begin(digest(data), 10)
        assert upload is not None
        store.write(upload, 5, b"xxxxx")
        with pytest.raises(Aborted, match="from the start"):
            store.finish(upload)
        upload.close()
        assert put(store, data)

    def test_a_second_writer_is_sent_away_until_the_first_ends(self, store: BlobStore) -> None:
        upload = store.begin(digest(b"data"), 4)
        assert upload is not None
        with pytest.raises(Aborted):
            store.begin(digest(b"data"), 4)
        upload.close()
        assert put(store, b"data")

    @pytest.mark.parametrize(
        ("size", "error"), [(-1, InvalidArgument), (LIMIT + 1, ResourceExhausted)]
    )
    def test_a_size_out_of_bounds_is_refused(
        self, store: BlobStore, size: int, error: type[ServiceError]
    ) -> None:
        with pytest.raises(error):
            store.begin("0" * 64, size)

    @pytest.mark.parametrize("data", [b"", b"12345", bytes(CHUNK_BYTES + 1)])
    def test_a_chunk_of_no_or_too_many_bytes_is_refused(
        self, store: BlobStore, data: bytes
    ) -> None:
        upload = store.begin("0" * 64, 4)
        assert upload is not None
        with pytest.raises(InvalidArgument):
            store.write(upload, 0, data)
        upload.close()

    def test_reading_outside_of_a_blob_is_refused(self, store: BlobStore) -> None:
        put(store, b"data")
        with pytest.raises(OutOfRange):
            read(store, b"data", 5)
        with pytest.raises(InvalidArgument):
            read(store, b"data", -1)
        with pytest.raises(NotFound):
            read(store, b"nothing")


class TestDiskBlobStore(BlobStoreTests):
    """The suite and the disk's own faults, on a local folder."""

    def make(self, root: Path) -> BlobStore:
        store = BlobStore(root, max_blob_bytes=LIMIT)
        store.recover()
        return store

    def test_a_flipped_bit_is_found_before_the_last_piece(self, store: BlobStore) -> None:
        data = os.urandom(3 * READ_BYTES)
        put(store, data)
        path = store.path(digest(data))
        path.chmod(0o600)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        received = 0
        with pytest.raises(DataLoss):
            for _, piece in store.read(digest(data)):
                received += len(piece)
        assert received < len(data)
        with pytest.raises(DataLoss):
            read(store, data)  # still told, until it is uploaded again
        assert put(store, data)
        assert read(store, data) == data

    def _found_damaged(self, store: BlobStore) -> tuple[bytes, Iterator[tuple[int, bytes]]]:
        """Returns a blob whose last byte was changed, and one who began to read it before that
        was found."""
        data = os.urandom(3 * READ_BYTES)
        put(store, data)
        path = store.path(digest(data))
        path.chmod(0o600)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        slow = store.read(digest(data))
        next(slow)
        with pytest.raises(DataLoss):
            read(store, data)
        return data, slow

    def test_a_slow_reader_of_damaged_bytes_leaves_the_healed_ones_alone(
        self, store: BlobStore
    ) -> None:
        data, slow = self._found_damaged(store)
        assert put(store, data)
        with pytest.raises(DataLoss, match="repaired since"):
            list(slow)
        assert read(store, data) == data

    def test_a_slow_reader_of_bytes_set_aside_is_told_that_they_are_damaged(
        self, store: BlobStore
    ) -> None:
        _, slow = self._found_damaged(store)
        with pytest.raises(DataLoss, match="upload them again"):
            list(slow)

    def test_without_descriptors_every_call_is_refused_and_may_come_again(
        self, store: BlobStore
    ) -> None:
        data = b"0123456789"
        put(store, b"complete")
        put(store, data, stop=5)
        calls: dict[str, Callable[[], object]] = {
            "read": lambda: read(store, b"complete"),
            "head": lambda: store.head(digest(b"complete"), 1),
            "status": lambda: store.status(digest(data)),
            "begin": lambda: store.begin(digest(data), len(data)),
        }
        refused = {}
        with no_descriptor_left():
            for name, call in calls.items():
                try:
                    call()
                except Exception as error:  # noqa: BLE001 (what it is, is compared below)
                    refused[name] = (type(error), getattr(error, "retry_after_seconds", None))
        assert refused == dict.fromkeys(calls, (Unavailable, 1.0))
        assert read(store, b"complete") == b"complete"
        assert put(store, data, start=5)

    @pytest.mark.parametrize("method", ["size", "status"])
    def test_a_disk_that_does_not_answer_is_refused_and_may_come_again(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        def broken(*_: object, **__: object) -> os.stat_result:
            raise OSError(errno.EIO, "injected")

        put(store, b"data")
        monkeypatch.setattr(Path, "stat", broken)
        with pytest.raises(Unavailable):
            getattr(store, method)(digest(b"data"))

    def test_an_upload_without_a_byte_leaves_no_file(
        self, store: BlobStore, tmp_path: Path
    ) -> None:
        assert not put(store, b"data", stop=0)
        assert list((tmp_path / "uploads").iterdir()) == []
        with pytest.raises(NotFound):
            store.status(digest(b"data"))

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_a_full_disk_keeps_what_was_stored(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        data, other = os.urandom(10), b"readable"
        put(store, other)
        put(store, data, stop=5)
        real = os.pwrite

        def full(descriptor: int, content: bytes, offset: int) -> int:
            if offset == 5:
                return real(descriptor, content[:2], offset)  # half of it still fits
            raise OSError(code, "full")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceExhausted) as caught:
            put(store, data, start=5)
        monkeypatch.undo()
        assert caught.value.reason == "STORAGE_FULL"
        assert store.status(digest(data)).committed_size_bytes == 5
        assert read(store, other) == other
        assert put(store, data, start=5)

    def test_bytes_whose_sync_failed_are_not_trusted(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_: int) -> None:
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(Unavailable):
            put(store, b"data")
        monkeypatch.undo()
        with pytest.raises(NotFound):
            store.status(digest(b"data"))
        assert put(store, b"data")

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
    @pytest.mark.parametrize(
        ("failing", "kept"),
        [(1, 0), (2, 0), (3, 2000), (4, 0)],
        ids=["in a write", "at the end", "of the new folder", "of the new name"],
    )
    def test_a_failed_sync_is_final_wherever_it_happens(
        self,
        store: BlobStore,
        monkeypatch: pytest.MonkeyPatch,
        failing: int,
        kept: int,
        code: int,
    ) -> None:
        data = os.urandom(2000)
        monkeypatch.setattr(uploads, "_SYNC_BYTES", 1500)
        real, calls = os.fsync, 0

        def failing_once(descriptor: int) -> None:  # as the kernel does it
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(code, "injected")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", failing_once)
        with pytest.raises(Unavailable if code == errno.EIO else ResourceExhausted):
            put_in_steps(store, data)
        assert calls == failing  # no second sync makes the bytes good again
        assert store.path(digest(data)).parent.exists() == (failing == 4)
        if kept:  # their own sync did not fail
            assert store.status(digest(data)).committed_size_bytes == kept
        else:
            with pytest.raises(NotFound):
                store.status(digest(data))
        assert put_in_steps(store, data, start=kept)
        assert read(store, data) == data

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
    def test_an_upload_that_stops_early_is_kept_only_when_its_sync_succeeds(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def broken(_: int) -> None:
            raise OSError(code, "injected")

        upload = store.begin(digest(b"data"), 4)
        assert upload is not None
        store.write(upload, 0, b"da")
        monkeypatch.setattr(os, "fsync", broken)
        upload.close()
        monkeypatch.undo()
        with pytest.raises(NotFound):
            store.status(digest(b"data"))
        assert put(store, b"data")

    def test_bytes_of_an_upload_that_cannot_be_taken_back_are_not_trusted(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> int:
            raise OSError(errno.EIO, "injected")

        upload = store.begin(digest(b"data"), 4)
        assert upload is not None
        store.write(upload, 0, b"da")
        monkeypatch.setattr(os, "pwrite", broken)
        monkeypatch.setattr(os, "ftruncate", broken)
        with pytest.raises(Unavailable):
            store.write(upload, 2, b"ta")
        monkeypatch.undo()
        with pytest.raises(Aborted):
            store.write(upload, 2, b"ta")
        upload.close()
        with pytest.raises(NotFound):
            store.status(digest(b"data"))

    def test_a_partial_file_whose_sync_fails_at_the_start_is_removed(
        self, store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(store, b"data", stop=2)
        real = os.fsync

        def broken(descriptor: int) -> None:
            if not Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
                raise OSError(errno.EIO, "injected")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", broken)
        later = self.make(tmp_path)
        with pytest.raises(NotFound):
            later.status(digest(b"data"))

    def test_an_old_upload_that_cannot_be_removed_does_not_keep_the_others(
        self, store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for data in (b"one data", b"two data"):
            put(store, data, stop=3)
            os.utime(tmp_path / "uploads" / f"{digest(data)}-8.part", (0, 0))
        real = Path.unlink
        stuck: list[Path] = []

        def unlink(self: Path, missing_ok: bool = False) -> None:
            if not stuck or self in stuck:
                stuck.append(self)
                raise OSError(errno.EIO, "injected")
            real(self, missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)
        assert store.sweep(3600) == 1

    def test_a_blob_is_synced_renamed_and_its_folder_synced_in_this_order(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[str] = []
        sync, rename = os.fsync, Path.rename

        def traced_sync(descriptor: int) -> None:
            target = Path(f"/proc/self/fd/{descriptor}").resolve()
            steps.append("sync folder" if target.is_dir() else "sync file")
            sync(descriptor)

        def traced_rename(self: Path, target: Path) -> Path:
            steps.append("rename")
            return rename(self, target)

        monkeypatch.setattr(os, "fsync", traced_sync)
        monkeypatch.setattr(Path, "rename", traced_rename)
        put(store, b"data")
        # The first folder sync is for the name of the new folder itself.
        assert steps == ["sync file", "sync folder", "rename", "sync folder"]

    def test_only_old_uploads_that_nobody_writes_are_swept(
        self, store: BlobStore, tmp_path: Path
    ) -> None:
        for data in (b"old data", b"new data", b"now data"):
            put(store, data, stop=3)
        active = store.begin(digest(b"now data"), 8)
        assert active is not None
        for data in (b"old data", b"now data"):
            os.utime(tmp_path / "uploads" / f"{digest(data)}-8.part", (0, 0))
        assert store.sweep(3600) == 1
        active.close()
        with pytest.raises(NotFound):
            store.status(digest(b"old data"))
        assert store.status(digest(b"new data")).committed_size_bytes == 3
        assert put(store, b"now data", start=3)
