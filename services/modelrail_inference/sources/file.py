"""One ONNX file, served under a name, without a registry."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from modelrail.names import check_id
from modelrail_inference.repository.definition import LoadError, VersionDefinition
from modelrail_inference.repository.repository import Repository
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.source import load_error, unknown_model

_NUMBER = 1


class FileSource:
    """Serves a private copy of the file, which the service may read and nobody changes meanwhile.

    External data is taken along only from `FILE.data` beside the file, the name that PyTorch
    gives it, so a file from elsewhere cannot make the server read others of its neighbours.

    Args:
        path: The ONNX file.
        name: Name of the model.
        folder: Folder for the copy; it holds nothing else.
        repository: Where the model goes.
        files: Copies the file.
    """

    def __init__(
        self, path: Path, name: str, folder: Path, repository: Repository, files: FileWork
    ) -> None:
        self._path = path
        self._name = check_id(name, what="model name")
        self._folder = folder
        self._repository = repository
        self._files = files
        self._wanted = True

    async def run(self) -> None:
        """Loads the file.

        Raises:
            LoadError: It cannot be served, so there is nothing to serve.
        """
        await self._reconcile()

    def ready(self) -> bool:
        """Whether the model is loaded, or was unloaded on purpose."""
        return not self._wanted or bool(self._repository.ready_versions(self._name))

    def names(self) -> list[str]:
        """Returns the one name."""
        return [self._name]

    def problem(self, name: str) -> str:
        """Returns nothing: what is wrong with the file is told by its version."""
        return ""

    async def load(self, name: str) -> None:
        """Loads the file as it is now."""
        if name != self._name:
            raise unknown_model(name)
        self._wanted = True
        try:
            await self._reconcile()
        except LoadError as error:
            raise load_error(name, error) from error

    async def unload(self, name: str) -> None:
        """Takes the model away."""
        if name != self._name:
            raise unknown_model(name)
        self._wanted = False
        await self._repository.reconcile(name, ())

    async def _reconcile(self) -> None:
        definition = await self._files.run(self._copy)
        await self._repository.reconcile(self._name, [definition])

    def _copy(self) -> VersionDefinition:
        target = self._folder / "model.onnx"
        try:
            status = self._path.stat()
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for old in self._folder.iterdir():
                old.unlink()
            shutil.copyfile(self._path, target)
            data = self._path.with_name(self._path.name + ".data")
            if data.is_file():
                shutil.copyfile(data, self._folder / data.name)
        except OSError as error:
            raise LoadError(f"'{self._path.name}' cannot be read: {error.strerror}") from error
        return VersionDefinition(
            model=self._name,
            number=_NUMBER,
            path=target,
            fingerprint=f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}",
        )


def name_of_file(path: Path) -> str:
    """Returns the model name that a file gets: its stem in the form of an id.

    Raises:
        InvalidName: Nothing of the stem is left.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower())
    name = re.sub(r"\.{2,}", ".", name).strip("._-")[:64].strip("._-")
    return check_id(name, what="model name")
