"""Callers of the client for Python who ask again as soon as they are answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from modelrail.client.errors import ModelrailError
from modelrail.client.inference import AsyncInferenceClient
from tests.faults.service import SECONDS

ROW = np.ones((1, 4), np.float32)


class Callers:
    """What so many callers of one client, each with one call at a time, have met so far."""

    def __init__(self, client: AsyncInferenceClient, count: int) -> None:
        self._client = client
        self._stop = False
        self.answered = [0] * count
        """Good answers of each caller."""
        self.failed: Counter[str] = Counter()
        """Failed calls of all of them, by the kind of the error."""

    async def call(self, number: int) -> None:
        """Calls until told to stop."""
        while not self._stop:
            try:
                result = await self._client.infer("doubling", {"x": ROW})
            except ModelrailError as error:
                self.failed[type(error).__name__] += 1
            else:
                assert result.outputs["y"].tolist() == [[2.0] * 4]
                self.answered[number] += 1

    async def all_answered(self, times: int) -> None:
        """Waits until each caller was answered so many times more."""
        wanted = [already + times for already in self.answered]
        async with asyncio.timeout(SECONDS):
            while any(now < then for now, then in zip(self.answered, wanted, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Lets each caller end after the call that it is in."""
        self._stop = True


@asynccontextmanager
async def calling(client: AsyncInferenceClient, count: int) -> AsyncIterator[Callers]:
    """So many callers, who call all the time."""
    callers = Callers(client, count)
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(callers.call(number))
        try:
            yield callers
        finally:
            callers.stop()
    print(f"{sum(callers.answered)} calls answered, failed: {dict(callers.failed)}")
