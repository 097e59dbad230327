"""This process alone."""

from __future__ import annotations

from modelrail_inference.fleet.fleet import Index
from modelrail_inference.repository.repository import Repository
from modelrail_inference.sources.source import Source
from modelrail_inference.statistics import VersionStatistics
from modelrail_server.errors import NotFound


class SingleProcess:
    """A fleet of one, and what each worker of a larger one answers for itself.

    Args:
        repository: The loaded models.
        source: Where models come from.
    """

    def __init__(self, repository: Repository, source: Source) -> None:
        self._repository = repository
        self._source = source

    async def load(self, name: str) -> None:
        """Loads a model, or loads it anew."""
        await self._source.load(name)

    async def unload(self, name: str) -> None:
        """Takes a model away."""
        await self._source.unload(name)

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
        """Whether this process is ready."""
        return self._source.ready()

    async def model_ready(self, name: str, version: str) -> bool:
        """Whether the model takes requests here; an unknown one does not."""
        try:
            return self._repository.find(name, version).serving is not None
        except NotFound:
            return False
