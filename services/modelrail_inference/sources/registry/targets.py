"""Which version each reference was served with last, remembered for a start without a registry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

import structlog

from modelrail.names import InvalidName, ModelAliasName, ModelName
from modelrail_inference.sources.file_work import FileWork
from modelrail_inference.sources.registry.cache import ModelCache
from modelrail_inference.sources.registry.reference import Reference

_log = structlog.get_logger(__name__)


class Targets:
    """The version number of each reference, in memory and in the cache.

    Args:
        cache: Keeps them.
        files: Runs the cache's work.
    """

    def __init__(self, cache: ModelCache, files: FileWork) -> None:
        self._cache = cache
        self._files = files
        self._numbers: dict[str, int] = {}
        self._writing = asyncio.Lock()

    async def load(self) -> None:
        """Reads what an earlier process remembered."""
        self._numbers = await self._files.run(self._cache.load_targets)

    def get(self, reference: Reference) -> int | None:
        """Returns the version that a reference was served with last; None if there is none."""
        return self._numbers.get(str(reference))

    def aliases(self) -> Iterator[ModelAliasName]:
        """Yields the references that are aliases."""
        for name in list(self._numbers):
            try:
                yield ModelAliasName.parse(name)
            except InvalidName:  # a fixed version, or no name of ours
                continue

    def numbers_of(self, model: str) -> set[int]:
        """Returns the versions that references of a model were served with."""
        start = f"{ModelName(model)}/"
        return {number for name, number in self._numbers.items() if name.startswith(start)}

    async def remember(
        self, served: Mapping[Reference, int], *, forget: Iterable[Reference] = ()
    ) -> None:
        """Writes down what serves now; a disk that refuses is told in the log."""
        async with self._writing:
            for reference in forget:
                self._numbers.pop(str(reference), None)
            self._numbers.update({str(reference): number for reference, number in served.items()})
            try:
                await self._files.run(self._cache.save_targets, dict(self._numbers))
            except OSError as error:
                _log.error("what serves is not remembered", reason=error.strerror)
