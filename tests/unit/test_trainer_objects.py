from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from modelrail.names import TrainingJobName
from modelrail_trainer.data_roots import DataPathError, DataRoots
from modelrail_trainer.execution.limits.stopwatch import Stopwatch
from modelrail_trainer.execution.objects import JobObjects
from modelrail_trainer.execution.patience import Patience
from modelrail_trainer.execution.preparation import Preparation
from modelrail_trainer.execution.processes.directory import JobDirectories
from modelrail_trainer.execution.wishes import Wishes
from modelrail_trainer.jobs.job import JobError, RunPolicy
from modelrail_trainer.jobs.lease import Lease
from modelrail_trainer.jobs.state import Reason
from modelrail_trainer.objects import store as stores
from modelrail_trainer.objects.fetching import Fetched, FetchFailed, ObjectFetcher
from modelrail_trainer.objects.named import NamedObjects
from modelrail_trainer.objects.roots import ObjectRoots
from modelrail_trainer.objects.uri import copy_path, is_object_uri, is_uri
from modelrail_trainer.spec import Split, TableDataset, Task
from modelrail_trainer.threads import Threads
from modelrail_trainer.worker.table.dataset import load_table
from tests.object_store import SCHEMES, ObjectStore, on_every_store, store_of

FIELD = "dataset.table.paths[0]"
URI = "s3://data/flowers/iris.csv"
KEY = "flowers/iris.csv"
NAME = f"data/{KEY}"


@pytest.mark.parametrize(
    ("root", "uri"),
    [
        ("s3://data", "s3://data/a.csv"),
        ("s3://data/", "s3://data/deep/er/a.csv"),
        ("gs://data/flowers", "gs://data/flowers/a b.csv".replace(" ", "_")),
        ("az://data/flowers/", "az://data/flowers/2026/a.parquet"),
    ],
)
def test_what_lies_below_a_root_may_be_read(root: str, uri: str) -> None:
    ObjectRoots([root]).check(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://data/flowers-secret/a.csv",
        "s3://data/flowers",
        "s3://data/flowers/",
        "s3://data/flowers/../secret.csv",
        "s3://data/flowers/./a.csv",
        "s3://data/flowers//a.csv",
        "s3://data/flowers/%2e%2e/secret.csv",
        "s3://data/flowers/a.csv?versionId=1",
        "s3://data/flowers/a.csv#x",
        "s3://key:secret@data/flowers/a.csv",
        "s3://other/flowers/a.csv",
        "S3://data/flowers/a.csv",
        "gs://data/flowers/a.csv",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
    ],
)
def test_whatever_else_is_a_uri_is_refused(uri: str) -> None:
    assert is_uri(uri)
    with pytest.raises(DataPathError, match="expected an object below an --object-root"):
        ObjectRoots(["s3://data/flowers"]).check(uri)


@pytest.mark.parametrize("root", ["", "data", "s3://", "s3:///x", "http://x/y", "s3://a/../b"])
def test_a_root_is_a_bucket_or_a_folder_in_one(root: str) -> None:
    with pytest.raises(ValueError, match="expected a bucket or a folder in one"):
        ObjectRoots([root])


def test_without_roots_no_objects_are_read_and_paths_are_none() -> None:
    with pytest.raises(DataPathError, match="started without --object-root"):
        ObjectRoots([]).check(URI)
    assert not is_uri("s3/data.csv")
    assert not is_uri("/data/s3://x".removeprefix("/data/s3://"))


def test_copies_keep_plain_names_and_never_meet(tmp_path: Path) -> None:
    one, other = copy_path(tmp_path, URI), copy_path(tmp_path, "s3://data/other/iris.csv")
    assert one.name == other.name == "iris.csv"
    assert one != other
    odd = "s3://data/" + "ü" * 300 + ".csv.gz"
    assert is_object_uri(odd)
    assert copy_path(tmp_path, odd).name == "object.csv.gz"
    assert copy_path(tmp_path, "s3://data/.hidden").name == "object.hidden"


def test_a_uri_stands_for_its_copy_beside_the_job_alone(tmp_path: Path) -> None:
    path = copy_path(tmp_path, URI)
    path.parent.mkdir(parents=True)
    path.write_text("x")
    assert DataRoots([], tmp_path).resolve(URI) == path
    for roots in (DataRoots([tmp_path]), DataRoots([tmp_path], tmp_path / "other")):
        with pytest.raises(DataPathError, match="got the URI"):
            roots.resolve(URI)


# Copying


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(stores, "_FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(stores, "PART_BYTES", 1000)
    with store_of(request, monkeypatch) as store:
        store.objects[NAME] = bytes(range(250)) * 10
        yield store


@pytest.fixture
def uri(store: ObjectStore) -> str:
    """The object that the store has."""
    return store.uri(KEY)


def fetcher(threads: Threads, *, max_objects: int = 100, max_bytes: int = 1 << 20) -> ObjectFetcher:
    return ObjectFetcher(
        lambda _: NamedObjects(),
        ObjectRoots([f"{scheme}://{bucket}" for scheme in SCHEMES for bucket in ("data", "gone")]),
        threads,
        max_objects=max_objects,
        max_bytes=max_bytes,
    )


async def refused(fetcher: ObjectFetcher, directory: Path, uri: str) -> tuple[Reason, str]:
    with pytest.raises(FetchFailed) as caught:
        await fetcher.fetch(NamedObjects({FIELD: uri}), directory)
    return caught.value.error.reason, caught.value.error.message


@on_every_store
async def test_an_object_is_copied_in_parts(
    store: ObjectStore, uri: str, threads: Threads, tmp_path: Path
) -> None:
    named = NamedObjects({FIELD: uri, "other": uri})
    assert await fetcher(threads).fetch(named, tmp_path) == Fetched(1, 2500)
    assert copy_path(tmp_path, uri).read_bytes() == store.objects[NAME]
    assert store.requests == [f"{m} {NAME}" for m in ("HEAD", "GET", "GET", "GET")]


def as_csv(first: int) -> bytes:
    lines = [f"{number},{'big' if number % 2 else 'small'}" for number in range(first, first + 50)]
    return "\n".join(["size,kind", *lines, ""]).encode()


def as_parquet(first: int) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.csv.read_csv(io.BytesIO(as_csv(first))), sink)
    return sink.getvalue()


def digest(paths: Sequence[Path], folder: Path) -> str:
    folder.mkdir()
    dataset = TableDataset(paths=tuple(map(str, paths)), target="kind")
    split = Split(validation_fraction=0.25, test_fraction=0.25, seed=3)
    return load_table(dataset, split, Task.CLASSIFICATION, folder).sha256


@on_every_store
@pytest.mark.parametrize(("ending", "encoded"), [("csv", as_csv), ("parquet", as_parquet)])
async def test_several_files_of_a_table_have_the_digest_of_the_same_files_on_the_machine(
    store: ObjectStore,
    threads: Threads,
    tmp_path: Path,
    *,
    ending: str,
    encoded: Callable[[int], bytes],
) -> None:
    files = {f"2026/{month}/rows.{ending}": encoded(50 * month) for month in range(3)}
    for name, content in files.items():
        store.objects[f"data/{name}"] = content
        (tmp_path / "local" / name).parent.mkdir(parents=True)
        (tmp_path / "local" / name).write_bytes(content)
    uris = {f"dataset.table.paths[{n}]": store.uri(name) for n, name in enumerate(files)}
    size = sum(map(len, files.values()))
    assert await fetcher(threads).fetch(NamedObjects(uris), tmp_path) == Fetched(3, size)
    local = digest([tmp_path / "local" / name for name in files], tmp_path / "one")
    distant = digest([copy_path(tmp_path, uri) for uri in uris.values()], tmp_path / "other")
    assert local == distant
    one_less = fetcher(threads, max_bytes=size - 1)
    with pytest.raises(FetchFailed, match=f"take {size} bytes, and it may have copies of"):
        await one_less.fetch(NamedObjects(uris), tmp_path)


@on_every_store
async def test_an_empty_object_is_an_empty_file(
    store: ObjectStore, uri: str, threads: Threads, tmp_path: Path
) -> None:
    store.objects[NAME] = b""
    assert await fetcher(threads).fetch(NamedObjects({FIELD: uri}), tmp_path) == Fetched(1)
    assert copy_path(tmp_path, uri).read_bytes() == b""


@on_every_store
@pytest.mark.parametrize("trouble", [500, 503, 429, -7])
async def test_a_bad_moment_of_the_store_passes(
    store: ObjectStore, uri: str, threads: Threads, tmp_path: Path, trouble: int
) -> None:
    store.trouble = lambda request, number: trouble if number in (1, 3, 4, 6) else 0
    await fetcher(threads).fetch(NamedObjects({FIELD: uri}), tmp_path)
    assert copy_path(tmp_path, uri).read_bytes() == store.objects[NAME]
    assert len(store.requests) == 8 if trouble > 0 else 7


@on_every_store
async def test_a_store_that_never_answers_well_is_unavailable(
    store: ObjectStore, uri: str, threads: Threads, tmp_path: Path
) -> None:
    store.trouble = lambda request, number: 503
    reason, message = await refused(fetcher(threads), tmp_path, uri)
    assert reason is Reason.DATA_UNAVAILABLE
    assert message.startswith(f"{FIELD}: {uri}: its store did not answer properly, 6 times")
    assert len(store.requests) == 6


@on_every_store
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, "there is no such object"),
        (403, "the trainer may not read it"),
        (401, "the store does not know the trainer"),
    ],
)
async def test_what_asking_again_does_not_change_is_told_at_once(
    store: ObjectStore, uri: str, threads: Threads, tmp_path: Path, *, status: int, expected: str
) -> None:
    store.trouble = lambda request, number: status
    reason, message = await refused(fetcher(threads), tmp_path, uri)
    assert reason is Reason.DATA
    assert message.startswith(f"{FIELD}: {uri}: {expected}")
    assert len(store.requests) == 1
    assert "127.0.0.1" not in message


@on_every_store
async def test_an_object_that_is_replaced_meanwhile_is_not_mixed(
    store: ObjectStore, uri: str, threads: Threads, tmp_path: Path
) -> None:
    def replaced(request: str, number: int) -> int:
        if number == 3:
            store.objects[NAME] = b"y" * 2500
        return 0

    store.trouble = replaced
    reason, message = await refused(fetcher(threads), tmp_path, uri)
    assert reason is Reason.DATA
    assert "it was replaced while it was read" in message


@on_every_store
async def test_more_than_a_job_may_copy_is_refused_before_the_first_byte(
    store: ObjectStore, uri: str, threads: Threads, tmp_path: Path
) -> None:
    reason, message = await refused(fetcher(threads, max_bytes=2499), tmp_path, uri)
    assert reason is Reason.DATA
    assert "take 2500 bytes, and it may have copies of 2499" in message
    assert store.requests == [f"HEAD {NAME}"]


async def test_a_job_without_objects_needs_no_library(
    threads: Threads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modelrail_trainer.objects.store", None)
    assert await fetcher(threads).fetch(NamedObjects(), tmp_path) == Fetched()
    reason, _ = await refused(fetcher(threads), tmp_path, "s3://elsewhere/iris.csv")
    assert reason is Reason.DATA


async def test_what_may_be_read_is_asked_again_when_it_is_read(
    store: ObjectStore, threads: Threads, tmp_path: Path
) -> None:
    reason, message = await refused(fetcher(threads), tmp_path, "s3://elsewhere/iris.csv")
    assert reason is Reason.DATA
    assert "expected an object below an --object-root" in message
    assert store.requests == []


# Beside a job


class LastMoment:
    """A fetcher whose copies are ready, and a settlement that tells of a wish, at one moment."""

    def __init__(self) -> None:
        self.fetched = asyncio.Event()
        self.settled: list[JobError | None] = []

    def objects_of(self, specification: bytes) -> NamedObjects:
        del specification
        return NamedObjects({FIELD: URI})

    async def fetch(self, named: NamedObjects, directory: Path) -> Fetched:
        del named, directory
        await self.fetched.wait()
        return Fetched(1)

    async def is_to_stop(self, lease: Lease) -> bool:
        del lease
        self.fetched.set()
        for _ in range(3):  # until the loop has come round and the copies are there
            await asyncio.sleep(0)
        return True

    async def settle(self, *_: object, failure: JobError | None, **__: object) -> None:
        self.settled.append(failure)


async def test_a_wish_that_is_heard_when_the_copies_are_ready_counts(tmp_path: Path) -> None:
    both: Any = LastMoment()
    stopping = asyncio.Event()
    preparation = Preparation(
        book=both, settlement=both, patience=Patience(stopping), stopping=stopping
    )
    objects = JobObjects(
        fetcher=both,
        book=both,
        directories=JobDirectories(tmp_path),
        settlement=both,
        preparation=preparation,
    )
    job: Any = SimpleNamespace(
        name=TrainingJobName("a-job"),
        specification=b"",
        lease=Lease(TrainingJobName("a-job"), 1),
        policy=RunPolicy(),
        run_seconds=0.0,
        earlier_run_seconds=0.0,
    )
    wishes = Wishes()
    wishes.changed.set()
    assert not await objects.bring(job, wishes, Stopwatch(job, time.monotonic))
    assert both.settled == [None]
