"""What tests of the scheduler share."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modelrail_inference.scheduling.on_loop.quickness import Quickness
from tests.unit.scheduling_house import Houses


@pytest.fixture
async def houses() -> Any:
    houses = Houses()
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    yield houses
    assert failures == []
    for house in houses.made:
        house.scheduler.close()
        assert house.scheduler.waiting == 0


@pytest.fixture
def constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on a busy machine teach nothing about how quick a model is."""
    monkeypatch.setattr(Quickness, "learn", lambda *arguments: None)
