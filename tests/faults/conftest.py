"""Real inference services for tests of faults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.faults.service import Maker, Service
from tests.faults.workers import Start as StartWorkers
from tests.faults.workers import models_in, servers_in

Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts inference services that end with the test."""
    started: list[Service] = []
    numbers = count()

    def begin(
        *arguments: str,
        models: tuple[Maker, ...],
        folder: Path | None = None,
        vouched: bool = True,
        **more: Any,
    ) -> Service:
        where = folder or tmp_path / f"service-{next(numbers)}"
        # Trials of models take a second, and few tests are about them.
        flags = ("--vouched",) if vouched else ()
        service = Service(where, models, (*flags, *arguments), **more)
        started.append(service)
        return service

    yield begin
    for service in started:
        service.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models for servers of several workers."""
    return models_in(tmp_path)


@pytest.fixture
async def start_workers(tmp_path: Path) -> AsyncIterator[StartWorkers]:
    """Starts servers of several workers that end with the test."""
    async with servers_in(tmp_path) as begin:
        yield begin
