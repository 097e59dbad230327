"""Folders of images in object stores: what is listed, what is copied, and what is refused."""

from __future__ import annotations

import asyncio
import io
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelrail_trainer.data_roots import DataPathError
from modelrail_trainer.failure import DataError
from modelrail_trainer.jobs.state import Reason
from modelrail_trainer.objects import crew, fetching
from modelrail_trainer.objects import store as stores
from modelrail_trainer.objects.fetching import Fetched, FetchFailed, ObjectFetcher
from modelrail_trainer.objects.image_folder import content_of
from modelrail_trainer.objects.named import NamedObjects
from modelrail_trainer.objects.roots import ObjectRoots
from modelrail_trainer.objects.uri import copy_path
from modelrail_trainer.objects.version import BadName, ObjectVersion
from modelrail_trainer.spec import ImageDataset, ImageFolder, Split
from modelrail_trainer.threads import Threads
from modelrail_trainer.worker.images.dataset import Images, load_images
from tests.object_store import SCHEMES, ObjectStore, on_every_store, store_of

FIELD = "dataset.images.folder.path"
FOLDER = "s3://data/photos/"
SECONDS = 30.0


# Which folders may be read


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("s3://data", "s3://data"),
        ("s3://data", "s3://data/"),
        ("s3://data", "s3://data/photos"),
        ("s3://data/photos", "s3://data/photos"),
        ("s3://data/photos/", "s3://data/photos/"),
        ("gs://data/photos", "gs://data/photos/2026/"),
    ],
)
def test_a_root_and_the_folders_below_it_may_be_read(root: str, folder: str) -> None:
    ObjectRoots([root]).check_folder(folder)


@pytest.mark.parametrize(
    "folder",
    [
        "s3://data",
        "s3://data/photos-secret",
        "s3://data/photos/../secret",
        "s3://data/photos//",
        "s3://data/photos/%2e%2e/secret",
        "s3://data/photos/?prefix=secret",
        "s3://other/photos/",
        "file:///etc",
    ],
)
def test_whatever_else_names_a_folder_is_refused(folder: str) -> None:
    with pytest.raises(DataPathError, match="expected a folder that is, or is below, an --object"):
        ObjectRoots(["s3://data/photos"]).check_folder(folder)


# What of a folder is an image of a class


def content(*paths: str, divided: bool = False) -> tuple[list[str], list[str], int]:
    objects = {path: ObjectVersion(FOLDER + path, 1, "tag") for path in paths}
    found = content_of(ImageFolder(path=FOLDER, divided=divided), objects)
    return list(found.images), list(found.folders), found.others


def test_images_in_folders_of_classes_are_copied_and_nothing_else() -> None:
    images = ["cat/1.png", "cat/2.JPG", "dog/1.png"]
    others = ["read.me", "1.png", "cat/notes.txt", "cat/.1.png", ".trash/1.png", "cat/small/1.png"]
    assert content(*images, *others) == (images, ["cat", "dog"], len(others))


def test_of_a_divided_folder_the_classes_lie_in_the_parts() -> None:
    images = ["train/cat/1.png", "test/cat/1.png"]
    found = content(*images, "train/1.png", "validate/x", "train/cat/small/1.png", divided=True)
    folders = ["test", "test/cat", "train", "train/cat", "validate"]
    assert found == (images, folders, 3)


@pytest.mark.parametrize(
    "path",
    [
        "../1.png",
        "cat/../../1.png",
        "cat/..",
        "./1.png",
        "cat//1.png",
        "/etc/1.png",
        "cat/a\0.png",
        f"cat/{'ü' * 126}.png",
    ],
)
def test_a_name_that_leads_elsewhere_or_can_be_no_file_is_refused(path: str) -> None:
    with pytest.raises(BadName, match="rename or remove that object") as caught:
        content("cat/1.png", path)
    assert repr(path)[:20] in str(caught.value)


# Copying


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(stores, "_FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(stores, "PART_BYTES", 1000)
    with store_of(request, monkeypatch) as store:
        yield store


@pytest.fixture
def folder(store: ObjectStore) -> str:
    return store.uri("photos/")


@pytest.fixture
def fetcher(threads: Threads) -> ObjectFetcher:
    return fetcher_of(threads)


def fetcher_of(
    threads: Threads, *, max_objects: int = 1000, max_bytes: int = 1 << 20
) -> ObjectFetcher:
    return ObjectFetcher(
        lambda _: NamedObjects(),
        ObjectRoots([f"{scheme}://data" for scheme in SCHEMES]),
        threads,
        max_objects=max_objects,
        max_bytes=max_bytes,
    )


def folder_at(uri: str, *, divided: bool = False) -> NamedObjects:
    return NamedObjects(folders={FIELD: ImageFolder(path=uri, divided=divided)})


def put(store: ObjectStore, images: Mapping[str, bytes]) -> None:
    store.objects.update({f"data/photos/{path}": content for path, content in images.items()})


def pets(count: int = 3) -> dict[str, bytes]:
    return {
        f"{kind}/{number}.png": f"{kind} {number}".encode()
        for kind in ("cat", "dog")
        for number in range(count)
    }


def copied(directory: Path, uri: str) -> dict[str, bytes]:
    root = copy_path(directory, uri)
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


async def refused(
    fetcher: ObjectFetcher, directory: Path, named: NamedObjects
) -> tuple[Reason, str]:
    with pytest.raises(FetchFailed) as caught:
        await fetcher.fetch(named, directory)
    assert "127.0.0.1" not in caught.value.error.message
    return caught.value.error.reason, caught.value.error.message


def asked(store: ObjectStore, method: str) -> list[str]:
    return [request for request in store.requests if request.startswith(f"{method} ")]


@on_every_store
@pytest.mark.parametrize("end", ["/", ""])
async def test_a_folder_is_copied_as_it_lies_there(
    store: ObjectStore, fetcher: ObjectFetcher, tmp_path: Path, end: str
) -> None:
    uri = store.uri("photos" + end)
    images = pets() | {
        "dog/a b%20ü#?[].png": b"odd",
        "dog/large.jpg": bytes(2500),
        "dog/0.gif": b"",
    }
    put(store, images | {"read.me": b"no image"})
    store.objects["data/photos-secret/cat/1.png"] = b"of others"
    store.page = 2
    size = sum(map(len, images.values()))
    assert await fetcher.fetch(folder_at(uri), tmp_path) == Fetched(len(images), size, 1)
    assert copied(tmp_path, uri) == images
    assert len(asked(store, "LIST")) == 2 * 5  # before and after: ten objects, two at a time
    # Of one version each, though nothing was asked about them one by one.
    assert asked(store, "HEAD") == []
    for request, headers in zip(store.requests, store.headers, strict=True):
        tag = {name.lower(): value for name, value in headers.items()}.get("if-match", "")
        assert (len(tag) > 2 and tag[0] == tag[-1] == '"') == request.startswith("GET")


@on_every_store
async def test_what_marks_folders_is_no_object_of_theirs(
    store: ObjectStore, folder: str, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    put(store, pets() | {"": b"", "cat/": b"", "dog/": b"", "dog/0.png/": b""})
    size = sum(map(len, pets().values()))
    assert await fetcher.fetch(folder_at(folder), tmp_path) == Fetched(6, size)
    assert copied(tmp_path, folder) == pets()


async def test_tags_that_are_listed_without_quotes_are_the_same_tags(
    store: ObjectStore, folder: str, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    store.bare_tags = True
    put(store, pets())
    await fetcher.fetch(folder_at(folder), tmp_path)
    assert copied(tmp_path, folder) == pets()


@on_every_store
async def test_a_whole_bucket_may_be_the_folder(
    store: ObjectStore, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    store.objects.update({f"data/{path}": content for path, content in pets().items()})
    bucket = store.uri("").rstrip("/")
    await fetcher.fetch(folder_at(bucket), tmp_path)
    assert copied(tmp_path, bucket) == pets()


@on_every_store
async def test_as_many_small_objects_as_may_be_are_asked_for_at_once(
    store: ObjectStore, folder: str, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    together = threading.Barrier(fetching._SMALL_AT_ONCE)

    def wait_for_the_others(request: str, number: int) -> int:
        del number
        if request.startswith("GET"):
            together.wait(SECONDS)  # breaks, and the answers with it, unless all of them come
        return 0

    store.trouble = wait_for_the_others
    images = pets(fetching._SMALL_AT_ONCE)  # so many of each of two kinds
    put(store, images)
    await fetcher.fetch(folder_at(folder), tmp_path)
    assert copied(tmp_path, folder) == images


def as_png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def loaded(root: Path, folder: Path, *, divided: bool) -> Images:
    folder.mkdir()
    dataset = ImageDataset(source=ImageFolder(path=str(root), divided=divided))
    split = Split(validation_fraction=0.25, test_fraction=0.25, seed=3)
    return load_images(dataset, split, folder)


@on_every_store
@pytest.mark.parametrize("divided", [False, True])
async def test_the_digest_is_that_of_the_same_folder_on_the_machine(
    store: ObjectStore, folder: str, fetcher: ObjectFetcher, tmp_path: Path, divided: bool
) -> None:
    parts = ("train/", "test/") if divided else ("",)
    names = [f"{part}{kind}/{n}.png" for part in parts for kind in "Baä" for n in range(8)]
    images = {name: as_png(seed) for seed, name in enumerate(names)}
    others = {"read.me": b"x", f"{parts[0]}a/notes.txt": b"x", f"{parts[0]}a/.hidden.png": b"x"}
    put(store, images | others)
    for path, content in (images | others).items():
        (tmp_path / "local" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / path).write_bytes(content)
    await fetcher.fetch(folder_at(folder, divided=divided), tmp_path)
    local = loaded(tmp_path / "local", tmp_path / "one", divided=divided)
    distant = loaded(copy_path(tmp_path, folder), tmp_path / "other", divided=divided)
    assert (local.sha256, local.labels) == (distant.sha256, distant.labels)


async def test_parts_that_are_taken_for_classes_are_told_as_of_a_local_folder(
    store: ObjectStore, folder: str, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    put(store, {f"train/{path}": content for path, content in pets().items()})
    assert await fetcher.fetch(folder_at(folder), tmp_path) == Fetched(0, 0, 6)
    with pytest.raises(DataError, match=r"folder 'train' has no images; .*folder\.divided"):
        loaded(copy_path(tmp_path, folder), tmp_path / "data", divided=False)


# What may not be, or cannot be had


@on_every_store
@pytest.mark.parametrize(
    ("images", "got"), [({}, "got no object"), ({"1.png": b"x"}, "got 1 objects in none")]
)
async def test_a_folder_without_classes_is_told(
    store: ObjectStore,
    folder: str,
    fetcher: ObjectFetcher,
    tmp_path: Path,
    *,
    images: dict[str, bytes],
    got: str,
) -> None:
    put(store, images)
    reason, message = await refused(fetcher, tmp_path, folder_at(folder))
    assert reason is Reason.DATA
    assert message == (
        f"{FIELD}: {folder}: expected folders of classes with images below it, {got}"
    )


@on_every_store
@pytest.mark.parametrize("name", ["../../escape.png", "cat/../escape.png", "cat//1.png"])
async def test_a_name_in_a_store_that_would_leave_the_folder_ends_the_copying(
    store: ObjectStore, folder: str, fetcher: ObjectFetcher, tmp_path: Path, name: str
) -> None:
    put(store, pets() | {name: b"x"})
    reason, message = await refused(fetcher, tmp_path, folder_at(folder))
    assert reason is Reason.DATA
    assert message.startswith(f"{FIELD}: {folder}: an object below it is named 'photos/{name}'")
    assert asked(store, "GET") == []
    assert not copy_path(tmp_path, folder).exists()


@on_every_store
async def test_more_objects_than_may_be_are_not_even_listed(
    store: ObjectStore,
    folder: str,
    threads: Threads,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "_LISTED_AT_ONCE", 4)
    store.page = 4
    put(store, pets(50))
    reason, message = await refused(
        fetcher_of(threads, max_objects=10), tmp_path, folder_at(folder)
    )
    assert reason is Reason.DATA
    assert message.startswith(f"{FIELD}: {folder}: more than 10 objects are to be read")
    assert "--max-objects raised" in message
    assert len(asked(store, "LIST")) < 6
    assert asked(store, "GET") == []


@on_every_store
async def test_as_many_objects_as_may_be_are_copied(
    store: ObjectStore, folder: str, threads: Threads, tmp_path: Path
) -> None:
    put(store, pets(5))
    fetched = await fetcher_of(threads, max_objects=10).fetch(folder_at(folder), tmp_path)
    assert fetched.objects == 10


async def test_files_beside_a_folder_count_and_too_many_of_them_are_not_asked_about(
    store: ObjectStore, folder: str, threads: Threads, tmp_path: Path
) -> None:
    store.objects.update({"data/a.csv": b"a", "data/b.csv": b"b"})
    put(store, pets(2))
    files = {"one": "s3://data/a.csv", "two": "s3://data/b.csv"}
    both = NamedObjects(files, folder_at(folder).folders)
    assert (await refused(fetcher_of(threads, max_objects=5), tmp_path, both))[1].startswith(FIELD)
    store.requests.clear()
    _, message = await refused(fetcher_of(threads, max_objects=1), tmp_path, NamedObjects(files))
    assert message.startswith("the job names 2 objects, and may read 1; name fewer")
    assert store.requests == []


@on_every_store
async def test_more_bytes_than_a_job_may_copy_are_refused_before_the_first(
    store: ObjectStore, folder: str, threads: Threads, tmp_path: Path
) -> None:
    put(store, pets())
    reason, message = await refused(fetcher_of(threads, max_bytes=29), tmp_path, folder_at(folder))
    assert reason is Reason.DATA
    assert "take 30 bytes, and it may have copies of 29" in message
    assert asked(store, "GET") == []


@pytest.mark.parametrize(("lacking_bytes", "fits"), [(0, True), (1, False)])
async def test_a_disk_must_have_a_block_for_the_smallest_image(
    store: ObjectStore,
    folder: str,
    fetcher: ObjectFetcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    lacking_bytes: int,
    fits: bool,
) -> None:
    put(store, pets())
    free = fetching._ROOM_BYTES + 6 * 4096 - lacking_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if fits:
        assert (await fetcher.fetch(folder_at(folder), tmp_path)).objects == 6
        return
    reason, message = await refused(fetcher, tmp_path, folder_at(folder))
    assert reason is Reason.DISK_FULL
    assert f"the objects take {6 * 4096} bytes, and {free} are free" in message
    assert not copy_path(tmp_path, folder).exists()


@on_every_store
@pytest.mark.parametrize("trouble", [500, 503, -7])
async def test_a_bad_moment_of_a_list_passes_and_the_next_goes_on_behind_it(
    store: ObjectStore,
    folder: str,
    fetcher: ObjectFetcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    trouble: int,
) -> None:
    monkeypatch.setattr(stores, "_LISTED_AT_ONCE", 2)
    store.page = 2
    put(store, pets())
    store.trouble = lambda request, number: trouble if number in (1, 4, 6) else 0
    await fetcher.fetch(folder_at(folder), tmp_path)
    assert copied(tmp_path, folder) == pets()


@on_every_store
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, "there is no such bucket"),
        (403, "the trainer may not list what is below it"),
        (401, "the store does not know the trainer"),
    ],
)
async def test_a_list_that_is_refused_is_told_at_once(
    store: ObjectStore,
    folder: str,
    fetcher: ObjectFetcher,
    tmp_path: Path,
    *,
    status: int,
    expected: str,
) -> None:
    store.trouble = lambda request, number: status
    reason, message = await refused(fetcher, tmp_path, folder_at(folder))
    assert reason is Reason.DATA
    assert message.startswith(f"{FIELD}: {folder}: {expected}")
    assert len(store.requests) == 1


@pytest.mark.parametrize("store", ["az"], indirect=True)
async def test_a_list_that_begins_anew_and_never_gets_further_ends(
    store: ObjectStore,
    folder: str,
    fetcher: ObjectFetcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "_LISTED_AT_ONCE", 1)
    store.page = 2
    put(store, pets() | {"": b"", "cat/": b""})
    # Each second page fails. Azurite does not know where a list is to go on, and begins anew.
    store.trouble = lambda request, number: 401 if number > 50 else 503 * (number % 2 == 0)
    reason, message = await refused(fetcher, tmp_path, folder_at(folder))
    assert reason is Reason.DATA_UNAVAILABLE
    assert message.startswith(f"{FIELD}: {folder}: its store did not answer properly, 6 times")


@on_every_store
async def test_a_store_that_never_lists_is_unavailable(
    store: ObjectStore, folder: str, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    store.trouble = lambda request, number: 503
    reason, message = await refused(fetcher, tmp_path, folder_at(folder))
    assert reason is Reason.DATA_UNAVAILABLE
    assert message.startswith(f"{FIELD}: {folder}: its store did not answer properly, 6 times")


async def test_a_folder_outside_is_refused_again_when_it_is_read(
    store: ObjectStore, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    reason, message = await refused(fetcher, tmp_path, folder_at("s3://elsewhere/photos"))
    assert reason is Reason.DATA
    assert message.startswith(f"{FIELD}: expected a folder that is, or is below, an --object-root")
    assert store.requests == []


# What changes meanwhile


def _replace(store: ObjectStore) -> None:
    store.objects["data/photos/dog/2.png"] = b"other"


def _remove(store: ObjectStore) -> None:
    store.objects.pop("data/photos/dog/2.png", None)


def _add(store: ObjectStore) -> None:
    store.objects["data/photos/dog/9.png"] = b"new"


Change = Callable[[ObjectStore], None]


@on_every_store
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_replace, "dog/2.png: it was replaced while it was read; clone the job"),
        (_remove, "dog/2.png: there is no such object"),
        (_add, "dog/9.png: it came, went or was replaced while the folder was copied; clone"),
    ],
)
async def test_a_folder_that_changes_before_it_is_copied_is_told_by_the_object(
    store: ObjectStore,
    folder: str,
    fetcher: ObjectFetcher,
    tmp_path: Path,
    *,
    change: Change,
    told: str,
) -> None:
    put(store, pets())

    def changed(request: str, number: int) -> int:
        del number
        if request == "GET data/photos/dog/2.png":
            change(store)
        return 0

    store.trouble = changed
    reason, message = await refused(fetcher, tmp_path, folder_at(folder))
    assert reason is Reason.DATA
    assert message.startswith(f"{FIELD}: {folder}{told}")


@on_every_store
@pytest.mark.parametrize("change", [_replace, _remove, _add])
async def test_a_folder_that_changes_behind_the_copying_is_told(
    store: ObjectStore, folder: str, fetcher: ObjectFetcher, tmp_path: Path, change: Change
) -> None:
    put(store, pets())

    def changed(request: str, number: int) -> int:
        if number == 8:  # the second list, after a list and six objects
            assert request.startswith("LIST")
            change(store)
        return 0

    store.trouble = changed
    reason, message = await refused(fetcher, tmp_path, folder_at(folder))
    assert reason is Reason.DATA
    assert "it came, went or was replaced while the folder was copied" in message


async def test_what_is_no_image_may_change_meanwhile(
    store: ObjectStore, folder: str, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    put(store, pets())

    def changed(request: str, number: int) -> int:
        store.objects["data/photos/log.txt"] = f"{number} {request}".encode()
        return 0

    store.trouble = changed
    assert (await fetcher.fetch(folder_at(folder), tmp_path)).objects == 6


async def test_copying_that_is_cancelled_leaves_no_thread_at_work(
    store: ObjectStore,
    folder: str,
    fetcher: ObjectFetcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go, at_work = threading.Event(), threading.Event()
    written = []
    write = fetching._write

    def held(*args: Any) -> None:
        at_work.set()
        assert go.wait(SECONDS)
        write(*args)
        written.append(copying.done())

    monkeypatch.setattr(fetching, "_write", held)
    put(store, {"cat/1.png": b"a cat"})
    copying = asyncio.ensure_future(fetcher.fetch(folder_at(folder), tmp_path))
    assert await asyncio.to_thread(at_work.wait, SECONDS)
    copying.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert written == [False]


# Work that tasks share


async def test_a_crew_works_on_no_more_at_once_than_it_has_tasks() -> None:
    at_work, most, done = 0, 0, []

    async def work(item: int) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        for _ in range(3):
            await asyncio.sleep(0)
        at_work -= 1
        done.append(item)

    await crew.share(work, range(20), tasks=4)
    assert sorted(done) == list(range(20))
    assert most == 4


async def test_the_first_failure_of_a_crew_ends_the_others() -> None:
    ended = []

    async def work(item: int) -> None:
        if item == 2:
            raise BadName("two")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    with pytest.raises(BadName, match="two"):
        await crew.share(work, range(9), tasks=3)
    assert sorted(ended) == [0, 1]
