"""How models come from a folder and from a file, with a loader that does as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelrail_inference.protocol.model_config import read_settings
from modelrail_inference.repository.definition import LoadedModel, VersionDefinition
from modelrail_inference.repository.repository import Repository
from modelrail_inference.runtime.provider import Provider
from modelrail_inference.signature import Signature
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.folder import FolderSource
from modelrail_server.errors import InvalidArgument


class Loader:
    """Counts what it loads."""

    def __init__(self) -> None:
        self.loads = 0

    def load(self, definition: VersionDefinition) -> LoadedModel:
        self.loads += 1
        return LoadedModel(
            definition.model, definition.number, Signature((), ()), 0, Provider.CPU, session=None
        )


class Harness:
    """A source, and what it is made of."""

    def __init__(self, tmp_path: Path) -> None:
        self.files = FileWork()
        self.loader = Loader()
        self.repository = Repository(self.loader)
        self.model_folder = tmp_path / "models" / "m"
        (self.model_folder / "1").mkdir(parents=True)
        (self.model_folder / "1" / "model.onnx").write_bytes(b"graph")
        self.source = FolderSource(
            tmp_path / "models", self.repository, read_settings, self.files, vouched=True
        )


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    made = Harness(tmp_path)
    yield made
    await made.repository.close()
    made.files.close()


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
