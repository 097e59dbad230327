"""All models of this process: which versions are loaded, and which one answers a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import structlog

from modelrail_inference.model.definition import (
    LoadedModel,
    Loader,
    LoadError,
    TransientLoadError,
    VersionDefinition,
)
from modelrail_inference.repository.lifecycle import Model, Serving, State, Version
from modelrail_inference.repository.load_threads import LoadThreads
from modelrail_server.errors import InvalidArgument, NotFound, Unavailable

_log = structlog.get_logger(__name__)

_MAX_DIGITS = 18
_CLOSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One row of the repository's index."""

    model: str
    number: int
    state: State
    reason: str


class Repository:
    """Loads versions beside the ones that serve, switches between two requests, drains the old.

    For the event loop's thread only, but for `serving`; loads run on threads of their own.

    Args:
        loader: Makes definitions loaded models.
        on_change: Called with the model's name, and whether it takes requests, after one of its
            versions became ready or was retired; with None when the model is removed.
        load_threads: Loads of different models at a time.
        load_timeout_seconds: Longest load, warm-up included.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        on_change: Callable[[str, bool | None], None] = lambda name, ready: None,
        load_threads: int = 1,
        load_timeout_seconds: float = 300.0,
    ) -> None:
        self._loader = loader
        self._on_change = on_change
        self._models: dict[str, Model] = {}
        self._threads = LoadThreads(threads=load_threads, timeout_seconds=load_timeout_seconds)
        self._draining: set[asyncio.Task[None]] = set()

    async def reconcile(
        self, name: str, definitions: Sequence[VersionDefinition], *, reason: str = "unloaded"
    ) -> None:
        """Makes exactly these versions of a model serve.

        New ones are loaded beside the old. When all of them are ready, the switch happens in one
        step between two requests, and what is no longer wanted is drained. When one fails, what
        served before goes on serving, together with what did load.

        Args:
            name: Name of the model.
            definitions: The versions wanted; none unloads the model.
            reason: What the index says about versions that are dropped.

        Raises:
            LoadError: At least one version could not be loaded; a `TransientLoadError` when
                trying again can help with one of them.
        """
        model = self._models.setdefault(name, Model(name))
        async with model.changes:
            loaded: list[tuple[Version, VersionDefinition, LoadedModel]] = []
            failures: list[str] = []
            failure: type[LoadError] = LoadError
            try:
                for definition in definitions:
                    version = model.version(definition)
                    if version.serving and version.fingerprint == definition.fingerprint:
                        continue
                    try:
                        loaded.append((version, definition, await self._load(version, definition)))
                    except LoadError as error:
                        failures.append(f"version {definition.number}: {error}")
                        if isinstance(error, TransientLoadError):
                            failure = TransientLoadError
            except BaseException:
                for version, _, loaded_model in loaded:
                    version.fail("the load was cancelled")
                    loaded_model.close()
                raise
            self._switch(model, loaded, definitions if not failures else None, reason)
            if failures:
                raise failure(f"failed to load '{name}', " + "; ".join(failures))

    async def _load(self, version: Version, definition: VersionDefinition) -> LoadedModel:
        version.begin_load()
        try:
            loaded = await self._threads.run(
                lambda: self._loader.load(definition),
                key=(definition.model, definition.number, definition.fingerprint),
            )
        except LoadError as error:
            version.fail(str(error))
            _log.warning(
                "load failed",
                model=definition.model,
                version=definition.number,
                reason=str(error),
            )
            raise
        except asyncio.CancelledError:
            version.fail("the load was cancelled")
            raise
        except Exception as error:
            # A defect of the loader must not take the service along; callers learn no details.
            version.fail("internal error")
            _log.exception("load failed", model=definition.model, version=definition.number)
            raise TransientLoadError("internal error") from error
        _log.info(
            "version loaded",
            model=definition.model,
            version=definition.number,
            provider=loaded.provider.value,
            seconds=round(loaded.load_seconds, 3),
        )
        return loaded

    def _switch(
        self,
        model: Model,
        loaded: list[tuple[Version, VersionDefinition, LoadedModel]],
        wanted: Sequence[VersionDefinition] | None,
        reason: str,
    ) -> None:
        """Puts the new in place and takes the old away, with no request in between."""
        old: list[tuple[Version, Serving]] = []
        for version, definition, loaded_model in loaded:
            replaced = version.become_ready(Serving(loaded_model), definition.fingerprint)
            if replaced:
                old.append((version, replaced))
        if wanted is not None:
            numbers = {definition.number for definition in wanted}
            for version in model.versions.values():
                if version.number in numbers:
                    continue
                retired = version.retire(reason)
                if retired:
                    old.append((version, retired))
        for version, serving in old:
            task = asyncio.get_running_loop().create_task(_drain(model.name, version, serving))
            self._draining.add(task)
            task.add_done_callback(self._drained)
        ready = model.ready()
        model.latest = ready[-1] if ready else None
        self._on_change(model.name, bool(ready))

    def _drained(self, task: asyncio.Task[None]) -> None:
        self._draining.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("version not freed", exc_info=error)

    def acquire(self, name: str, version: str) -> Serving:
        """Returns the model that answers, counted as in use until the caller releases it.

        Raises:
            InvalidArgument: The version is no number.
            NotFound: There is no such model or version.
            Unavailable: It is there, and not ready.
        """
        model = self._models.get(name) if version == "" else None
        found = model.latest if model else None
        if found is None:
            found = self.find(name, version)
        serving = found.serving
        if serving is None:
            raise not_ready(found, name)
        serving.acquire()
        return serving

    def find(self, name: str, version: str) -> Version:
        """Returns a version by the protocol's rules: empty means the latest that is ready.

        Raises:
            InvalidArgument: The version is no number.
            NotFound: There is no such model or version.
        """
        number = parse_version(version)
        model = self._models.get(name)
        if model is None or not model.versions:
            raise _unknown(name)
        if number is None:
            ready = model.ready()
            return ready[-1] if ready else _best(model)
        found = model.versions.get(number)
        if found is None:
            raise _unknown(name, number)
        return found

    def ready_versions(self, name: str) -> tuple[Version, ...]:
        """Returns the versions of a model that serve, ascending; none for unknown names."""
        model = self._models.get(name)
        return tuple(model.ready()) if model else ()

    def serving(self) -> Iterator[LoadedModel]:
        """Yields every loaded model that takes requests, by name and version.

        A scrape may call this on its thread while the event loop loads and unloads: models and
        versions are copied in one step of the interpreter before they are looked at, and whether
        a version serves is read once. `items()` would not do: it makes tuples on the way, which can
        start the garbage collector, whose finalizers let other threads run.
        """
        for model in sorted(self._models.values(), key=lambda model: model.name):
            for version in model.ready():
                if (serving := version.serving) is not None:
                    yield serving.model

    def taking_requests(self, name: str, version: str) -> list[LoadedModel]:
        """Returns the versions that take requests: one, those of a model, or all.

        Args:
            name: Name of the model; empty for all models.
            version: Number of the version; empty for all versions.

        Raises:
            InvalidArgument: A model is named that does not take requests.
        """
        models = [
            model
            for model in self.serving()
            if name in ("", model.model) and version in ("", str(model.number))
        ]
        if name and not models:
            raise InvalidArgument(
                f"requested model '{name[:80]}' is not available", reason="MODEL_NOT_AVAILABLE"
            )
        return models

    def index(self) -> list[IndexEntry]:
        """Returns a row for each version that was ever asked for, by name and version."""
        return [
            IndexEntry(name, number, version.state, version.reason)
            for name, model in sorted(self._models.items())
            for number, version in sorted(model.versions.items())
        ]

    def forget(self, name: str, keep: Collection[int]) -> None:
        """Drops the index rows of a model's versions that are gone, except those to keep."""
        model = self._models.get(name)
        if model is None:
            return
        for number, version in list(model.versions.items()):
            if number not in keep and version.state is State.UNAVAILABLE:
                del model.versions[number]

    def remove(self, name: str) -> None:
        """Forgets a model that its source does not know any more, if none of it serves."""
        model = self._models.get(name)
        if model is None or (not model.ready() and not model.changes.locked()):
            self._models.pop(name, None)
            self._on_change(name, None)

    async def close(self, *, grace_seconds: float = _CLOSE_SECONDS) -> None:
        """Retires everything, waits for what still runs, and frees it.

        Args:
            grace_seconds: Longest wait. A run that is stuck inside one operator, and a load that
                hangs, cannot be stopped; they are left behind, and end with the process.
        """
        try:
            async with asyncio.timeout(grace_seconds):
                for name in list(self._models):
                    await self.reconcile(name, ())
                await asyncio.gather(*self._draining, return_exceptions=True)
                await self._threads.close()
        except TimeoutError:
            _log.warning("runs or loads do not end, and are left behind")


def parse_version(text: str) -> int | None:
    """Returns the number of a version, or None for the empty text.

    Raises:
        InvalidArgument: The text is no decimal number.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise InvalidArgument.field(
            "model_version", f"expected a number from 0 or nothing, got {text[:40]!r}"
        )
    return int(text)


async def _drain(name: str, version: Version, serving: Serving) -> None:
    await serving.drain()
    version.drained()
    _log.info("version freed", model=name, version=version.number)


def _best(model: Model) -> Version:
    """Returns the version that says most about why nothing is ready: the newest that is loading."""
    loading = [v for v in model.versions.values() if v.state is State.LOADING]
    return max(loading or model.versions.values(), key=lambda version: version.number)


def _unknown(name: str, number: int | None = None) -> NotFound:
    shown = name if len(name) <= 80 else name[:80] + "…"
    which = f"'{shown}'" if number is None else f"'{shown}' version {number}"
    return NotFound(
        f"Request for unknown model: {which} is not found",
        reason="MODEL_NOT_FOUND",
        resource=f"models/{shown}",
    )


def not_ready(version: Version, name: str) -> Unavailable:
    """Returns the error for a version that is known and takes no requests."""
    reason = f" ({version.reason})" if version.reason else ""
    return Unavailable(
        f"Request for unknown model: '{name}' version {version.number} is not at ready state: "
        f"{version.state.value}{reason}",
        reason="MODEL_NOT_READY",
        resource=f"models/{name}/versions/{version.number}",
        retry_after_seconds=1.0,
    )
