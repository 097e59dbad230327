"""Watch streams: the history from a place on, then every change as it is committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from concurrent.futures import Executor
from functools import partial

from modelrail_registry.catalog.catalog import Catalog
from modelrail_registry.catalog.events import Feed, ResumeToken
from modelrail_registry.metrics import RegistryMetrics
from modelrail_registry.resources import Event


class Watch:
    """Follows the history for any number of watchers, none of which polls.

    Args:
        catalog: Where the history is kept.
        feed: What tells of commits.
        executor: Threads for the database.
        stopping: Set when streams are to end.
        metrics: What is counted.
    """

    def __init__(
        self,
        catalog: Catalog,
        feed: Feed,
        *,
        executor: Executor,
        stopping: asyncio.Event,
        metrics: RegistryMetrics,
    ) -> None:
        self._catalog = catalog
        self._feed = feed
        self._executor = executor
        self._stopping = stopping
        self._metrics = metrics

    async def follow(
        self, token: ResumeToken | None, models: Collection[str]
    ) -> AsyncGenerator[tuple[ResumeToken, Event | None], None]:
        """Gives each change behind a place; without a place, first the present with no change.

        Raises:
            OutOfRange: The history does not hold the place.
        """
        with self._metrics.watchers.track_inprogress():
            loop = asyncio.get_running_loop()
            if token is None:
                token = await loop.run_in_executor(self._executor, self._catalog.present)
                yield token, None
            while not self._stopping.is_set():
                change = self._feed.next_change()
                found = await loop.run_in_executor(
                    self._executor,
                    partial(self._catalog.events_after, token, models=models),
                )
                for event in found:
                    token = ResumeToken(token.database_uid, event.sequence)
                    yield token, event
                if not found:
                    await self._either(change)

    async def _either(self, change: asyncio.Event) -> None:
        tasks = {asyncio.ensure_future(event.wait()) for event in (change, self._stopping)}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
