"""Models from a folder in Triton's layout: `NAME/config.pbtxt` and `NAME/NUMBER/model.onnx`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from modelrail.client.backoff import Backoff
from modelrail.names import InvalidName, check_id
from modelrail_inference.model.definition import (
    CONFIG_FILE,
    LoadError,
    ModelSettings,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.model.warmup import WARMUP_FOLDER
from modelrail_inference.repository.repository import Repository
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.source import load_error, os_reason, unknown_model
from modelrail_server.errors import Unavailable

_log = structlog.get_logger(__name__)

_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 60.0


class FolderSource:
    """Loads every model of the folder at start; afterwards models come and go by RPC.

    A model that fails at start does not keep the others from serving; the server is not ready then.
    While it serves, no load makes the server unready: probes would drain every replica.

    Args:
        folder: The model repository. It belongs to the operator; nothing is written to it.
        repository: Where the models go.
        read_settings: Reads a configuration file of the model that is named.
        files: Reads the folder.
        vouched: Whether the operator vouches for the models.
        unloaded: Models that somebody took away before this process began.
    """

    def __init__(
        self,
        folder: Path,
        repository: Repository,
        read_settings: Callable[[Path, str], ModelSettings],
        files: FileWork,
        *,
        vouched: bool,
        unloaded: Collection[str] = (),
    ) -> None:
        self._unloaded = set(unloaded)
        self._folder = folder
        self._repository = repository
        self._read_settings = read_settings
        self._files = files
        self._vouched = vouched
        self._wanted: set[str] = set()
        self._awaited: set[str] | None = None
        self._pending: set[str] = set()  # what `run` has still to load
        self._problems: dict[str, str] = {}
        self._changes: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def start(self) -> None:
        """Does nothing: the server listens while the models are loaded."""

    async def run(self) -> None:
        """Loads everything, one model after the other; what fails for now is tried again."""
        names, skipped = await self._files.run(self._look)
        for name, reason in skipped.items():
            _log.warning("folder skipped", folder=name, reason=reason)
        self._awaited = set(names)
        self._pending = self._awaited - self._unloaded
        self._wanted |= self._pending
        backoff = Backoff(
            initial_seconds=_FIRST_RETRY_SECONDS, maximum_seconds=_LONGEST_RETRY_SECONDS
        )
        while True:
            for name in sorted(self._pending):
                await self._try(name)
            if not self._pending:
                return
            await asyncio.sleep(backoff.next_delay())

    async def _try(self, name: str) -> None:
        """Loads a model, unless somebody loaded or unloaded it meanwhile."""
        async with self._changes_of(name):
            if name not in self._pending:
                return
            try:
                await self._reconcile(name)
            except LoadError as error:
                _log.error("model not served", model=name, reason=str(error))
                if not isinstance(error, TransientLoadError):  # another try cannot mend it
                    self._pending.discard(name)
            except Exception as error:  # noqa: BLE001 - one model's trouble must not end the others
                _log.error("model not served", model=name, exc_info=error)

    def ready(self) -> bool:
        """Whether each model that the folder had at start serves something, or was unloaded."""
        return self._awaited is not None and all(
            self._repository.ready_versions(name) for name in self._awaited & self._wanted
        )

    async def names(self) -> list[str]:
        """Returns the sub-folders with a well-formed name."""
        try:
            names, _ = await self._files.run(self._look)
        except OSError as error:
            _log.error("model repository not read", reason=str(error))
            raise Unavailable(
                f"the model repository cannot be read: {os_reason(error)}",
                reason="REPOSITORY_UNREADABLE",
            ) from error
        return names

    def _look(self) -> tuple[list[str], dict[str, str]]:
        """Returns the models' names, and the names that are none with the reason."""
        names: list[str] = []
        skipped: dict[str, str] = {}
        for path in sorted(self._folder.iterdir()):
            try:
                if path.is_dir():
                    names.append(check_id(path.name, what="model name"))
            except InvalidName as error:
                skipped[path.name] = str(error)
        return names, skipped

    def problem(self, name: str) -> str:
        """Returns why a model has no versions; what is wrong with one is told by that one."""
        return self._problems.get(name, "")

    async def load(self, name: str) -> None:
        """Loads a model with its present files."""
        async with self._changes_of(name):
            if not await self._files.run(self._has, name):
                raise unknown_model(name)
            self._unloaded.discard(name)
            self._wanted.add(name)
            try:
                await self._reconcile(name)
            except LoadError as error:
                raise load_error(name, error) from error

    async def unload(self, name: str) -> None:
        """Takes all versions of a model away."""
        async with self._changes_of(name):
            if name not in self._wanted and not await self._files.run(self._has, name):
                raise unknown_model(name)
            self._unloaded.add(name)
            self._wanted.discard(name)
            self._pending.discard(name)
            self._problems.pop(name, None)
            await self._repository.reconcile(name, ())
            if not await self._files.run(self._has, name):
                self._unloaded.discard(name)
                self._repository.remove(name)

    def _changes_of(self, name: str) -> asyncio.Lock:
        """Returns what lets one load or unload of a model happen at a time.

        It is held from before the files are read: a load must not end after an unload that came
        later.
        """
        return self._changes.setdefault(name, asyncio.Lock())

    async def _reconcile(self, name: str) -> None:
        self._problems.pop(name, None)
        try:
            definitions = await self._files.run(self._definitions, name)
        except LoadError as error:
            self._problems[name] = str(error)
            raise
        except OSError as error:
            _log.warning("model's files not read", model=name, reason=str(error))
            self._problems[name] = f"the model's files cannot be read: {os_reason(error)}"
            raise LoadError(self._problems[name]) from error
        await self._repository.reconcile(name, definitions)
        self._pending.discard(name)

    def _has(self, name: str) -> bool:
        # The name is checked before it becomes part of a path.
        try:
            check_id(name, what="model name")
        except InvalidName:
            return False
        return (self._folder / name).is_dir()

    def _definitions(self, name: str) -> list[VersionDefinition]:
        folder = self._folder / name
        config = folder / CONFIG_FILE
        settings = self._read_settings(config, name) if config.exists() else ModelSettings()
        numbers = sorted(_version_numbers(folder))
        chosen = settings.version_policy.choose(numbers)
        missing = [number for number in chosen if number not in numbers]
        if missing:
            raise LoadError(f"no folder for version {_listed(missing)}; found: {_listed(numbers)}")
        if not chosen:
            raise LoadError("no folder of a version, such as '1'")
        return [
            VersionDefinition(
                model=name,
                number=number,
                path=folder / str(number) / settings.file_name,
                fingerprint=_fingerprint(config, folder / str(number)),
                settings=settings,
                vouched=self._vouched,
            )
            for number in chosen
        ]


def _version_numbers(folder: Path) -> Iterable[int]:
    for path in folder.iterdir():
        name = path.name
        if name.isascii() and name.isdecimal() and str(int(name)) == name and path.is_dir():
            yield int(name)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _fingerprint(config: Path, folder: Path) -> str:
    """Returns what changes when a file does; contents are not read, as files can be large."""
    digest = hashlib.sha256()
    if config.exists():
        digest.update(config.read_bytes())
    for root in (folder, config.with_name(WARMUP_FOLDER)):
        for path in sorted(root.rglob("*")):
            name, status = path.relative_to(config.parent), path.stat()
            digest.update(
                f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\0".encode()
            )
    return digest.hexdigest()
