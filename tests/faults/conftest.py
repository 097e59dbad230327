"""Real inference services for tests of faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.faults.service import Maker, Service

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
