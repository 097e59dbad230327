"""Streams of bytes that stop: what they hold is given back at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from modelrail_registry.metrics import RegistryMetrics
from modelrail_registry.storage.blobs import READ_BYTES, BlobStore
from modelrail_registry.storage.transfer import Transfer
from modelrail_server.errors import Aborted

DATA = b"0123456789"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path, max_blob_bytes=1 << 24)
    store.recover()
    return store


@pytest.fixture
def transfer(store: BlobStore) -> Iterator[Transfer]:
    with ThreadPoolExecutor(2) as executor:
        metrics = RegistryMetrics(CollectorRegistry())
        yield Transfer(store, executor=executor, metrics=metrics, idle_seconds=0.05)


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


async def test_a_download_that_is_closed_early_closes_its_file(
    transfer: Transfer, store: BlobStore
) -> None:
    data = os.urandom(3 * READ_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    store.path(sha256).parent.mkdir(parents=True)
    store.path(sha256).write_bytes(data)
    pieces = transfer.send(sha256, 0)
    assert (await anext(pieces))[0] == 0
    assert open_paths().count(store.path(sha256)) == 1
    await pieces.aclose()
    assert store.path(sha256) not in open_paths()


def open_paths() -> list[Path]:
    return [path.resolve() for path in Path("/proc/self/fd").iterdir()]
