"""How models come from a folder and from a file, with a loader that does as it is told."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from modelrail_inference.fleet.single import SingleProcess
from modelrail_inference.model.definition import (
    LoadedModel,
    LoadError,
    ModelSettings,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.model.provider import Provider
from modelrail_inference.model.signature import Signature
from modelrail_inference.protocol.config.model_config import read_settings
from modelrail_inference.repository.repository import Repository
from modelrail_inference.sources import folder as folder_source
from modelrail_inference.sources.file import FileSource
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.folder import FolderSource
from modelrail_inference.sources.source import Source
from modelrail_server.errors import InvalidArgument
from tests.thread_gate import Gate


class Loader:
    """Fails, or waits at a gate, as it is told."""

    def __init__(self) -> None:
        self.loads = 0
        self.loaded: list[LoadedModel] = []
        self.gate: Gate | None = None
        self.failure: LoadError | None = None

    def load(self, definition: VersionDefinition) -> LoadedModel:
        self.loads += 1
        if self.gate is not None:
            self.gate.wait()
        if self.failure is not None:
            raise self.failure
        loaded = LoadedModel(
            definition.model, definition.number, Signature((), ()), 0, Provider.CPU, Session()
        )
        self.loaded.append(loaded)
        return loaded


class Session:
    """Stands for the memory that a loaded file takes."""

    metadata: Mapping[str, str] = {}

    def run(self, inputs: Any, outputs: Any, run: Any) -> list[Any]:
        raise NotImplementedError


class Harness:
    """A source, and what it is made of."""

    def __init__(self, folder: Path) -> None:
        self.files = FileWork()
        self.loader = Loader()
        self.repository = Repository(self.loader)
        self.model_folder = folder / "models" / "m"
        self.graph = self.model_folder / "1" / "model.onnx"
        self.graph.parent.mkdir(parents=True)
        self.graph.write_bytes(b"graph")
        self.file_gate: Gate | None = None
        self.source: Source = FolderSource(
            folder / "models", self.repository, self.read, self.files, vouched=True
        )

    def fleet(self) -> SingleProcess:
        return SingleProcess(self.repository, self.source)

    async def begin(self) -> None:
        await self.source.start()
        await self.source.run()

    def change(self) -> None:
        """Changes the model's file."""
        self.graph.write_bytes(self.graph.read_bytes() + b"more")

    def hold_files(self, monkeypatch: pytest.MonkeyPatch) -> Gate:
        """Has whoever reads the model's files wait."""
        (self.model_folder / "config.pbtxt").touch()
        self.file_gate = Gate()
        return self.file_gate

    def read(self, path: Path, name: str) -> ModelSettings:
        if self.file_gate is not None:
            self.file_gate.wait()
        return read_settings(path, name)


class FileHarness(Harness):
    """The same with the file alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source = FileSource(
            self.graph, "m", folder / "copies", self.repository, self.files, vouched=True
        )

    def hold_files(self, monkeypatch: pytest.MonkeyPatch) -> Gate:
        gate, copy = Gate(), shutil.copyfile

        def held(source: Path, target: Path) -> None:
            gate.wait()
            copy(source, target)

        monkeypatch.setattr(shutil, "copyfile", held)
        return gate


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    made = Harness(tmp_path)
    yield made
    await made.repository.close()
    made.files.close()


@pytest.fixture(params=[Harness, FileHarness])
async def either(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    made: Harness = request.param(tmp_path)
    yield made
    await made.repository.close()
    made.files.close()


async def test_a_file_is_there_before_the_server_listens_and_a_folder_comes_later(
    either: Harness,
) -> None:
    await either.source.start()
    assert either.source.ready() is isinstance(either, FileHarness)
    await either.source.run()
    assert either.source.ready()
    assert either.loader.loads == 1


async def test_a_server_is_ready_once_its_model_serves(either: Harness) -> None:
    either.loader.failure = LoadError("no good")
    with suppress(LoadError):
        await either.begin()
    assert not either.source.ready()
    either.loader.failure = None
    await either.source.load("m")
    assert either.source.ready()
    await either.source.unload("m")
    assert either.source.ready()


async def test_a_server_stays_ready_while_a_model_is_loaded_anew(either: Harness) -> None:
    await either.begin()
    either.change()
    gate = either.loader.gate = Gate()
    load = asyncio.create_task(either.source.load("m"))
    await gate.reached.wait()
    assert either.source.ready()
    gate.open()
    await load
    assert either.source.ready()


async def test_a_server_stays_ready_when_a_model_cannot_be_loaded_anew(either: Harness) -> None:
    await either.begin()
    either.change()
    either.loader.failure = LoadError("no good")
    with pytest.raises(InvalidArgument):
        await either.source.load("m")
    assert either.source.ready()


async def test_a_server_stays_ready_when_the_caller_of_a_load_leaves(either: Harness) -> None:
    await either.begin()
    either.change()
    gate = either.loader.gate = Gate()
    load = asyncio.create_task(either.source.load("m"))
    await gate.reached.wait()
    load.cancel()
    await asyncio.wait([load])
    assert either.source.ready()
    gate.open()


async def test_a_model_that_comes_later_cannot_make_the_server_unready(harness: Harness) -> None:
    await harness.begin()
    (harness.model_folder.parent / "later").mkdir()
    with pytest.raises(InvalidArgument):
        await harness.source.load("later")
    assert harness.source.ready()


async def a_while() -> None:
    """Lets everything happen that waits for no thread."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_unload_while_the_start_reads_the_files_is_not_undone(
    either: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = either.hold_files(monkeypatch)
    start = asyncio.create_task(either.begin())
    await gate.reached.wait()
    unload = asyncio.create_task(either.source.unload("m"))
    await a_while()
    gate.open()
    await asyncio.gather(start, unload)
    assert not either.repository.ready_versions("m")


async def test_an_unload_while_a_load_reads_the_files_is_not_undone(
    either: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await either.begin()
    either.change()
    gate = either.hold_files(monkeypatch)
    load = asyncio.create_task(either.source.load("m"))
    await gate.reached.wait()
    unload = asyncio.create_task(either.source.unload("m"))
    await a_while()
    gate.open()
    await asyncio.gather(load, unload)
    assert not either.repository.ready_versions("m")


async def test_an_unload_while_a_load_is_tried_again_is_not_undone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_source, "_FIRST_RETRY_SECONDS", 0.001)
    harness.loader.failure = TransientLoadError("not now")
    gate = harness.hold_files(monkeypatch)
    start = asyncio.create_task(harness.begin())
    await gate.reached.wait()
    second = harness.hold_files(monkeypatch)
    gate.open()
    await second.reached.wait()
    harness.loader.failure = None
    unload = asyncio.create_task(harness.source.unload("m"))
    await a_while()
    second.open()
    await asyncio.gather(start, unload)
    assert not harness.repository.ready_versions("m")


async def test_what_fails_for_now_at_the_start_is_tried_until_it_serves(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_source, "_FIRST_RETRY_SECONDS", 0.001)
    harness.loader.failure = TransientLoadError("not now")
    gate = harness.loader.gate = Gate()
    start = asyncio.create_task(harness.begin())
    await gate.reached.wait()
    second = harness.loader.gate = Gate()
    gate.open()
    await second.reached.wait()
    harness.loader.failure = None
    second.open()
    await start
    assert harness.loader.loads == 2
    assert harness.source.ready()


async def left(call: asyncio.Task[None]) -> None:
    """Has the caller leave."""
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_load_goes_on_without_its_caller_and_serves_whoever_asks_next(
    either: Harness,
) -> None:
    fleet = either.fleet()
    gate = either.loader.gate = Gate()
    first = asyncio.create_task(fleet.load("m"))
    await gate.reached.wait()
    await left(first)
    second = asyncio.create_task(fleet.load("m"))
    await a_while()
    gate.open()
    await second
    assert await fleet.model_ready("m", "")
    assert either.loader.loads == 1


async def test_callers_who_leave_while_another_load_runs_leave_nothing_behind(
    either: Harness,
) -> None:
    fleet = either.fleet()
    gate = either.loader.gate = Gate()
    calls = [asyncio.create_task(fleet.load("m"))]
    await gate.reached.wait()
    before = asyncio.all_tasks()
    calls += [asyncio.create_task(fleet.load("m")) for _ in range(10)]
    await a_while()
    for call in calls:
        await left(call)
    assert asyncio.all_tasks() < before
    gate.open()
    await fleet.load("m")
    assert either.loader.loads == 1


async def test_an_unload_takes_away_what_is_loaded_for_a_caller_who_left(either: Harness) -> None:
    fleet = either.fleet()
    gate = either.loader.gate = Gate()
    load = asyncio.create_task(fleet.load("m"))
    await gate.reached.wait()
    await left(load)
    unload = asyncio.create_task(fleet.unload("m"))
    await a_while()
    gate.open()
    await unload
    await a_while()
    assert not either.repository.ready_versions("m")
    assert [loaded.session for loaded in either.loader.loaded] == [None]


async def test_the_end_frees_what_is_loaded_for_a_caller_who_left(either: Harness) -> None:
    fleet = either.fleet()
    gate = either.loader.gate = Gate()
    load = asyncio.create_task(fleet.load("m"))
    await gate.reached.wait()
    await left(load)
    await fleet.close()
    end = asyncio.create_task(either.repository.close())
    await a_while()
    gate.open()
    await end
    assert [loaded.session for loaded in either.loader.loaded] == [None]


async def test_what_fails_after_its_caller_has_left_is_told_in_the_log(harness: Harness) -> None:
    fleet = harness.fleet()
    gate = harness.loader.gate = Gate()
    harness.loader.failure = LoadError("no good")
    load = asyncio.create_task(fleet.load("m"))
    await gate.reached.wait()
    await left(load)
    with structlog.testing.capture_logs() as logs:
        gate.open()
        with pytest.raises(InvalidArgument):
            await fleet.load("m")
    (told,) = (line for line in logs if "after its caller had left" in line["event"])
    assert told["model"] == "m"
    assert "no good" in told["reason"]


async def test_weights_that_change_in_a_folder_of_a_version_are_loaded(harness: Harness) -> None:
    weights = harness.model_folder / "1" / "data" / "weights.bin"
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    await harness.source.load("m")
    await harness.source.load("m")
    assert harness.loader.loads == 1
    weights.write_bytes(b"other")
    await harness.source.load("m")
    assert harness.loader.loads == 2


async def test_a_version_that_is_named_twice_is_loaded_once(harness: Harness) -> None:
    config = "version_policy { specific { versions: [1, 1] } }"
    (harness.model_folder / "config.pbtxt").write_text(config)
    await harness.source.load("m")
    assert harness.loader.loads == 1


async def test_versions_without_a_folder_are_named_with_those_that_have_one(
    harness: Harness,
) -> None:
    (harness.model_folder / "3").mkdir()
    config = "version_policy { specific { versions: [1, 2, 4] } }"
    (harness.model_folder / "config.pbtxt").write_text(config)
    with pytest.raises(InvalidArgument, match=r"no folder for version 2, 4; found: 1, 3$"):
        await harness.source.load("m")


async def test_a_model_without_any_version_is_told_what_is_missing(harness: Harness) -> None:
    (harness.model_folder / "1").rename(harness.model_folder / "v1")
    with pytest.raises(InvalidArgument, match=r"no folder of a version, such as '1'$"):
        await harness.source.load("m")
