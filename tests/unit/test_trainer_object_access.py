"""Who may read what of an object store, and who gets to see by what it may be read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from modelrail_trainer.execution.processes.local import LocalExecutor
from modelrail_trainer.isolation.limits import JobLimits
from modelrail_trainer.jobs.state import Reason
from modelrail_trainer.objects import store as stores
from modelrail_trainer.objects.fetching import Fetched, FetchFailed, ObjectFetcher
from modelrail_trainer.objects.named import NamedObjects
from modelrail_trainer.objects.roots import ObjectRoots
from modelrail_trainer.objects.uri import copy_path
from modelrail_trainer.spec import ImageFolder
from modelrail_trainer.threads import Threads
from tests.azurite import KEY, shared_access_signature
from tests.object_store import SCHEMES, ObjectStore, on_every_store, store_of

FIELD = "dataset.table.paths[0]"
FOLDER_FIELD = "dataset.images.folder.path"
STRANGER = {
    "s3": "the trainer may not {} it; have its credentials looked at",
    "gs": "the store does not know the trainer; have its credentials looked at",
    "az": "the trainer may not {} it; have its credentials looked at",
}


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(stores, "_FIRST_RETRY_SECONDS", 0.001)
    with store_of(request, monkeypatch) as store:
        store.objects.update({"data/iris.csv": b"1,2", "data/photos/cat/1.png": b"cat"})
        yield store


@pytest.fixture
async def fetcher() -> AsyncIterator[ObjectFetcher]:
    threads = Threads()
    yield ObjectFetcher(
        lambda _: NamedObjects(),
        ObjectRoots([f"{scheme}://{bucket}" for scheme in SCHEMES for bucket in ("data", "gone")]),
        threads,
        max_objects=100,
        max_bytes=1 << 20,
    )
    threads.close()


def an_object(uri: str) -> NamedObjects:
    return NamedObjects({FIELD: uri})


def a_folder(uri: str) -> NamedObjects:
    return NamedObjects(folders={FOLDER_FIELD: ImageFolder(path=uri)})


def set_all(patch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        patch.setenv(name, value)


async def refused(
    fetcher: ObjectFetcher, directory: Path, named: NamedObjects, secrets: tuple[str, ...]
) -> tuple[Reason, str]:
    """Returns what the owner of a job is told, when nobody is told too much."""
    with capture_logs() as logs, pytest.raises(FetchFailed) as caught:
        await fetcher.fetch(named, directory)
    error = caught.value.error
    assert "127.0.0.1" not in error.message
    assert logs  # which say more, to the operator
    for secret in secrets:
        assert secret not in error.message
        assert secret not in repr(logs)
    return error.reason, error.message


# What a store says


@on_every_store
async def test_a_trainer_that_the_store_does_not_let_in_is_told_and_asks_once(
    store: ObjectStore, fetcher: ObjectFetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, store.strangers)
    uri, folder = store.uri("iris.csv"), store.uri("photos")
    told = await refused(fetcher, tmp_path, an_object(uri), store.secrets)
    assert told == (Reason.DATA, f"{FIELD}: {uri}: {STRANGER[store.scheme].format('read')}")
    told = await refused(fetcher, tmp_path, a_folder(folder), store.secrets)
    expected = STRANGER[store.scheme].format("list what is below")
    assert told == (Reason.DATA, f"{FOLDER_FIELD}: {folder}: {expected}")
    assert store.requests == ["HEAD data/iris.csv", "LIST data/photos/"]


@on_every_store
async def test_what_is_not_there_is_told(
    store: ObjectStore, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    for uri in (store.uri("none.csv"), f"{store.scheme}://gone/iris.csv"):
        told = await refused(fetcher, tmp_path, an_object(uri), store.secrets)
        assert told == (Reason.DATA, f"{FIELD}: {uri}: there is no such object")
    folder = f"{store.scheme}://gone/photos"
    told = await refused(fetcher, tmp_path, a_folder(folder), store.secrets)
    assert told == (Reason.DATA, f"{FOLDER_FIELD}: {folder}: there is no such bucket")
    assert len(store.requests) == 3


@on_every_store
async def test_a_store_that_is_nowhere_is_unavailable(
    store: ObjectStore, fetcher: ObjectFetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, store.nowhere)
    uri = store.uri("photos")
    for field, named in ((FIELD, an_object(uri)), (FOLDER_FIELD, a_folder(uri))):
        reason, message = await refused(fetcher, tmp_path, named, store.secrets)
        assert reason is Reason.DATA_UNAVAILABLE
        assert message.startswith(f"{field}: {uri}: its store did not answer properly, 6 times")
    assert store.requests == []


@on_every_store
async def test_an_object_that_goes_before_it_is_read_is_told(
    store: ObjectStore, fetcher: ObjectFetcher, tmp_path: Path
) -> None:
    def gone(request: str, number: int) -> int:
        del number
        if request == "GET data/iris.csv":
            store.objects.pop("data/iris.csv", None)
        return 0

    store.trouble = gone
    uri = store.uri("iris.csv")
    told = await refused(fetcher, tmp_path, an_object(uri), store.secrets)
    assert told == (Reason.DATA, f"{FIELD}: {uri}: there is no such object")


# What lets the trainer in


@pytest.mark.parametrize("store", ["az"], indirect=True)
async def test_the_key_of_an_account_opens_its_containers_like_a_signature(
    store: ObjectStore, fetcher: ObjectFetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_SAS_TOKEN")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    both = NamedObjects(
        an_object(store.uri("iris.csv")).files, a_folder(store.uri("photos")).folders
    )
    assert await fetcher.fetch(both, tmp_path) == Fetched(2, 6)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY[::-1].replace("=", "A"))
    reason, message = await refused(fetcher, tmp_path, both, store.secrets)
    assert (reason, "may not read it" in message) == (Reason.DATA, True)


@pytest.mark.parametrize("store", ["az"], indirect=True)
async def test_who_may_read_objects_but_not_list_them_is_told_so(
    store: ObjectStore, fetcher: ObjectFetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", shared_access_signature(permissions="r"))
    uri, folder = store.uri("iris.csv"), store.uri("photos")
    await fetcher.fetch(an_object(uri), tmp_path)
    assert copy_path(tmp_path, uri).read_bytes() == b"1,2"
    reason, message = await refused(fetcher, tmp_path, a_folder(folder), store.secrets)
    assert reason is Reason.DATA
    assert "the trainer may not list what is below it" in message


KEY_FILE = {"type": "service_account", "private_key": "the-secret"}
ACCOUNT = {"AZURE_STORAGE_ACCOUNT_NAME": "x", "AZURE_ALLOW_HTTP": "true"}


@pytest.mark.parametrize(
    ("scheme", "environment"),
    [
        # A key file that was encoded once too often, and one that is none.
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(json.dumps(KEY_FILE))}),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": '"the-secret"'}),
        ("az", {**ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": "the-secret"}),
        ("az", {**ACCOUNT, "AZURE_STORAGE_SAS_TOKEN": "sig=x&the-secret"}),
        # No header can have a line break.
        ("s3", {"AWS_ACCESS_KEY_ID": "the-key-id\n"}),
        ("gs", {"GOOGLE_BEARER_TOKEN": "the-secret\n"}),
        ("az", {**ACCOUNT, "AZURE_STORAGE_TOKEN": "the-secret\n"}),
    ],
)
@pytest.mark.parametrize("kind", [an_object, a_folder])
async def test_credentials_that_are_none_are_told_and_not_shown(
    store: ObjectStore,
    fetcher: ObjectFetcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    kind: Callable[[str], NamedObjects],
    scheme: str,
    environment: dict[str, str],
) -> None:
    set_all(monkeypatch, environment)
    named = kind(f"{scheme}://data/photos")
    reason, message = await refused(fetcher, tmp_path, named, ("the-secret",))
    assert reason is Reason.DATA
    assert message.endswith("the trainer is not set up for its store; have its log looked at")
    assert store.requests == []


@pytest.mark.parametrize(
    ("status", "requests", "reason", "expected"),
    [
        (401, 1, Reason.DATA, "the store does not know the trainer; have its credentials looked"),
        (400, 1, Reason.DATA, "the store does not know the trainer; have its credentials looked"),
        (503, 6, Reason.DATA_UNAVAILABLE, "its store did not answer properly, 6 times"),
    ],
)
@pytest.mark.parametrize("kind", [an_object, a_folder])
async def test_a_trainer_that_gets_no_token_for_its_secret_is_told_so(
    store: ObjectStore,
    fetcher: ObjectFetcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    kind: Callable[[str], NamedObjects],
    status: int,
    requests: int,
    reason: Reason,
    expected: str,
) -> None:
    environment = {
        **ACCOUNT,
        "AZURE_ENDPOINT": store.address,
        "AZURE_AUTHORITY_HOST": store.address,
        "AZURE_STORAGE_TENANT_ID": "here",
        "AZURE_STORAGE_CLIENT_ID": "the-trainer",
        "AZURE_STORAGE_CLIENT_SECRET": "the-client-secret",
    }
    set_all(monkeypatch, environment)
    store.trouble = lambda request, number: status
    named = kind("az://data/photos")
    told = await refused(fetcher, tmp_path, named, ("the-client-secret",))
    assert told[0] is reason
    assert expected in told[1]
    assert store.requests == ["POST here/oauth2/v2.0/token"] * requests


# What a job gets to see


@on_every_store
def test_a_job_has_nothing_of_what_lets_the_trainer_in(store: ObjectStore, tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin", **store.friends}
    assert any(secret in repr(environ) for secret in store.secrets)
    executor = LocalExecutor(
        ("worker",), threads_per_job=1, limits=JobLimits(file_bytes=1), environ=environ
    )
    environment = executor.environment(tmp_path)
    assert environment["PATH"] == "/usr/bin"
    assert not store.friends.keys() & environment.keys()
    assert not any(secret in repr(environment) for secret in store.secrets)
