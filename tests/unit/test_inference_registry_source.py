"""How the registry source meets trouble, with a registry that does as it is told."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from modelrail.client.errors import ModelrailError
from modelrail.client.errors import Unavailable as ClientUnavailable
from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_inference.model.definition import LoadedModel, LoadError, VersionDefinition
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature
from modelrail_inference.protocol.config.model_config import read_settings
from modelrail_inference.protocol.registry_adapter import RegistryAdapter
from modelrail_inference.repository.repository import Repository
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.registry import source as registry_source
from modelrail_inference.sources.registry.cache import Manifest, ManifestFile, ModelCache
from modelrail_inference.sources.registry.model_registry import RegistryUnreachableError
from modelrail_inference.sources.registry.reference import Reference
from modelrail_inference.sources.registry.source import RegistrySource
from modelrail_server.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable

GOOD = b"the graph"
PRODUCTION = ModelAliasName("m", "production")


class FakeRegistry:
    """Serves one version of one file."""

    def __init__(self) -> None:
        self.version: int | None = 1
        self.sent = {"model.onnx": GOOD}
        self.named = {"model.onnx": GOOD}
        self.downloads = 0
        self.watched: list[Sequence[ModelName]] = []
        self.watch_failures: list[Exception] = []
        self.woken = asyncio.Event()

    async def resolve(self, reference: Reference) -> ModelVersionName | None:
        return None if self.version is None else ModelVersionName(reference.model, self.version)

    async def models_with(self, alias: str) -> AsyncIterator[ModelName]:
        yield ModelName("m")

    async def manifest(self, version: ModelVersionName) -> Manifest:
        return Manifest(
            version,
            tuple(
                ManifestFile(path, hashlib.sha256(content).hexdigest(), len(content))
                for path, content in self.named.items()
            ),
        )

    async def download(self, version: ModelVersionName, folder: Path) -> None:
        self.downloads += 1
        for path, content in self.sent.items():
            (folder / path).write_bytes(content)

    async def changes(
        self, models: Sequence[ModelName]
    ) -> AsyncIterator[ModelName | ModelAliasName | None]:
        self.watched.append(models)
        if self.watch_failures:
            raise self.watch_failures.pop()
        yield None
        while True:
            await self.woken.wait()
            self.woken.clear()
            yield PRODUCTION


class Loader:
    """Fails as often as it is told."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []

    def load(self, definition: VersionDefinition) -> LoadedModel:
        if self.failures:
            raise self.failures.pop()
        return LoadedModel(
            definition.model, definition.number, Signature((), ()), 0, Provider.CPU, session=None
        )


class Harness:
    """A source and what it is made of."""

    def __init__(self, folder: Path, *references: Reference) -> None:
        self.registry = FakeRegistry()
        self.loader = Loader()
        self.cache = ModelCache(folder)
        self.repository = Repository(self.loader)
        self.files = FileWork()
        self.source = RegistrySource(
            references or [PRODUCTION],
            self.registry,
            self.cache,
            self.repository,
            self.files,
            read_settings=read_settings,
            max_models=10_000,
        )

    def ready(self) -> list[int]:
        return [version.number for version in self.repository.ready_versions("m")]

    @asynccontextmanager
    async def following(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.source.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])
            await self.repository.close()


@pytest.fixture
async def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Harness]:
    monkeypatch.setattr(registry_source, "_FIRST_RETRY_SECONDS", 0.01)
    made = Harness(tmp_path)
    yield made
    made.files.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_file_may_have_any_name(harness: Harness) -> None:
    harness.registry.sent = harness.registry.named = {"model.onnx": GOOD, "manifest.json": b"{}"}
    await harness.source.load("m")
    assert harness.ready() == [1]
    assert harness.registry.downloads == 1
    version = ModelVersionName("m", 1)
    assert harness.cache.find(version) == await harness.registry.manifest(version)


async def test_files_that_are_not_those_of_the_manifest_are_not_fetched_for_ever(
    harness: Harness,
) -> None:
    harness.registry.sent = {"model.onnx": b"another"}
    async with harness.following():
        await until(lambda: "do not match" in harness.source.problem("m"))
        for _ in range(100):
            await asyncio.sleep(0)
        assert harness.registry.downloads == 2
        with pytest.raises(InvalidArgument, match="do not match"):
            await harness.source.load("m")


async def test_what_an_earlier_download_left_behind_does_no_harm(harness: Harness) -> None:
    (harness.cache.staging(ModelVersionName("m", 1)) / "stale").write_bytes(b"x")
    await harness.source.load("m")
    assert harness.ready() == [1]


async def test_loading_what_does_not_exist_is_an_error(harness: Harness) -> None:
    harness.registry.version = None
    with pytest.raises(NotFound, match="models/m/aliases/production does not exist yet"):
        await harness.source.load("m")
    harness.registry.version = 1
    await harness.source.load("m")
    assert harness.ready() == [1]


async def test_loading_what_somebody_unloads_at_the_same_time_is_an_error(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unload_first(reference: Reference) -> None:
        model = harness.source._models["m"]
        model.unloaded = True

    monkeypatch.setattr(harness.registry, "resolve", unload_first)
    with pytest.raises(FailedPrecondition, match="unloaded meanwhile"):
        await harness.source.load("m")


async def test_a_defect_in_the_watch_is_logged_and_ends_nothing(harness: Harness) -> None:
    harness.registry.watch_failures = [KeyError("x"), RegistryUnreachableError("away")]
    with structlog.testing.capture_logs() as logs:
        async with harness.following() as task:
            await until(lambda: len(harness.registry.watched) == 3)
            await until(lambda: harness.ready() == [1])
            harness.registry.version = 2
            harness.registry.woken.set()
            await until(lambda: harness.ready() == [2])
            assert not task.done()
    (away, defect) = (line for line in logs if line["event"] == "registry not watched")
    assert away["exc_info"] is None
    assert isinstance(defect["exc_info"], KeyError)


@pytest.mark.parametrize(("count", "watched"), [(1024, 1024), (1025, 0)])
async def test_more_models_than_a_watch_takes_are_watched_without_names(
    tmp_path: Path, count: int, watched: int
) -> None:
    many = [ModelAliasName(f"m{index}", "production") for index in range(count)]
    harness = Harness(tmp_path, *many)
    harness.registry.version = None
    async with harness.following():
        await until(lambda: bool(harness.registry.watched))
    harness.files.close()
    assert len(harness.registry.watched[0]) == watched


async def test_a_defect_of_the_server_is_unavailable_and_tried_again(harness: Harness) -> None:
    harness.loader.failures = [RuntimeError("no thread")]
    with pytest.raises(Unavailable, match="internal error"):
        await harness.source.load("m")
    harness.loader.failures = [RuntimeError("no thread")]
    async with harness.following():
        await until(lambda: harness.ready() == [1])


async def test_a_bad_file_is_the_callers_error_and_not_tried_again(harness: Harness) -> None:
    harness.loader.failures = [LoadError("no model") for _ in range(20)]
    with pytest.raises(InvalidArgument, match="no model"):
        await harness.source.load("m")
    async with harness.following():
        await until(lambda: len(harness.loader.failures) <= 18)
        await asyncio.sleep(0.3)  # in which one that can help would be tried several times
        assert len(harness.loader.failures) >= 17, "only what the watch woke at first"


async def test_a_server_stays_ready_when_a_new_version_cannot_be_loaded(harness: Harness) -> None:
    async with harness.following():
        await until(lambda: harness.ready() == [1])
        await until(harness.source.ready)
        harness.registry.version = 2
        harness.loader.failures = [LoadError("no model")]
        with pytest.raises(InvalidArgument):
            await harness.source.load("m")
        assert harness.source.ready()


async def test_callers_learn_neither_paths_nor_addresses(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(version: ModelVersionName) -> Path:
        raise OSError(28, "No space left on device", "/secret/place")

    monkeypatch.setattr(harness.cache, "staging", full)
    with structlog.testing.capture_logs() as logs, pytest.raises(Unavailable) as caught:
        await harness.source.load("m")
    for told in (caught.value.message, harness.source.problem("m")):
        assert told == "the files cannot be written: No space left on device"
    assert "/secret/place" in logs[0]["reason"]


class Away:
    """A client without a server."""

    async def get_alias(self, name: str) -> None:
        raise self.error

    def __init__(self, error: ModelrailError) -> None:
        self.error = error


async def test_the_address_of_the_registry_is_for_the_log_only() -> None:
    address = "ipv6:%5B::1%5D:1: Failed to connect to remote host"
    adapter = RegistryAdapter(Away(ClientUnavailable(address)))  # type: ignore[arg-type]
    with pytest.raises(RegistryUnreachableError) as caught:
        await adapter.resolve(PRODUCTION)
    assert str(caught.value) == "the registry cannot be reached (UNAVAILABLE)"
    assert address in caught.value.detail
