"""Streams of bytes that stop: what they hold is given back at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from modelrail_registry.metrics import RegistryMetrics
from modelrail_registry.storage.blobs import READ_BYTES, BlobStore
from modelrail_registry.storage.transfer import Transfer
from modelrail_server.errors import Aborted, Unavailable

DATA = b"0123456789"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path, max_blob_bytes=1 << 24)
    store.recover()
    return store


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def transfer(store: BlobStore, executor: ThreadPoolExecutor) -> Transfer:
    return transfer_between(store, executor, idle_seconds=0.05)


def transfer_between(store: BlobStore, executor: Executor, *, idle_seconds: float) -> Transfer:
    return Transfer(
        store,
        executor=executor,
        metrics=RegistryMetrics(CollectorRegistry()),
        upload_idle_seconds=idle_seconds,
        download_idle_seconds=idle_seconds,
    )


async def chunks(
    start: int, *ends: int, then_silence: bool = False
) -> AsyncIterator[tuple[int, bytes]]:
    for end in ends:
        yield start, DATA[start:end]
        start = end
    if then_silence:
        await asyncio.Event().wait()


async def test_a_silent_upload_is_ended_and_another_goes_on_with_its_bytes(
    transfer: Transfer,
) -> None:
    with pytest.raises(Aborted) as caught:
        await transfer.receive(SHA256, len(DATA), chunks(0, 2, 4, then_silence=True))
    assert caught.value.reason == "UPLOAD_IDLE"
    assert (await transfer.status(SHA256)).committed_size_bytes == 4
    assert (await transfer.receive(SHA256, len(DATA), chunks(4, 10))).complete


class Reader:
    """Takes one piece, and no more."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.stuck = asyncio.Event()

    async def write(self, position: int, data: bytes) -> None:
        if self.positions:
            self.stuck.set()
            await asyncio.Event().wait()
        self.positions.append(position)


def stored(store: BlobStore, data: bytes) -> Path:
    path = store.path(hashlib.sha256(data).hexdigest())
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


async def test_a_download_that_is_cancelled_closes_its_file(
    store: BlobStore, executor: ThreadPoolExecutor
) -> None:
    path, reader = stored(store, os.urandom(3 * READ_BYTES)), Reader()
    transfer = transfer_between(store, executor, idle_seconds=60)
    sending = asyncio.ensure_future(transfer.send(path.name, 0, reader.write))
    await reader.stuck.wait()
    assert open_paths().count(path) == 1
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert path not in open_paths()


async def test_a_download_whose_reader_stopped_is_ended_and_closes_its_file(
    transfer: Transfer, store: BlobStore
) -> None:
    path, reader = stored(store, os.urandom(3 * READ_BYTES)), Reader()
    with pytest.raises(Unavailable) as caught:
        await transfer.send(path.name, 0, reader.write)
    assert caught.value.reason == "DOWNLOAD_IDLE"
    assert reader.positions == [0]
    assert path not in open_paths()


def open_paths() -> list[Path]:
    return [path.resolve() for path in Path("/proc/self/fd").iterdir()]
