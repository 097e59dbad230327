"""Messages between supervisor and worker: four bytes of length, then that much JSON."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

__all__ = ["MAX_FRAME_BYTES", "FrameError", "encode_frame", "read_frame", "receive_frame"]

MAX_FRAME_BYTES = 64 << 20
"""Largest message; the metrics of a thousand models are about 15 MB."""

_LENGTH = struct.Struct(">I")


class FrameError(ValueError):
    """A message is too large, or no JSON object."""


def encode_frame(message: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a message.

    Raises:
        FrameError: It is larger than `MAX_FRAME_BYTES`.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"expected at most {MAX_FRAME_BYTES} bytes, got {len(body)}")
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Returns the next message; None when the other side has closed, even amid a message.

    Raises:
        FrameError: What came is no message.
    """
    try:
        length = _length(await reader.readexactly(_LENGTH.size))
        return _message(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive_frame(connection: socket.socket) -> dict[str, Any] | None:
    """Returns the next message like `read_frame`, for a process without an event loop.

    Nothing that follows the message is read. The connection is a blocking one.

    Raises:
        FrameError: What came is no message.
    """
    head = _received(connection, _LENGTH.size)
    body = None if head is None else _received(connection, _length(head))
    return None if body is None else _message(body)


def _received(connection: socket.socket, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        try:
            part = connection.recv(count - len(data))
        except ConnectionError:
            return None
        if not part:
            return None
        data += part
    return data


def _length(head: bytes) -> int:
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"expected at most {MAX_FRAME_BYTES} bytes, got {length}")
    return int(length)


def _message(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except ValueError as error:
        raise FrameError(f"expected JSON: {error}") from error
    if not isinstance(message, dict):
        raise FrameError(f"expected a JSON object, got {type(message).__name__}")
    return message
