"""This process alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from modelrail_inference.fleet.fleet import Index
from modelrail_inference.repository.repository import Repository
from modelrail_inference.sources.source import Source
from modelrail_inference.statistics import VersionStatistics
from modelrail_server.errors import NotFound, ServiceError

_log = structlog.get_logger(__name__)


class SingleProcess:
    """A fleet of one, and what each worker of a larger one answers for itself.

    A load or unload that has begun goes on without its caller, as Triton's does: somebody whose
    deadline is shorter than the load finds the model served later. There is one of them at a time
    for each model. The next begins when it has ended, and only if its own caller is still there, so
    callers who come again and again pile up nothing, and find loaded what an earlier call loaded.
    Where this is one of several workers, its caller is the supervisor, which stays: it has one
    order about a model with the workers at a time, and callers who come again share the one that
    waits.

    Args:
        repository: The loaded models.
        source: Where models come from.
    """

    def __init__(self, repository: Repository, source: Source) -> None:
        self._repository = repository
        self._source = source
        self._changes: dict[str, asyncio.Task[None]] = {}

    async def load(self, name: str) -> None:
        """Loads a model, or loads it anew."""
        await self._change(name, self._source.load)

    async def unload(self, name: str) -> None:
        """Takes a model away."""
        await self._change(name, self._source.unload)

    async def close(self) -> None:
        """Ends the loads and unloads that go on without their callers."""
        while changes := list(self._changes.values()):
            for change in changes:
                change.cancel()
            await asyncio.wait(changes)

    async def _change(self, name: str, change: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        """Changes a model, one change after the other, whether or not the caller stays."""
        while (earlier := self._changes.get(name)) is not None:
            await asyncio.wait([earlier])
        task = asyncio.create_task(change(name))
        self._changes[name] = task
        task.add_done_callback(lambda _: self._changes.pop(name))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: _tell(name, task))
            raise
        task.result()

    async def statistics(self, name: str, version: str) -> list[VersionStatistics]:
        """Returns the counters of this process."""
        return [
            VersionStatistics.of(model.model, model.number, model.statistics)
            for model in self._repository.taking_requests(name, version)
        ]

    async def index(self) -> Index:
        """Returns what this process knows."""
        problems = {name: self._source.problem(name) for name in await self._source.names()}
        return Index(self._repository.index(), problems)

    async def ready(self) -> bool:
        """Whether this process is ready, and no model in it has lost its device."""
        lost = any(model.device_failure for model in self._repository.serving())
        return self._source.ready() and not lost

    async def model_ready(self, name: str, version: str) -> bool:
        """Whether the model takes requests here and can run them; an unknown one does not."""
        try:
            serving = self._repository.find(name, version).serving
        except NotFound:
            return False
        return serving is not None and not serving.model.device_failure


def _tell(name: str, change: asyncio.Task[None]) -> None:
    """Says in the log what a caller who has left does not hear."""
    if change.cancelled() or (error := change.exception()) is None:
        return
    _log.warning(
        "load or unload failed after its caller had left",
        model=name,
        reason=str(error),
        exc_info=None if isinstance(error, ServiceError) else error,
    )
