"""Calls in both directions over one connection between supervisor and worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any

import structlog

from modelrail_server.errors import ServiceError, Unavailable
from modelrail_server.supervision.error_document import error_document, error_of
from modelrail_server.supervision.frame import FrameError, encode_frame, read_frame

__all__ = ["Channel", "ChannelClosedError"]

_log = structlog.get_logger(__name__)

_MAX_CALLS = 256
_MAX_UNSENT_BYTES = 1 << 20
"""From here on nothing large is added for an end that does not read."""

Answer = Callable[[str, Mapping[str, Any]], Awaitable[Any]]


class ChannelClosedError(ConnectionError):
    """The other process has ended, or is about to."""


class Channel:
    """One end. For one event loop's thread only.

    Args:
        reader: What the other end sends.
        writer: To the other end.
        answer: Answers a call: its method and arguments; what it returns must be JSON.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(self) -> None:
        """Takes messages until the other end closes; calls that still wait fail then."""
        try:
            while (message := await read_frame(self._reader)) is not None:
                self._take(message)
        except FrameError as error:
            _log.error("control channel broken", reason=str(error))
        finally:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether the other process has ended, or this end was closed."""
        return self._closed

    def close(self) -> None:
        """Closes this end."""
        self._closed = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ChannelClosedError("the other process has ended"))
        for task in self._answering:
            task.cancel()
        self._writer.close()

    async def call(
        self, method: str, arguments: Mapping[str, Any], *, timeout_seconds: float | None
    ) -> Any:
        """Returns what the other end answers; without a time, whenever it does.

        Raises:
            ServiceError: The error that it answered; Unavailable also when too many calls wait.
            InternalFailure: It failed by a defect.
            ChannelClosedError: It has ended.
            TimeoutError: It did not answer in time.
        """
        if self._closed:
            raise ChannelClosedError("the other process has ended")
        if len(self._waiting) >= _MAX_CALLS:
            raise Unavailable("too many calls between processes", retry_after_seconds=1.0)
        number = next(self._numbers)
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._send({"id": number, "method": method, "arguments": arguments})
                return await waiting
        finally:
            del self._waiting[number]
            waiting.cancel()

    def tell(self, method: str, arguments: Mapping[str, Any]) -> None:
        """Sends what wants no answer and must not be lost: small messages, and not many.

        Raises:
            FrameError: It is too large.
        """
        if not self._closed:
            self._writer.write(encode_frame({"method": method, "arguments": arguments}))

    def offer(self, method: str, arguments: Mapping[str, Any]) -> bool:
        """Sends what may be large, and returns whether it did: not while the other end is behind.

        Raises:
            FrameError: It is too large.
        """
        unsent_bytes = self._writer.transport.get_write_buffer_size()
        if self._closed or unsent_bytes >= _MAX_UNSENT_BYTES:
            return False
        self.tell(method, arguments)
        return True

    async def _send(self, message: Mapping[str, Any]) -> None:
        self._writer.write(encode_frame(message))
        # A close meanwhile is told by `run`, which fails the calls that wait.
        with suppress(ConnectionError):
            await self._writer.drain()

    def _take(self, message: Mapping[str, Any]) -> None:
        if "method" in message:
            task = asyncio.create_task(self._serve(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        waiting = self._waiting.get(message["id"])
        if waiting is None or waiting.done():  # its caller did not wait so long
            return
        if "error" in message:
            waiting.set_exception(error_of(message["error"]))
        else:
            waiting.set_result(message["result"])

    async def _serve(self, message: Mapping[str, Any]) -> None:
        method = message["method"]
        reply: dict[str, Any] = {"id": message.get("id")}
        try:
            reply["result"] = await self._answer(method, message["arguments"])
        except ServiceError as error:
            reply["error"] = error_document(error)
        except Exception as error:  # noqa: BLE001 - a defect must not end the channel
            _log.error("call between processes failed", method=method, exc_info=error)
            reply["error"] = {"message": "internal error"}
        if reply["id"] is None:
            return
        try:
            await self._send(reply)
        except FrameError as error:
            _log.error("answer not sent", method=method, reason=str(error))
            await self._send({"id": reply["id"], "error": {"message": str(error)}})
