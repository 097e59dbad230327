"""Models from the registry: watched references, verified downloads, swaps without a gap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from modelrail.names import (
    ModelAliasName,
    ModelName,
    ModelVersionName,
    parse_model_reference,
)
from modelrail_server.errors import Unavailable

from modelrail_inference.repository.definition import LoadError, VersionDefinition
from modelrail_inference.repository.repository import Repository
from modelrail_inference.sources.cache import Manifest, ModelCache
from modelrail_inference.sources.source import load_error, unknown_model

_log = structlog.get_logger(__name__)

_DEFAULT_ALIAS = "production"
_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 30.0

Reference = ModelVersionName | ModelAliasName


class RegistryUnreachableError(Exception):
    """The registry did not answer, or not as it should; trying again can help."""


class ModelRegistry(Protocol):
    """What is asked of a registry."""

    async def resolve(self, reference: Reference) -> ModelVersionName | None:
        """Returns the version that a reference means now; None when there is none.

        Raises:
            RegistryUnreachableError: It cannot be told.
        """

    async def manifest(self, version: ModelVersionName) -> Manifest:
        """Returns the files of a version.

        Raises:
            RegistryUnreachableError: They cannot be told.
        """

    async def download(self, version: ModelVersionName, folder: Path) -> None:
        """Downloads the files of a version.

        Raises:
            RegistryUnreachableError: Not all bytes came, or not the right ones.
        """

    def changes(self, models: Sequence[ModelName]) -> AsyncIterator[ModelName | None]:
        """Yields the models that changed; None first and when anything may have changed.

        Raises:
            RegistryUnreachableError: The watch broke.
        """


def parse_reference(text: str) -> Reference:
    """Reads what `--serve` takes: `MODEL@ALIAS`, `MODEL@3`, or `MODEL` for its alias `production`.

    Raises:
        InvalidName: The text is none of these.
    """
    name = parse_model_reference(text)
    return ModelAliasName(name.model, _DEFAULT_ALIAS) if isinstance(name, ModelName) else name


class RegistrySource:
    """Follows references. A reference that does not exist yet is waited for.

    While the registry cannot be reached, what is loaded serves on; a start without it serves the
    versions of the last time from the cache. An alias that was removed keeps its last version.

    Args:
        references: What to serve.
        registry: Where it comes from.
        cache: Where it is kept.
        repository: Where it goes.
    """

    def __init__(
        self,
        references: Sequence[Reference],
        registry: ModelRegistry,
        cache: ModelCache,
        repository: Repository,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._repository = repository
        self._references: dict[str, list[Reference]] = {}
        for reference in dict.fromkeys(references):
            self._references.setdefault(reference.model, []).append(reference)
        self._changed = {name: asyncio.Event() for name in self._references}
        self._served: dict[Reference, int] = {}
        self._unloaded: set[str] = set()
        self._changes = asyncio.Lock()

    async def run(self) -> None:
        """Serves from the cache, then follows the registry until cancelled."""
        await self._restore()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            for name in self._references:
                tasks.create_task(self._follow(name))

    def ready(self) -> bool:
        """Whether every reference is loaded whose model nobody unloaded."""
        return all(
            name in self._unloaded or all(reference in self._served for reference in references)
            for name, references in self._references.items()
        )

    def names(self) -> list[str]:
        """Returns the models of the references."""
        return sorted(self._references)

    async def load(self, name: str) -> None:
        """Asks the registry what the references mean now, and loads that."""
        if name not in self._references:
            raise unknown_model(name)
        self._unloaded.discard(name)
        try:
            await self._reconcile(name)
        except LoadError as error:
            raise load_error(name, error) from error
        except RegistryUnreachableError as error:
            self._changed[name].set()
            raise Unavailable(str(error), reason="REGISTRY_UNREACHABLE") from error

    async def unload(self, name: str) -> None:
        """Takes a model away; its references are not followed until it is loaded again."""
        if name not in self._references:
            raise unknown_model(name)
        async with self._changes:
            self._unloaded.add(name)
            for reference in self._references[name]:
                self._served.pop(reference, None)
            await self._repository.reconcile(name, ())

    async def _restore(self) -> None:
        """Loads the versions of the last time, as far as their files are there and unchanged."""
        targets = await asyncio.to_thread(self._cache.load_targets)
        for name, references in self._references.items():
            known = {r: targets[str(r)] for r in references if str(r) in targets}
            try:
                await self._serve(name, known, download=False)
            except (LoadError, RegistryUnreachableError) as error:
                _log.warning("cached version not served", model=name, reason=str(error))

    async def _watch(self) -> None:
        models = [ModelName(name) for name in self._references]
        retry = _FIRST_RETRY_SECONDS
        while True:
            try:
                async for model in self._registry.changes(models):
                    retry = _FIRST_RETRY_SECONDS
                    for name in [model.model] if model else self._references:
                        self._changed[name].set()
            except RegistryUnreachableError as error:
                _log.warning("registry not reached", reason=str(error), retry_seconds=retry)
            await asyncio.sleep(retry)
            retry = min(2 * retry, _LONGEST_RETRY_SECONDS)

    async def _follow(self, name: str) -> None:
        """Reconciles one model after each change; models do not wait for each other."""
        changed = self._changed[name]
        retry = _FIRST_RETRY_SECONDS
        while True:
            await changed.wait()
            changed.clear()
            try:
                await self._reconcile(name)
                retry = _FIRST_RETRY_SECONDS
            except LoadError as error:
                # The file will not get better; the next change of the reference is the next chance.
                _log.error("version not served", model=name, reason=str(error))
            except (RegistryUnreachableError, OSError) as error:
                _log.warning("version not fetched", model=name, reason=str(error))
                try:
                    async with asyncio.timeout(retry):
                        await changed.wait()
                except TimeoutError:
                    changed.set()
                retry = min(2 * retry, _LONGEST_RETRY_SECONDS)

    async def _reconcile(self, name: str) -> None:
        wanted: dict[Reference, int] = {}
        for reference in self._references[name]:
            version = await self._registry.resolve(reference)
            if version is not None:
                wanted[reference] = version.number
            elif reference in self._served:
                _log.warning("reference is gone, its last version serves on", name=str(reference))
                wanted[reference] = self._served[reference]
            else:
                _log.info("reference does not exist yet", name=str(reference))
        await self._serve(name, wanted, download=True)

    async def _serve(self, name: str, wanted: dict[Reference, int], *, download: bool) -> None:
        async with self._changes:
            if name in self._unloaded or not wanted:
                return
            definitions = [
                await self._definition(ModelVersionName(name, number), download=download)
                for number in sorted(set(wanted.values()))
            ]
            await self._repository.reconcile(name, definitions, reason="replaced")
            if {**self._served, **wanted} != self._served:
                self._served.update(wanted)
                known = await asyncio.to_thread(self._cache.load_targets)
                served = {str(reference): number for reference, number in self._served.items()}
                await asyncio.to_thread(self._cache.save_targets, {**known, **served})

    async def _definition(self, version: ModelVersionName, *, download: bool) -> VersionDefinition:
        manifest = await asyncio.to_thread(self._cache.find, version)
        if manifest is None and not download:
            raise LoadError(f"no unchanged files of {version} in the cache")
        if manifest is None:
            manifest = await self._registry.manifest(version)
            folder = await asyncio.to_thread(self._cache.staging, version)
            await self._registry.download(version, folder)
            if not await asyncio.to_thread(self._cache.commit, manifest):
                raise RegistryUnreachableError(f"files of {version} are not those of its manifest")
        graph = manifest.model_file()
        if graph is None:
            raise LoadError(f"{version} has no file model.onnx")
        digests = "-".join(file.sha256 for file in manifest.files)
        return VersionDefinition(
            model=version.model,
            number=version.number,
            path=self._cache.folder(version) / graph,
            fingerprint=digests,
        )
