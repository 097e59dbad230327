from __future__ import annotations

import asyncio
import gc
from typing import Any, cast

import pytest

from modelrail_server.observability.metrics import MethodMetrics
from modelrail_server.rpc.handlers import Outcome


class Message(bytes):
    """A request that can be found again."""


class Gone:
    """The context of a call whose caller went away."""

    def cancelled(self) -> bool:
        return True

    def time_remaining(self) -> None:
        return None


async def test_a_call_whose_caller_went_gives_its_messages_back_at_once() -> None:
    """And not when the garbage collector comes by: messages can be large."""
    outcome = Outcome("test", MethodMetrics("service", "method"))
    context: Any = Gone()

    async def handle(request: bytes) -> None:
        try:
            raise asyncio.CancelledError
        except asyncio.CancelledError as error:
            await outcome.fail(error, context, cast("Any", None), 0.0)

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(asyncio.CancelledError):
            await handle(Message(b"request"))
        assert not [found for found in gc.get_objects() if type(found) is Message]
    finally:
        gc.enable()
