"""What a call ended with, when requests were being written to it at that moment.

grpc.aio says INTERNAL for a write that meets a call which the server has just ended, and stores it
in the place of the server's status: before it, or even over it (grpcio 1.81, `_call.py: _write`,
`set_internal_error`). This module keeps the server's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from modelrail.client.errors import from_rpc_error

_Answer = TypeVar("_Answer")

# What the stored status says after such a write; there is no other sign of it.
_FAILED_WRITE = "Internal error from Core"


@asynccontextmanager
async def errors_of(call: grpc.aio.Call) -> AsyncIterator[None]:
    """Is `mapped_errors()` for a call that requests are written to: the error is the server's."""
    ended = _Ended(call)
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(await ended.instead_of(error)) from error


class _Ended:
    """Notes each status of a call at the moment it is set, before another can take its place."""

    def __init__(self, call: grpc.aio.Call) -> None:
        self._status: asyncio.Future[grpc.aio.AioRpcError] = (
            asyncio.get_running_loop().create_future()
        )
        call.add_done_callback(self._note)

    async def instead_of(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """Returns what the call ended with, where `error` is grpc.aio's word for a failed write."""
        if error.details() != _FAILED_WRITE:
            return error
        ending = await self._status
        if ending.code() is not grpc.StatusCode.OK:
            return ending
        return grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE,
            ending.initial_metadata(),
            ending.trailing_metadata(),
            details="the server ended the call before all was sent, and its answer was lost",
        )

    def _note(self, call: grpc.aio.Call) -> None:
        details = _at_once(call.details())
        if details == _FAILED_WRITE or self._status.done():
            return
        self._status.set_result(
            grpc.aio.AioRpcError(
                _at_once(call.code()),
                grpc.aio.Metadata(),
                _at_once(call.trailing_metadata()),
                details=details,
            )
        )


def _at_once(question: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Returns the answer of a coroutine that has nothing to wait for: the call's status is set."""
    try:
        question.send(None)
    except StopIteration as answer:
        return cast("_Answer", answer.value)
    question.close()
    raise AssertionError("expected the status of an ended call")
