"""What most integration tests of the trainer begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.house import House, ScriptedRegistry, TrainerUnderTest, serving_registry


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Trainers whose scripted worker does what a job's display name says."""
    return House(tmp_path, ScriptedRegistry())  # type: ignore[abstract]  # answers what is asked here


@pytest.fixture
async def trainer(house: House) -> AsyncIterator[TrainerUnderTest]:
    """A trainer of the house, beside its registry."""
    async with (
        serving_registry(house.registry, house.registry_address),
        house.trainer() as trainer,
    ):
        yield trainer
