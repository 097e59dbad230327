"""Models from the registry: watched references, verified downloads, swaps without a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from modelrail.client.backoff import Backoff
from modelrail.names import ModelAliasName, ModelName, ModelVersionName
from modelrail_inference.model.definition import (
    CONFIG_FILE,
    MODEL_FILE,
    LoadError,
    ModelSettings,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.repository.repository import Repository
from modelrail_inference.sources.error_text import defect, detailed, told
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.registry.cache import Manifest, ModelCache
from modelrail_inference.sources.registry.followed import FollowedModel
from modelrail_inference.sources.registry.model_registry import (
    ModelRegistry,
    RegistryUnreachableError,
)
from modelrail_inference.sources.registry.reference import EveryModelWith, Reference
from modelrail_inference.sources.registry.targets import Targets
from modelrail_inference.sources.registry.version_files import VersionFiles
from modelrail_inference.sources.source import load_error, unknown_model
from modelrail_server.errors import FailedPrecondition, NotFound, Unavailable

_log = structlog.get_logger(__name__)

_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 30.0
_QUESTIONS_AT_A_TIME = 16
_MOST_WATCHED_BY_NAME = 1024  # the registry refuses longer lists


class RegistrySource:
    """Follows references. One that does not exist yet is waited for.

    While the registry cannot be reached, what is loaded serves on; a start without it serves the
    versions of the last time from the cache. An alias that was removed keeps its last version
    serving, also after a restart; unloading the model ends that.

    `*@ALIAS` means every model that has the alias, now and later. Ready counts those that the
    registry named first; one that comes later cannot make the server unready.

    Args:
        references: What to serve.
        registry: Where it comes from.
        cache: Where it is kept.
        repository: Where it goes.
        files: Runs the cache's work.
        read_settings: Reads the configuration file of a version that has one.
        max_models: Most models followed; `*@ALIAS` finds no more than that.
        unloaded: Models that somebody took away before this process began.
    """

    def __init__(
        self,
        references: Sequence[Reference | EveryModelWith],
        registry: ModelRegistry,
        cache: ModelCache,
        repository: Repository,
        files: FileWork,
        *,
        read_settings: Callable[[Path, str], ModelSettings],
        max_models: int,
        unloaded: Collection[str] = (),
    ) -> None:
        self._unloaded = frozenset(unloaded)
        self._read_settings = read_settings
        self._registry = registry
        self._cache = cache
        self._repository = repository
        self._files = files
        self._max_models = max_models
        self._aliases = {r.alias for r in references if isinstance(r, EveryModelWith)}
        self._named = {r for r in references if not isinstance(r, EveryModelWith)}
        self._models: dict[str, FollowedModel] = {}
        self._followers: asyncio.TaskGroup | None = None
        self._look = asyncio.Event()
        self._targets = Targets(cache, files)
        self._questions = asyncio.Semaphore(_QUESTIONS_AT_A_TIME)
        self._version_files = VersionFiles(registry, cache, files)
        for reference in sorted(self._named, key=str):
            self._want(reference)
        self._awaited: set[Reference] | None = None if self._aliases else set(self._named)

    async def start(self) -> None:
        """Does nothing: the server listens while the models are fetched and loaded."""

    async def run(self) -> None:
        """Serves from the cache, and follows the registry until cancelled."""
        await self._targets.load()
        for alias in self._targets.aliases():
            if alias.alias in self._aliases and not self._want(alias):
                self._log_refused([alias])
        async with asyncio.TaskGroup() as tasks:
            self._followers = tasks
            for model in self._models.values():
                tasks.create_task(self._follow(model))
            if self._aliases:
                self._look.set()
                tasks.create_task(self._repeat(self._look, self._look_for_models, "*"))
            tasks.create_task(self._watch())

    def ready(self) -> bool:
        """Whether every reference is loaded whose model nobody unloaded."""
        return self._awaited is not None and all(
            model.unloaded or reference in model.served
            for model in self._models.values()
            for reference in model.references
            if reference in self._awaited
        )

    async def names(self) -> list[str]:
        """Returns the models of the references."""
        return sorted(self._models)

    def problem(self, name: str) -> str:
        """Returns why nothing of a model could be fetched yet."""
        model = self._models.get(name)
        return model.problem if model else ""

    async def load(self, name: str) -> None:
        """Asks the registry what the references mean now, and loads that.

        Raises:
            NotFound: There is no such model, or none of its references exists.
            FailedPrecondition: Another caller unloaded it meanwhile.
            InvalidArgument: Its files cannot be loaded.
            Unavailable: It cannot be fetched or loaded now.
        """
        model = self._models.get(name)
        if model is None:
            raise unknown_model(name)
        model.unloaded = False
        model.refused.clear()
        try:
            await self._reconcile(model)
        except LoadError as error:
            if isinstance(error, TransientLoadError):
                model.changed.set()
            raise load_error(name, error) from error
        except RegistryUnreachableError as error:
            model.changed.set()
            _log.warning("registry not reached", model=name, reason=detailed(error))
            raise Unavailable(str(error), reason="REGISTRY_UNREACHABLE") from error
        except OSError as error:
            model.changed.set()
            _log.warning("version not fetched", model=name, reason=detailed(error))
            raise Unavailable(told(error), reason="FILES_NOT_WRITTEN") from error
        if self._repository.ready_versions(name):
            return
        if model.unloaded:
            raise FailedPrecondition(f"model '{name}' was unloaded meanwhile", reason="UNLOADED")
        raise NotFound(
            f"load failed for model '{name}': {model.problem or 'nothing refers to a version'}",
            reason="REFERENCE_NOT_FOUND",
            resource=f"models/{name}",
        )

    async def unload(self, name: str) -> None:
        """Takes a model away; its references are not followed until it is loaded again."""
        model = self._models.get(name)
        if model is None:
            raise unknown_model(name)
        async with model.changes:
            model.unloaded = True
            forgotten, model.served = model.served, {}
            await self._repository.reconcile(name, ())
            await self._targets.remember({}, forget=forgotten)

    def _want(self, reference: Reference) -> bool:
        """Follows a reference, or looks at it again; False when there are too many models."""
        model = self._models.get(reference.model)
        if model is None:
            if len(self._models) >= self._max_models:
                return False
            model = self._models[reference.model] = FollowedModel(
                reference.model, unloaded=reference.model in self._unloaded
            )
            if self._followers is not None:
                self._followers.create_task(self._follow(model))
        if reference not in model.references:
            model.references.append(reference)
        model.changed.set()
        return True

    async def _look_for_models(self) -> None:
        """Finds the models that `*@ALIAS` means now."""
        refused: list[Reference] = []
        try:
            for alias in sorted(self._aliases):
                async for model in self._registry.models_with(alias):
                    reference = ModelAliasName(model.model, alias)
                    if not self._want(reference):
                        refused.append(reference)
        except RegistryUnreachableError:
            if self._models:  # as good as it gets: those that the cache knows
                self._count()
            raise
        self._count()
        if refused:
            self._log_refused(refused)

    def _count(self) -> None:
        if self._awaited is None:
            self._awaited = {r for model in self._models.values() for r in model.references}

    def _log_refused(self, refused: Sequence[Reference]) -> None:
        _log.error(
            "models not served: there are more than --max-models",
            max_models=self._max_models,
            count=len(refused),
            names=[str(reference) for reference in refused[:10]],
        )

    async def _watch(self) -> None:
        # The first answer of a watch wakes everything, so nothing is missed between two.
        by_name = not self._aliases and len(self._models) <= _MOST_WATCHED_BY_NAME
        models = [ModelName(name) for name in self._models] if by_name else []
        backoff = Backoff(
            initial_seconds=_FIRST_RETRY_SECONDS, maximum_seconds=_LONGEST_RETRY_SECONDS
        )
        while True:
            try:
                async for change in self._registry.changes(models):
                    backoff.reset()
                    self._wake(change)
                reason, unexpected = "the watch ended", None
            except Exception as error:  # noqa: BLE001 - without a watch nothing is followed
                reason, unexpected = detailed(error), defect(error)
            delay = backoff.next_delay()
            _log.warning(
                "registry not watched",
                reason=reason,
                retry_seconds=round(delay, 1),
                exc_info=unexpected,
            )
            await asyncio.sleep(delay)

    def _wake(self, change: ModelName | ModelAliasName | None) -> None:
        if change is None:
            self._look.set()
            for model in self._models.values():
                model.changed.set()
        elif isinstance(change, ModelAliasName) and change.alias in self._aliases:
            if not self._want(change):
                self._log_refused([change])
        elif change.model in self._models:
            self._models[change.model].changed.set()

    async def _follow(self, model: FollowedModel) -> None:
        """Serves one model from the cache, then after each change; models wait for no other."""
        await self._restore(model)
        await self._repeat(
            model.changed,
            lambda: self._reconcile(model),
            model.name,
            until=lambda: not model.references,
        )

    async def _repeat(
        self,
        changed: asyncio.Event,
        reconcile: Callable[[], Awaitable[None]],
        name: str,
        *,
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        """Reconciles after each change, and again after a while when the registry was away."""
        backoff = Backoff(
            initial_seconds=_FIRST_RETRY_SECONDS, maximum_seconds=_LONGEST_RETRY_SECONDS
        )
        while not until():
            await changed.wait()
            changed.clear()
            try:
                await reconcile()
                backoff.reset()
            except Exception as error:  # noqa: BLE001 - one model's trouble must not end the others
                if isinstance(error, LoadError) and not isinstance(error, TransientLoadError):
                    # The file will not get better; the next change of the reference is the next
                    # chance.
                    _log.error("version not served", model=name, reason=str(error))
                    continue
                delay = backoff.next_delay()
                _log.warning(
                    "registry not reached, or version not served",
                    model=name,
                    reason=detailed(error),
                    retry_seconds=round(delay, 1),
                    exc_info=defect(error),
                )
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await changed.wait()
                changed.set()

    async def _restore(self, model: FollowedModel) -> None:
        """Loads the versions of the last time, as far as their files are there and unchanged."""
        async with model.changes:
            if model.unloaded:
                return
            wanted: dict[Reference, int] = {}
            manifests: dict[int, Manifest] = {}
            try:
                for reference in model.references:
                    number = self._targets.get(reference)
                    if number is None:
                        continue
                    version = ModelVersionName(model.name, number)
                    manifest = await self._files.run(self._cache.find, version)
                    if manifest is None:
                        _log.warning("cached files are damaged or gone", name=str(version))
                    else:
                        wanted[reference], manifests[number] = number, manifest
                await self._serve(model, wanted, manifests)
            except Exception as error:  # noqa: BLE001 - the registry may have better files
                _log.warning(
                    "cached version not served",
                    model=model.name,
                    reason=str(error),
                    exc_info=defect(error),
                )

    async def _reconcile(self, model: FollowedModel) -> None:
        async with model.changes:
            if model.unloaded:
                return
            try:
                wanted = await self._resolve(model)
                numbers = set(wanted.values())
                serving = {v.number for v in self._repository.ready_versions(model.name)}
                if wanted == model.served and serving == numbers <= model.confirmed:
                    return
                manifests = {number: await self._fetch(model, number) for number in numbers}
            except (RegistryUnreachableError, OSError, LoadError) as error:
                model.problem = told(error)
                raise
            before = model.numbers()
            await self._serve(model, wanted, manifests)
            if before and before != model.numbers():
                await self._prune(model, before)

    async def _resolve(self, model: FollowedModel) -> dict[Reference, int]:
        wanted: dict[Reference, int] = {}
        model.problem = ""
        for reference in list(model.references):
            async with self._questions:
                version = await self._registry.resolve(reference)
            if version is not None:
                wanted[reference] = version.number
            elif reference in model.served:
                _log.warning("reference is gone, its last version serves on", name=str(reference))
                wanted[reference] = model.served[reference]
            elif reference in self._named:
                _log.info("reference does not exist yet", name=str(reference))
                model.problem = f"{reference} does not exist yet"
            else:  # removed before it was served: the model is none that `*@ALIAS` means
                model.references.remove(reference)
        if not model.references and model.name in self._models:
            del self._models[model.name]
            self._repository.remove(model.name)
            _log.info("model is no longer followed", model=model.name)
        return wanted

    async def _fetch(self, model: FollowedModel, number: int) -> Manifest:
        """Returns what the registry says of a version, after its files came into the cache."""
        async with self._questions:
            manifest = await self._registry.manifest(ModelVersionName(model.name, number))
        await self._version_files.fetch(model, manifest)
        return manifest

    async def _serve(
        self, model: FollowedModel, wanted: dict[Reference, int], manifests: dict[int, Manifest]
    ) -> None:
        """Swaps to the versions of the manifests, and remembers those that serve."""
        if not wanted:
            return
        failure: LoadError | None = None
        try:
            definitions = [
                await self._files.run(self._definition, manifests[number])
                for number in sorted(manifests)
            ]
            await self._repository.reconcile(model.name, definitions, reason="replaced")
        except LoadError as error:
            failure = error
        serving = {version.number for version in self._repository.ready_versions(model.name)}
        if model.note({r: number for r, number in wanted.items() if number in serving}):
            await self._targets.remember(model.served)
        if failure is not None:
            raise failure

    def _definition(self, manifest: Manifest) -> VersionDefinition:
        # Without a graph, or with a wrong configuration, the loader says so, and the model's other
        # versions are loaded anyway.
        graph = manifest.model_file() or MODEL_FILE
        folder, name = self._cache.folder(manifest.version), manifest.version.model
        settings, problem = ModelSettings(), ""
        if any(file.path == CONFIG_FILE for file in manifest.files):
            try:
                settings = self._read_settings(folder / CONFIG_FILE, name)
            except LoadError as error:
                problem = str(error)
        return VersionDefinition(
            model=name,
            number=manifest.version.number,
            path=folder / graph,
            fingerprint="-".join(file.sha256 for file in manifest.files),
            settings=settings,
            problem=problem,
        )

    async def _prune(self, model: FollowedModel, before: set[int]) -> None:
        """Deletes what neither serves, nor served just before, nor is remembered."""
        keep = before | model.numbers() | self._targets.numbers_of(model.name)
        self._repository.forget(model.name, keep)
        model.confirmed &= keep
        model.refused = {n: manifest for n, manifest in model.refused.items() if n in keep}
        try:
            deleted = await self._files.run(self._cache.prune, model.name, keep)
        except OSError as error:
            _log.warning("old versions not deleted", model=model.name, reason=error.strerror)
        else:
            _log.info("old versions deleted", model=model.name, versions=deleted)
