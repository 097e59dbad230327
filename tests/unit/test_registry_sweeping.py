"""The search for old uploads goes on, whatever one search meets."""

from __future__ import annotations

import asyncio
from typing import cast

from structlog.testing import capture_logs

from modelrail_registry.storage.sweeping import sweeping
from modelrail_registry.storage.transfer import Transfer


class FailingTransfer:
    """A disk that fails in the first searches."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.searches = 0
        self.succeeded = asyncio.Event()

    async def sweep(self, expiry_seconds: float) -> None:
        assert expiry_seconds == 60
        self.searches += 1
        if self.searches <= self.failures:
            raise OSError(5, "injected")
        self.succeeded.set()


async def test_a_search_that_fails_is_logged_and_the_next_one_runs() -> None:
    transfer = FailingTransfer(failures=3)
    with capture_logs() as logs:
        async with (
            asyncio.timeout(10),
            sweeping(cast(Transfer, transfer), expiry_seconds=60, interval_seconds=0.001),
        ):
            await transfer.succeeded.wait()
    assert [log["log_level"] for log in logs] == ["error"] * 3


async def test_the_first_search_is_over_before_the_registry_serves() -> None:
    transfer = FailingTransfer(failures=0)
    async with sweeping(cast(Transfer, transfer), expiry_seconds=60, interval_seconds=3600):
        assert transfer.searches == 1
