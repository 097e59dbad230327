"""One ONNX file, served under a name, without a registry."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import structlog

from modelrail.names import check_id
from modelrail_inference.model.definition import MODEL_FILE, LoadError, VersionDefinition
from modelrail_inference.repository.repository import Repository
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.source import load_error, os_reason, unknown_model

_log = structlog.get_logger(__name__)

_NUMBER = 1
_UNFINISHED = ".new-"
_COPY = "copy-"


class FileSource:
    """Serves a private copy of the file, which the service may read and nobody changes meanwhile.

    External data is taken along only from `FILE.data` beside the file, the name that PyTorch
    gives it, so a file from elsewhere cannot make the server read others of its neighbours.

    Args:
        path: The ONNX file.
        name: Name of the model.
        folder: Folder for copies, each in a folder of its own. Only such folders are deleted from
            it, and not the one that holds `path`, if it should lie there.
        repository: Where the model goes.
        files: Copies the file.
        vouched: Whether the operator vouches for the file.
        unloaded: Whether somebody took the model away before this process began.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        folder: Path,
        repository: Repository,
        files: FileWork,
        *,
        vouched: bool,
        unloaded: bool = False,
    ) -> None:
        self._path = path
        self._name = check_id(name, what="model name")
        self._folder = folder
        self._repository = repository
        self._files = files
        self._vouched = vouched
        self._wanted = not unloaded
        # Held from before the file is copied: a load must not end after a later unload.
        self._changes = asyncio.Lock()
        self._copied: VersionDefinition | None = None

    async def start(self) -> None:
        """Loads the file, unless it was taken away.

        Raises:
            LoadError: It cannot be served, so there is nothing to serve.
        """
        async with self._changes:
            if self._wanted:
                await self._reconcile()

    async def run(self) -> None:
        """Does nothing: the file is loaded anew only when somebody asks for that."""

    def ready(self) -> bool:
        """Whether the model is loaded, or was unloaded on purpose."""
        return not self._wanted or bool(self._repository.ready_versions(self._name))

    async def names(self) -> list[str]:
        """Returns the one name."""
        return [self._name]

    def problem(self, name: str) -> str:
        """Returns nothing: what is wrong with the file is told by its version."""
        return ""

    async def load(self, name: str) -> None:
        """Loads the file as it is now."""
        if name != self._name:
            raise unknown_model(name)
        async with self._changes:
            self._wanted = True
            try:
                await self._reconcile()
            except LoadError as error:
                raise load_error(name, error) from error

    async def unload(self, name: str) -> None:
        """Takes the model away."""
        if name != self._name:
            raise unknown_model(name)
        async with self._changes:
            self._wanted = False
            await self._repository.reconcile(name, ())

    async def _reconcile(self) -> None:
        self._copied = await self._files.run(self._copy, self._copied)
        await self._repository.reconcile(self._name, [self._copied])

    def _copy(self, last: VersionDefinition | None) -> VersionDefinition:
        """Returns the last copy, or a new one if the file or its data changed since."""
        try:
            sources = self._sources()
            fingerprint = _fingerprint(sources)
            if last and last.fingerprint == fingerprint and last.path.is_file():
                return last
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._folder))
            for name, source in sources.items():
                shutil.copyfile(source, unfinished / name)
            copy = unfinished.with_name(_COPY + unfinished.name.removeprefix(_UNFINISHED))
            unfinished.rename(copy)
            self._delete_all_but(copy)
        except OSError as error:
            _log.warning("file not copied", model=self._name, reason=str(error))
            raise LoadError(f"'{self._path.name}' cannot be copied: {os_reason(error)}") from error
        return VersionDefinition(
            model=self._name,
            number=_NUMBER,
            path=copy / MODEL_FILE,
            fingerprint=fingerprint,
            vouched=self._vouched,
        )

    def _sources(self) -> dict[str, Path]:
        data = self._path.with_name(self._path.name + ".data")
        sources = {MODEL_FILE: self._path}
        if data.is_file():
            sources[data.name] = data
        return sources

    def _delete_all_but(self, copy: Path) -> None:
        for old in self._folder.iterdir():
            ours = old.name.startswith((_COPY, _UNFINISHED)) and old.is_dir()
            if ours and old != copy and not self._path.resolve().is_relative_to(old.resolve()):
                shutil.rmtree(old)


def _fingerprint(sources: Mapping[str, Path]) -> str:
    """Returns what changes when a file does; contents are not read, as files can be large."""
    stats = [(name, source.stat()) for name, source in sources.items()]
    return "/".join(f"{n}-{s.st_size}-{s.st_mtime_ns}-{s.st_ino}" for n, s in stats)
